"""What every source is read as: columns of equal length, and where each row came from."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Protocol

from bert_ft.data.columns import shown
from bert_ft.errors import InputError


def written(value: Any) -> str:
    """A value as a URI writes it: strings bare, true, false and null as in JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


@dataclass(frozen=True)
class Rows:
    """Rows as columns of equal length.

    `lines` is the first line (1-based) of each row in its file, None where that has no meaning.
    `origin` is the path or URI for messages; `paths` the file of each row where there are several.
    `skipped` has 'file:line: reason' for each row left out under bad_rows='skip'. With `word_lines`
    each word of a row has a line of its own, from the row's on. `numbers` has each row's place in
    its file or set, from 0; None is their order here.
    """

    columns: dict[str, list]
    lines: list[int] | None
    origin: str
    skipped: tuple[str, ...] = ()
    paths: list[str] | None = None
    word_lines: bool = False
    numbers: list[int] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def where(self, i: int) -> str:
        """How messages name row i: 'path:line', or 'uri row i'."""
        path = self.paths[i] if self.paths else self.origin
        if self.lines:
            return f"{path}:{self.lines[i]}"
        return f"{path} row {self.numbers[i] if self.numbers else i}"

    def where_word(self, i: int, k: int) -> str:
        """How messages name word k of row i: by its own line where it has one."""
        if self.word_lines and self.lines:
            return f"{self.paths[i] if self.paths else self.origin}:{self.lines[i] + k}"
        return f"{self.where(i)}: word {k + 1} of the row that begins there"

    def ids(self) -> list:
        """Each row's value in a column "id"; None where there is none, a blank, or NaN, by which a
        table says the same."""
        given = self.columns.get("id", [None] * len(self))
        return [i if i == i and str(i).strip() else None for i in given]

    def column(self, name: str) -> list:
        """The values of a column. InputError when there is none, or a row has no value (None)."""
        if name not in self.columns:
            near = get_close_matches(name, self.columns, 1, cutoff=0.6)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            head = name.partition(".")[0]
            if head != name and any(isinstance(v, dict) for v in self.columns.get(head, [])):
                hint = f"; {head!r} holds objects: write their values as columns of their own"
            there = shown(self.columns, most=40)
            if len(self.columns) == 1 and set(";\t|,") & set(there):
                hint = "; check delimiter="
            elif name in ("text", "label") and not near:  # as they are called by default
                hint = f"; set config.data.{name} to one of them"
            raise InputError(f"{self.origin}: no column {name!r}; there are: {there}{hint}")
        values = self.columns[name]
        for i, value in enumerate(values):
            if value is None:
                raise InputError(
                    f"{self.where(i)}: no value in column {name!r}; accepted: a value, or "
                    f"where={name}!=null in the URI, which leaves such rows out"
                )
        return values

    def take(self, indices: list[int]) -> "Rows":
        """The rows at `indices`, in that order."""
        return Rows(
            {name: [values[i] for i in indices] for name, values in self.columns.items()},
            [self.lines[i] for i in indices] if self.lines else None,
            self.origin,
            self.skipped,
            [self.paths[i] for i in indices] if self.paths else None,
            self.word_lines,
            [self.numbers[i] for i in indices] if self.numbers else indices,
        )


class Readable(Protocol):
    """A source of rows, or what chooses from one or adds to it."""

    @property
    def uri(self) -> str: ...
    def fingerprint(self) -> str: ...
    def read(self) -> Rows: ...


def labels_in(rows: Rows, column: str) -> list:
    """Each row's; InputError on what is none: a blank, as of a row that nobody has labelled yet,
    NaN, by which a table of numbers says the same, a list, an object."""
    values = rows.column(column)
    for i, value in enumerate(values):
        label = written(value)
        if isinstance(value, list | dict) or value != value or not label.strip():
            seen = f"is {value!r}" if label.strip() else "is blank"
            several = " (of several task.name='multilabel')" if isinstance(value, list) else ""
            raise InputError(
                f"{rows.where(i)}: column {column!r} {seen}; accepted: a label{several}, or such "
                f"rows left out by where={column}!={label} in the URI"
            )
    return values


def plain(label: str) -> str:
    """Without blanks around it, and 1 for 1.0, which pandas makes of it in a column with a gap."""
    return re.sub(r"^(-?\d+)\.0+$", r"\1", label.strip())


def require_apart(labels: Iterable[str], where: str, kind: str = "label") -> None:
    """Raises InputError on two labels that differ by blanks around them only, or as 1 and 1.0;
    `kind` is what they are called."""
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(plain(label), label)
        if other != label:
            how = "differ by blanks only" if other.strip() == label.strip() else "are one number"
            raise InputError(
                f"{where}: {other!r} and {label!r} {how}; accepted: one spelling of each {kind}"
            )
