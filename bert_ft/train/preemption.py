"""SIGTERM: the machine is being taken away, so save and leave with 75. Ctrl-C: see that it counts.

Where there is nothing to save, the run ends at once. Else it ends at its next safe point: between
two steps, or between two batches of an evaluation. All processes of a run pass the same safe points
in the same order, so they agree on the number of one that none has passed yet.
"""

from __future__ import annotations

import functools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

from bert_ft.errors import EXIT_PREEMPTED, Preempted, first_line
from bert_ft.train import phases
from bert_ft.train.processes import Board

GRACE_S = 2.0  # that Python has to leave, when it is the one who works, before it is left
POLL_S = 0.25
AGAIN_S = 0.05
FAREWELL_S = 5.0  # for a process to come to the end that another one has told of


class Stop:
    """Listens for SIGTERM until closed, and on the board for what the others have heard. `leave`
    ends the process with a code, a line being said before."""

    def __init__(self, leave: Callable[[int, str], None]):
        self._board: Board | None = None
        self._leave = leave
        self._asked = False
        self._heard_at: float | None = None
        self._points = 0  # safe points passed
        self._at: int | None = None  # the one to stop at
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._undo: list[Callable[[], Any]] = []
        self._threads: list[threading.Thread] = []
        self._listen()

    def follow(self, board: Board | None) -> None:
        """From here on, what the other processes say counts as well."""
        self._board = board
        if board is not None:
            self._start(self._follow, "other processes")

    def _start(self, work: Callable[[], None], name: str) -> None:
        self._threads.append(threading.Thread(target=work, name=name, daemon=True))
        self._threads[-1].start()

    def _listen(self) -> None:
        try:
            before = signal.signal(signal.SIGTERM, self._heard)
        except ValueError:  # not the main thread: somebody else's signals
            return
        # Python calls a handler between two of its own instructions. A compilation is one, of
        # minutes; the number of the signal is written to this file at once.
        self._out, into = os.pipe()
        os.set_blocking(into, False)
        earlier = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
        self._undo = [
            _hooked(),
            lambda: signal.set_wakeup_fd(earlier),
            lambda: signal.signal(signal.SIGTERM, before),
            lambda: os.close(into),
            lambda: os.close(self._out),
        ]
        self._start(self._see_to_it, "SIGTERM")

    def _heard(self, number: int, frame: Any) -> None:
        first, self._asked = not self._asked, True
        if first and not phases.unsaved():
            raise Preempted("preempted: nothing to save; start me again")

    def _see_to_it(self) -> None:
        """Ends a run with nothing to save whose main thread is away in C++."""
        while not self._done.is_set():
            ready = select.select([self._out], [], [], 0.1)[0]
            if ready and signal.SIGTERM in os.read(self._out, 64):
                self._heard_at = self._heard_at or time.monotonic()
            waited = self._heard_at and time.monotonic() > self._heard_at + GRACE_S
            if waited and not phases.unsaved():
                line = f"preempted: nothing to save in {phases.now().name}; start me again"
                self._leave(EXIT_PREEMPTED, line)

    def due(self) -> bool:
        """A safe point, at which all processes ask: whether to stop here."""
        if self._board is None:
            return self._asked
        with self._lock:
            self._points += 1
            return self._at is not None and self._points >= self._at

    def _follow(self) -> None:
        """What the others have said on the board, and what they should know."""
        assert self._board is not None
        told, gone_since = False, 0.0
        while not self._done.wait(POLL_S):
            try:
                if self._asked and not told:
                    self._board.post("stop", "")
                    told = True
                if self._at is None and self._board.read("stop"):
                    self._agree()
                gone = self._board.read("left")
                gone.pop(self._board.process, None)
                gone = {process: note for process, note in gone.items() if note[0] != "0"}
            except jax.errors.JaxRuntimeError as e:
                if not self._done.is_set():
                    print(f"the board can't be read: {first_line(e)}", file=sys.stderr, flush=True)
                return  # JAX's own heartbeat tells what that means
            if gone and not gone_since:
                gone_since = time.monotonic()
            if gone and time.monotonic() > gone_since + FAREWELL_S:
                process, note = min(gone.items())
                code, _, line = note.partition(" ")
                self._leave(int(code), f"{self._board.name(process)} left with {code}: {line}")

    def _agree(self) -> None:
        """Sets the safe point to stop at. Nobody passes one meanwhile."""
        assert self._board is not None
        with self._lock:
            self._board.post("stop at", str(self._points))
            while len(found := self._board.read("stop at")) < self._board.processes:
                if self._done.wait(0.05) or self._board.read("left"):
                    return
            self._at = max(map(int, found.values())) + 1

    def close(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join(5)
        for undo in self._undo:
            undo()


def _hooked() -> Callable[[], Any]:
    """Has Python call _interrupt_again; returns what ends that. A hook that somebody has put over
    it since then stays, and with it this one, which it calls."""
    earlier = sys.unraisablehook
    ours = functools.partial(_interrupt_again, earlier)
    sys.unraisablehook = ours

    def undo() -> None:
        if sys.unraisablehook is ours:
            sys.unraisablehook = earlier

    return undo


def _interrupt_again(hook: Callable[[Any], Any], ignored: Any) -> None:
    """In the place of `hook`: a Ctrl-C that came within a callback of the garbage collector, or a
    finalizer, was thrown away by Python, so it is sent once more, after they have ended."""
    if isinstance(ignored.exc_value, KeyboardInterrupt):
        main = threading.main_thread().ident
        threading.Timer(AGAIN_S, signal.pthread_kill, (main, signal.SIGINT)).start()
    else:
        hook(ignored)


_stop: Stop | None = None


def listen(leave: Callable[[int, str], None]) -> Stop:
    """Begins to listen; `due` asks the one that listens."""
    global _stop
    _stop = Stop(leave)
    return _stop


def due() -> bool:
    """A safe point between two steps, at which the caller saves and leaves: whether to."""
    phases.alive()
    return _stop is not None and _stop.due()


def leave_if_due() -> None:
    """A safe point within an evaluation. Raises Preempted."""
    if due():
        raise Preempted("preempted in an evaluation; start me again")
