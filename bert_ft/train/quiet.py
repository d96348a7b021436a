"""Keeps a library's log and late tracebacks off the terminal where we have said what went wrong."""

import logging
import sys
import warnings
from typing import Any


def quiet_orbax() -> None:
    """Keeps Orbax's log and its tracebacks off the terminal: `say` tells what went wrong."""
    log = logging.getLogger("absl")
    if _not_orbax in log.filters:
        return
    log.addFilter(_not_orbax)
    logging.getLogger("asyncio").addFilter(_not_dropped_read)
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


def _not_dropped_read(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not ("never retrieved" in text and ("orbax" in text or "tensorstore" in text))
