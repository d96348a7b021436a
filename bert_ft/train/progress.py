"""How far a run is, for one who looks on: a bar on a terminal, a line now and then in a log."""

import sys
import time

from tqdm import tqdm

# Where standard error is a file, each redraw of a bar would be a line of it.
LINE_EVERY_SECONDS = 10.0
LINE_EVERY_SHARE = 0.05
LINE_AT_LATEST_SECONDS = 300.0


class Bar:
    """One line of the terminal, drawn over itself."""

    def __init__(self, total_steps: int, start_step: int):
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}",
        )

    def show(self, step: int, text: str) -> None:
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class Lines:
    """For logs: a line each 5 %, but 10 s apart at least and 5 minutes at most; and the last."""

    def __init__(self, total_steps: int, start_step: int):
        self._total_steps = total_steps
        self._shown_step = start_step
        self._shown_at = time.monotonic()
        self._unshown = ""

    def show(self, step: int, text: str) -> None:
        self._unshown = f"step {step}/{self._total_steps}, {text}"
        waited = time.monotonic() - self._shown_at
        far = step - self._shown_step >= LINE_EVERY_SHARE * self._total_steps
        if waited >= (LINE_EVERY_SECONDS if far else LINE_AT_LATEST_SECONDS):
            self._print()
            self._shown_step, self._shown_at = step, time.monotonic()

    def close(self) -> None:
        if self._unshown:
            self._print()

    def _print(self) -> None:
        print(self._unshown, file=sys.stderr, flush=True)
        self._unshown = ""
