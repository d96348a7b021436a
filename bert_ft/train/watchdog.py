"""The watchdog: a thread that ends a run which is stuck, with every thread's stack, and code 76."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ml_collections import ConfigDict

from bert_ft.errors import EXIT_STUCK
from bert_ft.train import phases
from bert_ft.train.phases import Phase

LOOK_EVERY_S = 0.25
SLEPT_S = 5.0


def limit(phase: Phase, config: ConfigDict) -> tuple[float, str]:
    """(seconds without a sign of life in a phase after which the run is stuck, why so many)."""
    w = config.watchdog
    if phase.kind == "other" or (phase.kind == "input" and not phases.unsaved()):
        return math.inf, ""  # data is prepared, or a report is written: as long as it takes
    if phase.kind not in ("steps", "input"):
        return w.other_s, "watchdog.other_s"
    median = phases.median_step_s()
    if math.isnan(median):
        return w.first_step_s, "watchdog.first_step_s"
    if w.factor * median > w.least_s:
        return w.factor * median, f"watchdog.factor {w.factor:g} x {median:.3g} s, the median step"
    return w.least_s, "watchdog.least_s"


def leave(why: str, workdir: Path, process: int, before: Callable[[], None] | None = None) -> None:
    """Says why, dumps all stacks to standard error and into the workdir, and ends the process with
    76. What is on disk stays as it is: a save under way keeps its temporary name."""
    stacks = _stacks()
    path = workdir / f"stacks-{process}.txt"
    line = f"stuck: {why}; the stacks of all threads are below and in {path}"
    for sink in (sys.stderr, sys.__stderr__):
        with suppress(Exception):
            print(f"{stacks}\n{line}", file=sink, flush=True)
            break
    writing = threading.Thread(target=_write, args=(path, f"{line}\n\n{stacks}"), daemon=True)
    writing.start()
    writing.join(10)  # the disk may be what is stuck
    if before is not None:
        before()
    os._exit(EXIT_STUCK)


def _stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()


def _write(path: Path, text: str) -> None:
    with suppress(Exception):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Watchdog:
    """Looks at the phase of the main thread every LOOK_EVERY_S until closed."""

    def __init__(self, config: ConfigDict, stuck: Callable[[str], None]):
        """`stuck(why)` is called from the thread, and should not come back."""
        self._config = config
        self._stuck = stuck
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        looked = woke = time.monotonic()
        while not self._done.wait(LOOK_EVERY_S):
            looked, before = time.monotonic(), looked
            if looked - before > SLEPT_S:  # the whole process was suspended, as by Ctrl-Z
                woke = looked
            phase = phases.now()
            allowed, why = limit(phase, self._config)
            for_s = looked - max(phase.since, woke)
            if for_s > allowed:
                self._stuck(
                    f"no sign of life for {for_s:.1f} s in {phase.name}; "
                    f"the limit is {allowed:.1f} s ({why})"
                )

    def close(self) -> None:
        self._done.set()
        self._thread.join()
