"""One training at a time in a workdir: two would remove each other's saves and mix records."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from bert_ft import paths
from bert_ft.errors import InputError
from bert_ft.train.processes import this_host

NAME = ".lock"


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Raises InputError where another process, of this machine or of another that shares the file
    system, holds the workdir. The system gives the lock back when a process ends, however it ends.
    Nothing where there are no locks: in gs://, and on some network file systems."""
    with ExitStack() as held:
        if not paths.is_remote(workdir):
            with suppress(OSError):  # a workdir that can't be written is told of by those who write
                workdir.mkdir(parents=True, exist_ok=True)
                file = held.enter_context((workdir / NAME).open("a+", encoding="utf-8"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    who = file.read().strip() or "another process"
                    raise InputError(
                        f"{workdir}: {who} is training there; accepted: another --workdir, or the "
                        "same once that has ended"
                    ) from None
                file.truncate(0)
                file.write(this_host())
                file.flush()
        yield
