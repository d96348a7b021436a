"""A path that the user gives: on this machine, or `gs://BUCKET/...` in Google Cloud Storage.

A local one is a `pathlib.Path` as ever. A gs:// one is an `etils.epath.Path`, which has the same
methods by fsspec and gcsfs (extra `[gcs]`). What is different there: an object appears whole when
it is closed, so no rename is needed; nothing can be appended to (`Twin`); and nothing can be
memory-mapped or given to a library that opens files itself (`local`, `written`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

from bert_ft.errors import InputError

_COPIES = ExitStack()  # of `local`, until the process ends
_SIZES = "sizes.json"  # {file: bytes} of a cache's entry


def is_remote(path: str | os.PathLike) -> bool:
    return os.fspath(path).startswith("gs://")


def at(text: str) -> Path:
    """The path that `text` names, `~` expanded. Raises InputError for a scheme that is none of
    ours, for a gs:// without a bucket, and where the extra `[gcs]` is not installed."""
    if not is_remote(text):
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):  # gs:/ would be a folder of that name
            scheme = text.partition("/")[0] + "/" * (1 + ("://" in text))
            raise InputError(f"{text}: {scheme} is not read; accepted: a path, or gs://BUCKET/PATH")
        try:
            return Path(text).expanduser()
        except RuntimeError:
            raise InputError(
                f"{text}: no home directory {Path(text).parts[0]}; accepted: a path, or gs://"
            ) from None
    if not re.match(r"gs://[a-z0-9][a-z0-9._-]+(/|$)", text):
        raise InputError(f"{text}: accepted: gs://BUCKET/PATH, the bucket in lower case")
    if not importlib.util.find_spec("gcsfs"):
        raise InputError(f"{text}: gs:// needs gcsfs: pip install 'bert_ft[gcs]'")
    import fsspec.config
    from etils import epath

    # Else a process would not see what another one, or TensorStore, has written since it looked.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return cast(Path, epath.Path(text))


def absolute(text: str) -> Path:
    """As `at`; a local path from the root on."""
    path = at(text)
    return path if is_remote(path) else path.absolute()


def why(error: BaseException) -> str:
    """One line of what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, FileNotFoundError):
        return f"not found: {error}" if str(error) else "not found"
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def reached(path: Path) -> Iterator[None]:
    """Makes whatever goes wrong with a gs:// path the user's error: storage that does not answer,
    a bucket that is not there, or rights that are missing come as exceptions of many types."""
    try:
        yield
    except InputError:
        raise
    except Exception as e:
        if not is_remote(path):
            raise
        raise InputError(f"{path}: {why(e)}; is the bucket there, and may you use it?") from e


@contextmanager
def looked_at(path: Path) -> Iterator[None]:
    """As `reached`, of a local path too: one that may not be seen, or is too long to be one."""
    try:
        with reached(path):
            yield
    except OSError as e:
        raise InputError(f"{path}: cannot be read: {why(e)}") from e


def make(folder: Path) -> None:
    """The directory and its parents. In gs:// there are none, only names with slashes."""
    if not is_remote(folder):
        folder.mkdir(parents=True, exist_ok=True)


def require_writable(path: Path, name: str) -> None:
    """Makes the directory. Raises InputError, with `name` before it, where it can't be written."""
    try:
        make(path)
        probe = path / f".writable-{secrets.token_hex(4)}"  # each process its own
        try:
            probe.write_bytes(b"0" * 4096)
        finally:
            probe.unlink(missing_ok=True)
    except Exception as e:
        if not (isinstance(e, OSError) or is_remote(path)):
            raise
        told = "is a file" if isinstance(e, FileExistsError) else why(e)
        raise InputError(f"{name}={path}: {told}; give a directory that can be written") from e


@contextmanager
def new_entry(entry: Path) -> Iterator[Path]:
    """A directory to write in, on the local disk, which is renamed to `entry` at the end: an entry
    of a cache is there whole or not at all, and what fails leaves nothing. An OSError may also mean
    that another process has written the same entry first. `is_whole` tells of one that has lost
    files since."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".making-", dir=entry.parent, ignore_cleanup_errors=True
    ) as scratch:
        made = Path(scratch) / entry.name
        made.mkdir()  # the scratch directory is closed to other users, who may share the cache
        yield made
        sizes = {str(f.relative_to(made)): f.stat().st_size for f in files_below(made)}
        (made / _SIZES).write_text(json.dumps(sizes))
        os.rename(made, entry)


def is_whole(entry: Path, sizes: Mapping[str, int] | None = None) -> bool:
    """Whether an entry of a cache is there with all its files, those of `sizes` or else those that
    it was made with. One that is not, as where old files of a disk are deleted or a machine has
    crashed, is removed."""
    if not entry.is_dir():  # nor may it be removed, for another process may be making it
        return False
    try:
        if sizes is None:
            sizes = json.loads((entry / _SIZES).read_text())
        if all((entry / name).stat().st_size == size for name, size in sizes.items()):
            return True
    except (OSError, ValueError):
        pass
    shutil.rmtree(entry, ignore_errors=True)
    return False


def write_whole(path: Path, text: str) -> None:
    """A UTF-8 file, whole or not at all; its directory is made."""
    # JSON can carry a lone surrogate, which has no UTF-8.
    data = text.encode("utf-8", errors="replace")
    make(path.parent)
    if is_remote(path):
        with reached(path):
            path.write_bytes(data)
        return
    with replacing(path) as scratch:
        scratch.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside it to write, which takes its place at the end; another process's has another
    name."""
    scratch = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def files_below(folder: Path) -> list[Path]:
    """The files of a directory and of those in it, sorted."""
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        found += files_below(entry) if entry.is_dir() else [entry]
    return found


def copy_below(folder: Path, to: Path) -> None:
    """Copies the files of a directory, with those in it, to another; either may be gs://."""
    for file in files_below(folder):
        target = to / file.relative_to(folder).as_posix()
        make(target.parent)
        target.write_bytes(file.read_bytes())


def local(path: Path) -> Path:
    """The path itself, or for gs:// a copy on this machine's disk, kept until the process ends."""
    if not is_remote(path):
        return path
    copy = Path(_COPIES.enter_context(tempfile.TemporaryDirectory(prefix="bert_ft-"))) / path.name
    with reached(path):
        if path.is_dir():
            copy_below(path, copy)
        else:
            copy.write_bytes(path.read_bytes())
    return copy


@contextmanager
def written(folder: Path) -> Iterator[Path]:
    """A directory to write `folder`'s files in: itself, or for gs:// a local one, copied there at
    the end."""
    if not is_remote(folder):
        make(folder)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="bert_ft-") as scratch:
        yield Path(scratch)
        with reached(folder):
            copy_below(Path(scratch), folder)


class Twin:
    """A directory's stand-in on the local disk, for the files there that grow. `local` is the
    directory itself where that is local; else `send` brings what has changed to gs://."""

    def __init__(self, folder: Path, names: Sequence[str]):
        """`names`: the files and directories in it that grow; those in gs:// are fetched."""
        self.local = self._folder = folder
        self._names = names
        self._sent: dict[Path, tuple[int, int]] = {}
        self._scratch: tempfile.TemporaryDirectory | None = None
        if not is_remote(folder):
            return
        self._scratch = tempfile.TemporaryDirectory(prefix="bert_ft-")
        self.local = Path(self._scratch.name) / folder.name
        self.local.mkdir()
        with reached(folder):
            for name in names:
                if (folder / name).is_dir():
                    copy_below(folder / name, self.local / name)
                elif (folder / name).exists():
                    (self.local / name).write_bytes((folder / name).read_bytes())

    def send(self) -> None:
        if self._scratch is None:
            return
        for name in self._names:
            path = self.local / name
            for file in files_below(path) if path.is_dir() else [path] if path.exists() else []:
                now = (file.stat().st_size, file.stat().st_mtime_ns)
                if self._sent.get(file) != now:
                    with reached(self._folder):
                        target = self._folder / file.relative_to(self.local).as_posix()
                        target.write_bytes(file.read_bytes())
                    self._sent[file] = now

    def close(self) -> None:
        self.send()
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None
