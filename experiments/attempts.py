"""One measurement after another, of which one that fails does not end the others."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import TypeVar

from experiments.lines import Unmeasured

Made = TypeVar("Made")


class Attempts:
    """What failed, in words."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def of(self, what: str, make: Callable[[], Made]) -> Made | None:
        """What `make` returns; None where it raises, which is shown and noted unless it is a run
        that was only to be shown."""
        try:
            return make()
        except Unmeasured:
            return None
        except Exception:
            traceback.print_exc()
            self.failed.append(what)
            return None

    def end(self) -> None:
        """Leaves with exit code 1 and a list of what failed, if anything did."""
        if self.failed:
            sys.exit("failed: " + "; ".join(self.failed))
