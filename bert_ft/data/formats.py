"""A file -> a table, by its format. A new format is one reader and one line in `FORMATS`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from bert_ft.data.annotated import (
    as_columns,
    json_objects,
    read_conll,
    read_parallel,
    read_spans,
    require_parallel,
)
from bert_ft.data.columns import BadRows, Options, Table, load, read_at, read_delimited
from bert_ft.data.squad import read_squad
from bert_ft.errors import InputError, first_line

Reader = Callable[[Path, str, Options, BadRows], Table]


@dataclass(frozen=True)
class Format:
    """A reader, the options it knows, their defaults, and the suffixes that choose it."""

    read: Reader
    options: tuple[str, ...] = ("encoding",)
    defaults: Options = field(default_factory=dict)
    suffixes: tuple[str, ...] = ()


def read_jsonl(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """One JSON object a line; values keep their JSON types.

    The columns are all keys of all rows; a row without one of them has None there.
    """
    rows, lines = [], []
    for number, row in json_objects(load(path, name, options, bad), bad):
        rows.append(row)
        lines.append(number)
    return Table(as_columns(rows), lines)


def read_tsv(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """`read_delimited`, to which a quote opens a value that may go over line ends. Unless `quoting`
    is given such a row is bad where its lines seem to be rows: most TSVs know no quoting, and a
    quote that stands at a value's beginning would join them."""
    return read_delimited(path, name, options, bad, joins="quoting" in options)


def read_parquet(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """A Parquet file through pyarrow; values become Python's."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise InputError(
            f"{name}: reading Parquet needs pyarrow: pip install 'bert_ft[parquet]'"
        ) from None
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{name}: the file is empty")
            names = pq.ParquetFile(file).schema_arrow.names
            for column in names:
                if names.count(column) > 1:
                    raise InputError(f"{name}: column {column!r} appears twice")
            # A thread of pyarrow's that still ends when Python does has aborted the process.
            table = pq.read_table(file, use_threads=False, pre_buffer=False)
    except pa.ArrowException as error:
        raise InputError(f"{name}: not Parquet: {first_line(error)}") from None
    columns = {}
    for column in names:
        try:
            columns[column] = table[column].to_pylist()
        except (ValueError, OverflowError, pa.ArrowException) as error:
            raise InputError(f"{name}: column {column!r}: {first_line(error)}") from None
    return Table(columns, None)


_DELIMITED = ("encoding", "header", "columns", "quoting", "delimiter")

FORMATS: dict[str, Format] = {
    "jsonl": Format(read_jsonl, suffixes=(".jsonl", ".json", ".ndjson")),
    "csv": Format(read_delimited, _DELIMITED, {"delimiter": ","}, (".csv",)),
    "tsv": Format(read_tsv, _DELIMITED, {"delimiter": "\t"}, (".tsv",)),
    "parquet": Format(read_parquet, options=(), suffixes=(".parquet",)),
    "conll": Format(
        read_conll, ("encoding", "token_column", "tag_column"), suffixes=(".conll", ".bio", ".iob")
    ),
    "squad": Format(read_squad),
    "spans": Format(read_spans),
    "parallel": Format(read_parallel),
    "at": Format(read_at),
}

_CHOICES = {"header": ("yes", "no"), "quoting": ("standard", "none")}
_DELIMITER_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "space": " "}


def option_names() -> set[str]:
    """Every option that some format knows."""
    return {"format"}.union(*(entry.options for entry in FORMATS.values()))


def choose(path: Path, name: str, options: Options) -> tuple[str, Options]:
    """The format of a file (option `format`, else its suffix) and its checked options."""
    given = options.get("format")
    if given is None:
        given = "parallel" if path.is_dir() else _by_suffix(path, name)
    if path.is_dir():
        require_parallel(path, name)
    if given not in FORMATS:
        near = get_close_matches(given, FORMATS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{name}: format={given} is unknown; accepted: {', '.join(FORMATS)}{hint}")
    entry = FORMATS[given]
    chosen = {key: value for key, value in options.items() if key != "format"}
    for key, value in chosen.items():
        if key not in entry.options:
            knows = ", ".join(entry.options) or "none"
            raise InputError(f"{name}: {key}= is not for format {given}, which knows: {knows}")
        if key in _CHOICES and value not in _CHOICES[key]:
            raise InputError(f"{name}: {key}={value}; accepted: {' or '.join(_CHOICES[key])}")
    chosen = {**entry.defaults, **chosen}
    if "delimiter" in chosen:
        delimiter = _DELIMITER_NAMES.get(chosen["delimiter"], chosen["delimiter"])
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise InputError(f"{name}: delimiter={delimiter!r}; accepted: one character, or tab")
        chosen["delimiter"] = delimiter
    return given, chosen


def _by_suffix(path: Path, name: str) -> str:
    for kind, entry in FORMATS.items():
        if path.suffix.lower() in entry.suffixes:
            return kind
    raise InputError(
        f"{name}: no format goes with the suffix {path.suffix!r}; add ?format= and one of "
        f"{', '.join(FORMATS)}"
    )


def read(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """Reads one file (or directory, for `parallel`). `name` stands for it in messages.

    InputError for a missing, empty or unreadable file, for one without rows, and, unless
    `bad.policy` is `skip`, for the first row that cannot be read.
    """
    if not path.exists():
        raise InputError(f"{name}: no such file")
    kind, chosen = choose(path, name, options)
    if path.is_dir() != (kind == "parallel"):
        seen = "a directory" if path.is_dir() else "a file"
        raise InputError(f"{name}: {seen}, which format {kind} does not read")
    before = len(bad.skipped)
    try:
        table = FORMATS[kind].read(path, name, chosen, bad)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror or error}") from None
    if not len(table):
        skipped = bad.skipped[before:]
        why = f"; {len(skipped)} were skipped, the first: {skipped[0]}" if skipped else ""
        raise InputError(f"{name}: the file has no rows{why}")
    return table
