"""Columns of other files: the options `join=` and `flags=` of a data URI.

`join=FILE;on=COLUMN` gives every row the columns of that row of FILE whose COLUMN has the same
value; `on=COLUMN:OTHER` where FILE calls it OTHER. The options of FILE's format follow, each after
a `;` (`format`, `columns`, `delimiter`, `encoding`, …; `%3B` stands for a `;` in a value).
Every row has exactly one partner: a key that FILE lacks, or has twice, is an error with its line.
Rows of FILE without a key are no row's.

`flags=NAME:COLUMN,COLUMN` makes of columns that are 0 or 1 one text, NAME: the names of those that
are 1, with ', ' between them, as in 'Action, Thriller'. The columns themselves stay.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import unquote

from bert_ft import paths
from bert_ft.data import formats
from bert_ft.data.columns import BadRows, shown
from bert_ft.data.rows import Rows, written
from bert_ft.errors import InputError


@dataclass(frozen=True)
class Join:
    """`left` is the rows' column, `right` the file's; `options` are those of the file's format."""

    path: Path
    left: str
    right: str
    options: dict[str, str]

    def digest(self) -> str:
        """SHA-256 (hex) of the file's bytes and of all else here that changes the rows."""
        kind, options = formats.choose(self.path, str(self.path), self.options)
        try:
            with self.path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
        what = [kind, sorted(options.items()), self.left, self.right, content]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def apply(self, rows: Rows, bad: BadRows) -> Rows:
        """The rows with the file's columns. Those whose key the file lacks are reported to `bad`,
        and left out where it goes on."""
        name = str(self.path)
        table = formats.read(self.path, name, self.options, bad)
        if self.right not in table.columns:
            raise InputError(
                f"{name}: no column {self.right!r} to join on; there are: "
                f"{shown(table.columns, most=40)}"
            )
        twice = [c for c in table.columns if c in rows.columns and c != self.right]
        if twice:
            raise InputError(
                f"{name}: column {twice[0]!r} is in {rows.origin} as well; give "
                "the columns of one of them other names with columns="
            )
        place = self._places(table.columns[self.right], table.lines, bad)
        found, kept = [], []
        for i, key in enumerate(written(v) for v in rows.column(self.left)):
            if key in place:
                found.append(place[key])
                kept.append(i)
            else:
                bad.report(
                    rows.where(i),
                    f"{self.left} {key!r} is not in column {self.right!r} of {name} "
                    f"({len(table):,} rows)",
                )
        if not kept:
            raise InputError(f"{rows.origin}: no {self.left} is in {name}")
        if len(kept) < len(rows):
            rows = rows.take(kept)
        more = {c: [v[i] for i in found] for c, v in table.columns.items() if c != self.right}
        return dataclasses.replace(rows, columns={**rows.columns, **more})

    def _places(self, keys: list, lines: list[int] | None, bad: BadRows) -> dict[str, int]:
        place: dict[str, int] = {}
        for i, value in enumerate(keys):
            key = written(value)
            if value is None:
                continue
            if key in place:
                at = f":{lines[i]}" if lines else ""
                first = f"line {lines[place[key]]}" if lines else f"row {place[key]}"
                reason = f"{self.right} {key!r} appears again (first in {first})"
                bad.report(f"{self.path}{at}", reason)
            else:
                place[key] = i
        return place


def parse_join(text: str, uri: str) -> Join:
    """The value of a `join=` as the URI has it, %-escapes included; the file must be there."""
    file, *parts = (unquote(part) for part in text.split(";"))
    options: dict[str, str] = {}
    accepted = sorted({"on", *formats.option_names()})
    for part in filter(None, parts):
        key, _, value = part.partition("=")
        if key not in accepted or key in options:
            near = get_close_matches(key, accepted, 1)
            hint = f"; did you mean {near[0]}=?" if near and key not in options else ""
            seen = "given twice" if key in options else "no option"
            raise InputError(
                f"{uri}: join={file}: {key!r} is {seen}; accepted: {', '.join(accepted)}{hint}"
            )
        options[key] = value
    left, _, right = options.pop("on", "").partition(":")
    if not left or not file:
        raise InputError(f"{uri}: join={text}; accepted: join=FILE;on=COLUMN, and FILE's format")
    path = paths.at(file)
    with paths.looked_at(path):
        found = path.is_file()
    if not found:
        there = [other.name for other in path.parent.glob("*")] if path.parent.is_dir() else []
        near = get_close_matches(path.name, there, 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise InputError(f"{uri}: join={file}: no such file{hint}")
    formats.choose(path, str(path), options)
    return Join(path, left, right or left, options)


def apply_flags(rows: Rows, text: str, uri: str) -> Rows:
    """The rows with the column that a `flags=` asks for."""
    name, _, listed = text.partition(":")
    columns = [c for c in listed.split(",") if c]
    if not name or not columns:
        raise InputError(f"{uri}: flags={text}; accepted: flags=NAME:COLUMN,COLUMN")
    if name in rows.columns:
        raise InputError(f"{uri}: flags={name}:…: there is a column {name!r} already")
    seen = [rows.column(c) for c in columns]
    texts = []
    for i, values in enumerate(zip(*seen, strict=True)):
        marks = [written(v) for v in values]
        for column, mark in zip(columns, marks, strict=True):
            if mark not in ("0", "1", "true", "false"):
                raise InputError(f"{rows.where(i)}: {column} is {mark!r}; accepted: 0 or 1")
        on = [c for c, mark in zip(columns, marks, strict=True) if mark in ("1", "true")]
        texts.append(", ".join(on))
    return dataclasses.replace(rows, columns={**rows.columns, name: texts})
