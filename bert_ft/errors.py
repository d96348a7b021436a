"""What a run can end with: the exit codes, the exceptions that stand for them, the last line."""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_DONE = 0
EXIT_INPUT = 2  # the user's input was wrong
EXIT_PREEMPTED = 75  # saved; start me again
EXIT_STUCK = 76  # watchdog; stacks dumped
EXIT_NOT_FINITE = 77  # the loss is not finite; the last good checkpoint is kept
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells report it


class InputError(Exception):
    """A fault in what the user gave: one line that names the key, file or line, what was seen,
    what is accepted and what to do. `main` prints it without a traceback and exits with 2."""


class NotFinite(Exception):
    """The loss or its gradient became NaN or infinite. Carries the step and the row indices of its
    batch; -1 is a text of data.unlabelled."""

    def __init__(self, step: int, rows: list[int], what: str = "loss"):
        own = [row for row in rows if row >= 0]
        said = f"{what} is not finite at step {step}; rows of its batch: {own}"
        if len(own) < len(rows):
            said += f" and {len(rows) - len(own)} texts of data.unlabelled"
        super().__init__(said)
        self.step = step
        self.rows = rows


class Preempted(BaseException):
    """SIGTERM came where the run can be left. No Exception: what tries again, or falls back, after
    a failure must let it pass."""


class Stuck(Exception):
    """The other processes of the run did not come; the message says where and which."""


KNOWN = (InputError, NotFinite, Preempted, KeyboardInterrupt)


def told(error: BaseException) -> int:
    """Prints the line that one of KNOWN ends a run with; its exit code."""
    line, code = f"error: {error}", EXIT_INPUT
    if isinstance(error, NotFinite):
        line, code = f"error: {error}; the last good checkpoint is kept", EXIT_NOT_FINITE
    elif isinstance(error, Preempted):
        line, code = str(error), EXIT_PREEMPTED
    elif isinstance(error, KeyboardInterrupt):
        line = "interrupted; the same command goes on from the last checkpoint, if there is one"
        code = EXIT_INTERRUPTED
    print(line, file=sys.stderr, flush=True)
    if _program and code in (EXIT_PREEMPTED, EXIT_INTERRUPTED):
        sys.stdout.flush()
        os._exit(code)
    return code


_program = False  # whether the process is ours to end


def run(main: Callable[[list[str]], int]) -> NoReturn:
    """A program from the command line. `told` ends it where a signal did, while `error` still holds
    its frames: they may own the module that a thread of XLA compiles, which would crash without."""
    global _program
    _program = True
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(EXIT_PREEMPTED))  # till one saves
    sys.exit(main(sys.argv))


def first_line(error: BaseException) -> str:
    """Of a message that may be pages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
