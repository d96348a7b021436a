"""Keeps a library's log and late tracebacks off the terminal where we have said what went wrong."""

import logging
import sys
import traceback
import warnings
from typing import Any


def quiet_orbax() -> None:
    """Keeps Orbax's log and its tracebacks off the terminal: `say` tells what went wrong."""
    log = logging.getLogger("absl")
    if _not_orbax in log.filters:
        return
    log.addFilter(_not_orbax)
    logging.getLogger("asyncio").addFilter(_not_dropped)
    # The writes that a failed save has dropped, told of as Python ends.
    warnings.filterwarnings("ignore", r"coroutine 'async_serialize.*never awaited", RuntimeWarning)
    earlier = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # The reads that a failed restore dropped, as they end: the coroutine, or TensorStore's
        # thread, which has no object to name and finds the loop of that restore closed.
        code = getattr(unraisable.object, "cr_code", None)
        dropped = "orbax" in getattr(code, "co_filename", "")
        late = unraisable.object is None and "loop is closed" in str(unraisable.exc_value)
        if not (dropped or late):
            earlier(unraisable)

    sys.unraisablehook = hook


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname or record.levelno >= logging.CRITICAL


def _not_dropped(record: logging.LogRecord) -> bool:
    """Not of a read or a write that failed beside the one that was said."""
    text, raised = record.getMessage(), record.exc_info
    if "never retrieved" not in text:
        return True
    where = [f.filename for f in traceback.extract_tb(raised[2])] if raised else []
    return not any(name in said for name in ("orbax", "tensorstore") for said in (text, *where))
