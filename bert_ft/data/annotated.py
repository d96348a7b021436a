"""Annotated text: CoNLL columns, parallel seq.in/seq.out/label, JSON spans."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import chain, dropwhile
from pathlib import Path
from typing import Any

from bert_ft.data.columns import BadRows, Document, Options, Table, load
from bert_ft.errors import InputError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")

PARALLEL = ("seq.in", "seq.out", "label")  # the files of a directory


def read_conll(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """One token a line, a blank line after each sentence -> tokens, tags (lists of strings).

    Columns are split at tabs where a line has one, else at blanks. Options `token_column`
    (default 0) and `tag_column` (default -1, the last). A file of one column has no tags, which
    will do to predict. `-DOCSTART-` lines are no tokens (Tjong Kim Sang and De Meulder, 2003), nor
    are the lines before a sentence that begin with `# ` (CoNLL-U), unless they have a token's
    columns and a tag that tokens have too. A line whose number of columns differs from the
    first one's is bad, and its whole sentence with it.
    """
    token_column = _integer(options, "token_column", 0, name)
    tag_column = _integer(options, "tag_column", -1, name)
    document = load(path, name, options, bad)
    sentences = list(_sentences(document))
    good = [[line for line in s if line[0] not in document.undecodable] for s in sentences]
    begun = [dropwhile(lambda line: line[1].startswith("# "), sentence) for sentence in good]
    sure = [*chain(*begun)] or [*chain(*good)]  # lines of tokens
    number, first, fields = sure[0] if sure else (0, "", [""])
    width = len(fields)
    if not all(-width <= column < width for column in (token_column, tag_column)):
        raise InputError(
            f"{name}:{number}: {width} columns have no token_column={token_column} or no "
            f"tag_column={tag_column}; accepted: {-width} to {width - 1}"
        )
    if width == 1 and "tag_column" in options:
        raise InputError(
            f"{name}:{number}: {first[:40]!r} is one column; expected: a token and its tag, or no "
            "tag_column= where tags are not needed"
        )
    known = {fields[tag_column] for _, _, fields in sure if len(fields) == width}
    columns: dict[str, list] = {"tokens": [], "tags": []}
    lines: list[int] = []
    for sentence in sentences:
        tokens: list[str] = []
        tags: list[str] = []
        for number, line, fields in sentence:
            fits = len(fields) == width
            if not tokens and line.startswith("# ") and not (fits and fields[tag_column] in known):
                continue
            reason = document.undecodable.get(number)
            if reason is None and not (fits and all(fields)):
                reason = f"{line[:60]!r} has {sum(map(bool, fields))} columns, not {width}"
            if reason:
                if bad.policy == "skip":
                    reason += f"; the sentence of lines {sentence[0][0]}-{sentence[-1][0]} is out"
                bad.report(f"{name}:{number}", reason)
                break
            tokens.append(fields[token_column])
            tags.append(fields[tag_column])
        else:
            if tokens:
                columns["tokens"].append(tokens)
                columns["tags"].append(tags)
                lines.append(sentence[-1][0] - len(tokens) + 1)
    if width == 1:
        del columns["tags"]
    return Table(columns, lines, word_lines=True)


def _sentences(document: Document) -> Iterator[list[tuple[int, str, list[str]]]]:
    """(number, line, its columns) of the lines of each sentence."""
    sentence: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(document.lines, start=1):
        blank = not line.strip(" \t\r") and number not in document.undecodable
        if blank or line.startswith("-DOCSTART-"):
            if sentence:
                yield sentence
            sentence = []
        else:
            line = line.removesuffix("\r")
            fields = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            sentence.append((number, line, fields))
    if sentence:
        yield sentence


def require_parallel(path: Path, name: str) -> None:
    """Raises InputError on a directory that is not one for `read_parallel`."""
    missing = [file for file in PARALLEL if not (path / file).is_file()]
    if missing:
        raise InputError(
            f"{name}: a directory without {', '.join(missing)}; accepted: one with "
            f"{', '.join(PARALLEL)}, a file, or a glob of files, as DIR/*.csv"
        )


def read_parallel(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """A directory with seq.in, seq.out and label, line for line -> tokens, tags, label.

    The layout of Goo et al. (2018), Slot-Gated Modeling. Rows are named by their line, the same in
    each of the three files.
    """
    documents = [load(path / file, f"{name}/{file}", options, bad) for file in PARALLEL]
    counts = [len(document.lines) for document in documents]
    if len(set(counts)) > 1:
        seen = ", ".join(f"{file} {count}" for file, count in zip(PARALLEL, counts, strict=True))
        raise InputError(f"{name}: the files differ in their number of lines: {seen}")
    columns: dict[str, list] = {"tokens": [], "tags": [], "label": []}
    lines: list[int] = []
    for number, (words, tags, label) in enumerate(
        zip(*(document.lines for document in documents), strict=True), start=1
    ):
        row = words.split(), tags.split(), label.strip()
        broken = [d for d in documents if number in d.undecodable]
        if broken:
            bad.report(f"{broken[0].name}:{number}", broken[0].undecodable[number])
        elif len(row[0]) != len(row[1]):
            seen = f"{len(row[1])} tags for the {len(row[0])} tokens of seq.in"
            bad.report(f"{name}/seq.out:{number}", seen)
        elif not row[2]:
            bad.report(f"{name}/label:{number}", "the label is blank")
        else:
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
            lines.append(number)
    return Table(columns, lines)


def json_objects(document: Document, bad: BadRows) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of each line of a JSONL file; blank lines are none."""
    for number, line in document.good_lines(bad):
        if not line.strip():
            continue
        if number == 1 and line.lstrip()[:1] == "[":
            raise InputError(
                f"{document.name}:1: a JSON array; accepted: one object a line, as pandas writes "
                "them with to_json(orient='records', lines=True)"
            )
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            reason = f"not JSON: {said}{at}; expected one object a line"
            if number == 1 and line.strip() == "{":
                reason += " (for a SQuAD file add format=squad)"
            bad.report(f"{document.name}:{number}", reason)
            continue
        if not isinstance(value, dict):
            seen = f"{type(value).__name__} {line.strip()[:40]!r}"
            bad.report(f"{document.name}:{number}", f"a JSON {seen}, not an object {{...}}")
        elif _is_squad(value):
            raise InputError(f"{document.name}:{number}: a SQuAD file; add ?format=squad")
        elif "\\ud" in line.lower() and has_lone_surrogate(value):
            bad.report(f"{document.name}:{number}", "a lone surrogate (\\ud800 to \\udfff)")
        else:
            yield number, value


def _is_squad(value: Mapping[str, Any]) -> bool:
    articles = value.get("data")
    first = articles[0] if isinstance(articles, list) and articles else None
    return isinstance(first, dict) and "paragraphs" in first


def has_lone_surrogate(value: Any) -> bool:
    """Whether a value of JSON holds half a character, which no tokenizer and no file can."""
    return bool(_LONE_SURROGATE.search(json.dumps(value, ensure_ascii=False)))


def read_spans(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """JSONL with character spans -> text, spans: sorted [(start, end, type)], end exclusive.

    Two layouts: CLUENER's {"text", "label": {type: {mention: [[first, last]]}}} with an inclusive
    last character (Xu et al., 2020), and {"text", "spans": [{"start", "end", "label"}]} with an
    exclusive end. Other keys become columns. Bad: spans that are empty, out of the text,
    overlapping, or (CLUENER) that do not cover their mention.
    """
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, row in json_objects(load(path, name, options, bad), bad):
        text = row.get("text")
        try:
            if not isinstance(text, str):
                raise ValueError('no "text" string')
            kept = "spans" if "spans" in row else "label"
            if kept not in row:
                raise ValueError('no "spans" (a list of {"start", "end", "label"}) nor "label"')
            found = _listed_spans(row[kept]) if kept == "spans" else _cluener_spans(text, row[kept])
            rest = {key: value for key, value in row.items() if key != kept}
            rows.append({**rest, "spans": _checked_spans(text, found)})
        except ValueError as error:
            bad.report(f"{name}:{number}", str(error))
            continue
        lines.append(number)
    return Table(as_columns(rows), lines)


def _listed_spans(spans: Any) -> list[tuple[int, int, str]]:
    found = []
    for span in spans if isinstance(spans, list) else [spans]:
        if not isinstance(span, dict) or not {"start", "end", "label"} <= set(span):
            accepted = '{"start": 0, "end": 4, "label": "TYPE"}'
            raise ValueError(f'{str(span)[:60]!r} in "spans"; accepted: a list of {accepted}')
        kind = span["label"]
        if type(kind) not in (str, int) or kind == "":
            raise ValueError(f"the label of a span is {kind!r}; accepted: a type, as a string")
        found.append((_whole(span["start"]), _whole(span["end"]), str(kind)))
    return found


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"a span begins or ends at {value!r}, which is no whole number")
    return value


def _cluener_spans(text: str, label: Any) -> list[tuple[int, int, str]]:
    try:
        found = [
            (kind, mention, first, last)
            for kind, mentions in label.items()
            for mention, places in mentions.items()
            for first, last in places
        ]
    except (AttributeError, TypeError, ValueError):
        accepted = '{"TYPE": {"mention": [[first, last]]}}'
        raise ValueError(f'"label" is {str(label)[:60]!r}; accepted: {accepted}') from None
    spans = []
    for kind, mention, first, last in found:
        if text[_whole(first) : _whole(last) + 1] != mention:
            seen = text[max(first, 0) : last + 1]
            raise ValueError(f"[{first}, {last}] is {seen!r}, not {mention!r} ({kind})")
        spans.append((first, last + 1, kind))
    return spans


def _checked_spans(text: str, spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    spans = sorted(spans)
    for start, end, kind in spans:
        if not 0 <= start < end <= len(text):
            raise ValueError(f"span {start}-{end} ({kind}) is not in 0-{len(text)}, its text")
    for (start, end, kind), (start2, end2, kind2) in zip(spans, spans[1:], strict=False):
        if start2 < end:
            raise ValueError(f"spans {start}-{end} ({kind}) and {start2}-{end2} ({kind2}) overlap")
    return spans


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list]:
    """Rows -> columns, in order of first appearance; None where a row lacks a key."""
    names = dict.fromkeys(key for row in rows for key in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _integer(options: Options, key: str, default: int, name: str) -> int:
    try:
        return int(options.get(key, default))
    except ValueError:
        raise InputError(f"{name}: {key}={options[key]} is not a whole number") from None
