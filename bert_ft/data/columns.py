"""Text files of lines and columns: CSV, TSV and `text@label`.

Here is also what every format shares: `Table`, the rule for bad rows, decoding with line numbers.
Lines end at `\\n` (a `\\r` before it is dropped), as editors and `grep -n` count them.
"""

import codecs
import csv
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bert_ft.errors import InputError

Options = dict[str, str]
MARK = "\ufeff"  # a byte-order mark, decoded


@dataclass(frozen=True)
class Table:
    """What one file holds: equal-length columns, and the first line (1-based) of each row, with
    `word_lines` that of its first word: the others follow line by line."""

    columns: dict[str, list]
    lines: list[int] | None
    word_lines: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))


@dataclass
class BadRows:
    """Decides on a row that cannot be read: `stop` raises, `skip` lists it in `skipped`."""

    policy: str = "stop"
    skipped: list[str] = field(default_factory=list)

    def report(self, where: str, reason: str) -> None:
        """Raises InputError `where: reason`, or under `skip` notes it; the caller then goes on."""
        if self.policy == "stop":
            hint = "mend it, or leave such rows out with data.bad_rows='skip'"
            raise InputError(f"{where}: {reason}; {hint}")
        self.skipped.append(f"{where}: {reason}")


@dataclass(frozen=True)
class Document:
    """A decoded file. `undecodable` maps a line to what is wrong with its bytes (under `skip`);
    U+FFFD stands for them in it."""

    name: str
    lines: list[str]
    undecodable: dict[int, str]

    def good_lines(self, bad: BadRows) -> Iterator[tuple[int, str]]:
        """(1-based number, text) of the lines that decoded; the others are reported to `bad`."""
        for number, line in enumerate(self.lines, start=1):
            if number in self.undecodable:
                bad.report(f"{self.name}:{number}", self.undecodable[number])
            else:
                yield number, line.removesuffix("\r")


def load(path: Path, name: str, options: Options, bad: BadRows) -> Document:
    """Reads and decodes a file (option `encoding`, default UTF-8 with or without byte-order mark).

    InputError for an empty file, an encoding that is none of text and, unless rows may be skipped,
    for bytes that do not decode, with their line.
    """
    encoding = options.get("encoding", "utf-8-sig")
    accepted = "accepted: utf-8 (default), latin-1, gb18030 or any other of Python's for text"
    try:
        codec = codecs.lookup(encoding).name
    except LookupError:
        raise InputError(f"{name}: encoding={encoding} is unknown; {accepted}") from None
    data = path.read_bytes()
    if not data.strip():
        raise InputError(f"{name}: the file is empty")
    if data.startswith(b"\x1f\x8b"):
        raise InputError(f"{name}: it is compressed by gzip; accepted: the file itself, unpacked")
    try:
        return _decoded(data, name, encoding, codec, bad)
    except (LookupError, UnicodeError):  # base64, hex, … are codecs, but none of text
        raise InputError(f"{name}: encoding={encoding} makes no text of it; {accepted}") from None


def _decoded(data: bytes, name: str, encoding: str, codec: str, bad: BadRows) -> Document:
    codec = codec.removesuffix("-sig")  # a mark is left out below, whatever the encoding
    try:
        return Document(name, _split(data.decode(codec).removeprefix(MARK)), {})
    except UnicodeDecodeError as error:
        line = error.object[: error.start].decode(codec, "ignore").count("\n") + 1
        reason = _undecodable(error, encoding)
        # In UTF-16 and UTF-32 a line cannot be cut out before it is decoded.
        if bad.policy == "stop" or codec.startswith(("utf-16", "utf-32")):
            raise InputError(f"{name}:{line}: {reason}") from None
    lines, undecodable = [], {}
    for number, raw in enumerate(_split_bytes(data), start=1):
        try:
            lines.append(raw.decode(codec))
        except UnicodeDecodeError as error:
            lines.append(raw.decode(codec, errors="replace"))  # its quotes may close other lines'
            undecodable[number] = _undecodable(error, encoding)
    lines[0] = lines[0].removeprefix(MARK)
    return Document(name, lines, undecodable)


def _undecodable(error: UnicodeDecodeError, encoding: str) -> str:
    marked = error.object.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if marked and not codecs.lookup(encoding).name.startswith("utf-16"):
        return f"it is UTF-16, not {encoding.removesuffix('-sig').upper()}; add encoding=utf-16"
    seen = error.object[error.start : error.start + 1].hex()
    hint = "; if the file is Latin-1, add encoding=latin-1" if "utf" in encoding else ""
    return f"byte 0x{seen} is not valid {encoding.removesuffix('-sig').upper()}{hint}"


def _split(text: str) -> list[str]:
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def _split_bytes(data: bytes) -> list[bytes]:
    lines = data.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def read_delimited(
    path: Path, name: str, options: Options, bad: BadRows, joins: bool = True
) -> Table:
    """CSV and TSV; every value a string, exactly as in the file.

    Options: `delimiter` (one character), `quoting` (`standard`: RFC 4180, strictly; `none`: a quote
    is a character like any other, as in GLUE's TSVs), `header` (yes|no), `columns` (comma-separated
    names; they imply header=no, and with header=yes replace the header's). A column without a name
    is called column_0, column_1, ... by its position. Lines with nothing in them are no rows.
    Unless quotes may have `joins`, a record of lines that seem to be rows themselves is bad.
    """
    document = load(path, name, options, bad)
    delimiter = options["delimiter"]
    named = options["columns"].split(",") if options.get("columns") else None
    if options.get("quoting", "standard") == "standard":
        records = _quoted_records(document, delimiter, bad, joins, len(named or ()))
    else:
        records = ((n, n, line.split(delimiter)) for n, line in document.good_lines(bad) if line)
    header = None
    if options.get("header", "no" if named else "yes") == "yes":
        before = len(bad.skipped)
        _, _, header = next(records, (0, 0, None))
        if len(bad.skipped) > before:
            raise InputError(f"{bad.skipped[before]}; it is the header, which can't be left out")
        if header is None:
            raise InputError(f"{name}: no header could be read")
    names = named or header
    rows: list[list[str]] = []
    lines: list[int] = []
    for first, last, fields in records:
        if names is None:
            names = [""] * len(fields)
        if len(fields) != len(names):
            reason = f"{len(fields)} columns where {len(names)} are expected ({shown(names)})"
            if len(fields) > 1 or '"' in fields[0]:
                reason += f"; check delimiter= and quoting={_other_quoting(options)}"
            bad.report(_place(name, first, last), reason)
            continue
        rows.append(fields)
        lines.append(first)
    if header and named and len(header) != len(named):
        raise InputError(f"{name}:1: columns= names {len(named)}, but the header {len(header)}")
    if not rows:
        only = "a header and no rows" if header else "no rows"
        raise InputError(f"{name}: the file has {only}{_skips(bad)}")
    names = [column or f"column_{i}" for i, column in enumerate(names or [])]
    if len(set(names)) != len(names):
        twice = next(column for column in names if names.count(column) > 1)
        raise InputError(f"{name}:1: column {twice!r} appears twice; name them with columns=")
    return Table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)), lines)


def _quoted_records(
    document: Document, delimiter: str, bad: BadRows, joins: bool, width: int
) -> Iterator[tuple[int, int, list[str]]]:
    """(first line, last line, fields) of each RFC 4180 record. Of a bad one over several lines the
    first is reported and the others are read, as they may be rows. `width`: columns, 0 for those of
    the first record."""
    begin = 0
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        while begin < len(document.lines):
            source = (document.lines[i] + "\n" for i in range(begin, len(document.lines)))
            reader = csv.reader(source, delimiter=delimiter, strict=True)
            offset, begin = begin, len(document.lines)
            while True:
                first = offset + reader.line_num + 1
                try:
                    fields = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    last = offset + reader.line_num
                    if "unexpected end of data" in str(error):
                        rest = document.lines[first - 1 :]
                        opened = first + _lines_to_open_quote(rest, delimiter)
                        bad.report(
                            f"{document.name}:{opened}",
                            "the quote that opens on this line never closes; where quotes are "
                            "plain characters, add quoting=none",
                        )
                        begin = opened
                        break
                    reason = _csv_reason(error)
                    if last == first:
                        bad.report(f"{document.name}:{first}", reason)
                        continue
                    reason = f"the row goes on to line {last}, where {reason}"
                    bad.report(f"{document.name}:{first}", reason)
                    begin = first
                    break
                last = offset + reader.line_num
                width = width or len(fields)
                lines = document.lines[first - 1 : last]
                if not joins and (whole := _rows_among(lines, delimiter, width)):
                    bad.report(
                        f"{document.name}:{first}",
                        f"quotes join lines {first} to {last}, {whole} of which have all {width} "
                        "columns, to one row; add quoting=none where quotes are plain characters, "
                        "quoting=standard where they are not",
                    )
                    begin = first
                    break
                spoilt = [n for n in range(first, last + 1) if n in document.undecodable]
                if spoilt:
                    bad.report(f"{document.name}:{spoilt[0]}", document.undecodable[spoilt[0]])
                elif fields:
                    yield first, last, fields
    finally:
        csv.field_size_limit(limit)


def _rows_among(lines: list[str], delimiter: str, width: int) -> int:
    """How many of a record's lines have all columns, where it seems to be several rows: its first
    and its last have, or most. Lines of a value may hold a tab, or be indented by them."""
    full = [
        line.count(delimiter) == width - 1 and not line.startswith(delimiter)
        for line in lines
        if line.strip("\r ")
    ]
    several = len(full) > 1 and (full[0] and full[-1] or 2 * sum(full) > len(full))
    return sum(full) if several else 0


def read_at(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """`text@label` a line (Financial PhraseBank), split at the last `@` -> text, label."""
    texts, labels, lines = [], [], []
    for number, line in load(path, name, options, bad).good_lines(bad):
        if not line:
            continue
        text, at, label = line.rpartition("@")
        if not at or not label.strip():
            bad.report(f"{name}:{number}", f"{line[-40:]!r} does not end in @label")
            continue
        texts.append(text)
        labels.append(label.strip())
        lines.append(number)
    return Table({"text": texts, "label": labels}, lines)


def _csv_reason(error: csv.Error) -> str:
    if "expected after" in str(error):
        return (
            "text follows a closing quote (a quote inside a quoted field is written twice); where "
            "quotes are plain characters, add quoting=none"
        )
    if "new-line character" in str(error):
        return "a carriage return stands inside a field; quote the field, or end lines with \\n"
    return str(error)


def _lines_to_open_quote(lines: list[str], delimiter: str) -> int:
    """How many line ends come before the quote that never closes."""
    text = "\n".join(lines)
    field_end = re.compile(f"[{re.escape(delimiter)}\n]")
    position = 0
    while True:
        if text.startswith('"', position):
            opened = position
            position = text.find('"', position + 1)
            while text.startswith('""', position) and position >= 0:
                position = text.find('"', position + 2)
            if position < 0:
                return text.count("\n", 0, opened)
        end = field_end.search(text, position)
        if end is None:
            return 0
        position = end.end()


def _other_quoting(options: Options) -> str:
    return "none" if options.get("quoting", "standard") == "standard" else "standard"


def _place(name: str, first: int, last: int) -> str:
    return f"{name}:{first}" if last <= first else f"{name}:{first}-{last}"


def shown(values: Iterable[str], most: int = 8, width: int = 40) -> str:
    """Some of the values for a message, short and on one line."""
    values = list(values)
    cut = [value if len(value) <= width else value[:width] + "..." for value in values[:most]]
    return ", ".join(cut + ["..."] * (len(values) > most)).replace("\n", "\\n")


def _skips(bad: BadRows) -> str:
    return f" ({len(bad.skipped)} rows skipped, the first: {bad.skipped[0]})" if bad.skipped else ""
