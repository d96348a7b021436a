"""What a run can end with, and the one exception that is the user's to mend."""

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
    """The loss became NaN or infinite. Carries the step and the row indices of its batch."""

    def __init__(self, step: int, rows: list[int]):
        super().__init__(f"loss is not finite at step {step}; rows of its batch: {rows}")
        self.step = step
        self.rows = rows
