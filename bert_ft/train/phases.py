"""What a run is doing, and since when: the watchdog reads it, and goodput adds it up.

There is one run a process, so this is a module's state and not an object handed about: the loop,
an evaluation deep inside a task's tuning, and a thread that outlives neither all speak of the same
main thread. Only the main thread writes.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

KINDS = ("steps", "compilation", "input", "evaluation", "saving", "restoring", "other")
STEPS_KEPT = 101  # of which the median is taken: a machine's speed changes


@dataclasses.dataclass(frozen=True)
class Phase:
    """`kind` is one of KINDS. `since`: time.monotonic() of the last sign of life in it."""

    kind: str
    name: str
    since: float


class _Run:
    def __init__(self, started: float):
        self.now = Phase("other", "start", started)
        self.seconds = dict.fromkeys(KINDS, 0.0)
        self.counted = started  # up to when `seconds` goes
        self.steps: deque[float] = deque(maxlen=STEPS_KEPT)
        self.stepped: float | None = None  # when the last step ended, if nothing came between
        self.unsaved = False
        self.failed = ""


_run = _Run(time.monotonic())


def begin(started: float) -> None:
    """A new run, whose process began at time.monotonic() == `started`."""
    global _run
    _run = _Run(started)


def _enter(phase: Phase) -> None:
    now = time.monotonic()
    _run.seconds[_run.now.kind] += now - _run.counted
    _run.counted, _run.now = now, phase


@contextmanager
def within(kind: str, name: str) -> Iterator[None]:
    """The time inside is of `kind`, but for what is within another phase in it."""
    run, outer = _run, _run.now
    if kind not in ("steps", "input"):
        run.stepped = None
    _enter(Phase(kind, name, time.monotonic()))
    try:
        yield
    except Exception:
        run.failed = run.failed or name
        raise
    finally:
        if run is _run:
            _enter(dataclasses.replace(outer, since=time.monotonic()))


def alive() -> None:
    """A sign of life: the watchdog counts from here."""
    _run.now = dataclasses.replace(_run.now, since=time.monotonic())


def stepped() -> None:
    """A step is done. Its time is the one from the end of the step before."""
    now = time.monotonic()
    if _run.stepped is not None:
        _run.steps.append(now - _run.stepped)
    _run.stepped = now


def now() -> Phase:
    return _run.now


def failed() -> str:
    """The phase from which an exception is on its way out."""
    return _run.failed or _run.now.name


def median_step_s() -> float:
    """NaN before there are two steps."""
    steps = list(_run.steps)
    return statistics.median(steps) if steps else math.nan


def unsaved() -> bool:
    """Whether the run has something that a preemption should save first."""
    return _run.unsaved


def set_unsaved(value: bool) -> None:
    _run.unsaved = value


def seconds() -> dict[str, float]:
    """Seconds of each kind so far, those of the starts before this one included."""
    _enter(_run.now)
    return dict(_run.seconds)


def add(earlier: Mapping[str, float]) -> None:
    """Takes in the seconds of the starts before this one, up to their checkpoint."""
    for kind in KINDS:
        _run.seconds[kind] += earlier.get(kind, 0.0)


def goodput() -> dict[str, float]:
    """{kind: share of the time}; the shares sum to 1. Time that a kill has cost (what was done
    after the last checkpoint, and until the next start) was never written down, so it is not in."""
    spent = seconds()
    total = sum(spent.values()) or 1.0
    return {kind: spent[kind] / total for kind in KINDS}
