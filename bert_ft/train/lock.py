"""One training at a time in a workdir: two would remove each other's saves and mix records."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bert_ft import paths
from bert_ft.errors import InputError
from bert_ft.train.processes import this_host

NAME = ".lock"
# One that is started again may be there before its predecessor has saved, or, where that vanished
# with its machine, before the file server has noticed: an NFS server waits for 90 s by default.
WAITS_S = 120.0


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Raises InputError where another process, of this machine or of another that shares the file
    system, holds the workdir. The system gives the lock back when a process ends, however it ends.
    Nothing where there are no locks: in gs://, and on some network file systems."""
    file, new = None, not paths.is_remote(workdir) and not workdir.exists()
    if not paths.is_remote(workdir):
        with suppress(OSError):  # a workdir that can't be written is told of by those who write
            file = _taken(workdir / NAME)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                (workdir / NAME).unlink()  # while it is held: see _taken
            with suppress(OSError):
                file.close()
        if new:
            with suppress(OSError):  # it stays where something is in it
                workdir.rmdir()


def _taken(path: Path) -> IO[str]:
    """The file, locked, after WAITS_S at most. Raises InputError, and OSError where there are no
    locks."""
    until, told = time.monotonic() + WAITS_S, False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)  # who had it may have removed that, too
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it has removed it, perhaps between the two lines above.
            if _same(file, path):
                break
        except BlockingIOError:
            file.seek(0)
            fault = f"{path.parent}: {file.read().strip() or 'another process'} is training there"
            if time.monotonic() >= until:
                file.close()
                raise InputError(
                    f"{fault}; accepted: another --workdir, or the same once that has ended; if "
                    f"its machine is gone, remove {path} and start again"
                ) from None
            if not told:
                print(f"{fault}; waiting {WAITS_S:g} s for it", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.5)
        except OSError:
            if not os.fstat(file.fileno()).st_size:  # else another process has its name in it
                path.unlink()
            file.close()
            raise
        file.close()
    with suppress(OSError):  # on a full disk it is held all the same
        file.truncate(0)
        file.write(this_host())
        file.flush()
    return file


def _same(file: IO[str], path: Path) -> bool:
    """Whether the open file is the one that lies there."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
