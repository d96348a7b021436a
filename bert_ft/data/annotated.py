"""Annotated text: CoNLL columns, parallel seq.in/seq.out/label, JSON spans, SQuAD."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_ft.data.columns import BadRows, Document, Options, Table, load
from bert_ft.errors import InputError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def read_conll(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """One token a line, a blank line after each sentence -> tokens, tags (lists of strings).

    Columns are split at tabs where a line has one, else at blanks. Options `token_column`
    (default 0) and `tag_column` (default -1, the last). `-DOCSTART-` lines are no tokens (Tjong Kim
    Sang and De Meulder, 2003). A line whose number of columns differs from the first line's is bad,
    and its whole sentence with it.
    """
    token_column = _integer(options, "token_column", 0, name)
    tag_column = _integer(options, "tag_column", -1, name)
    document = load(path, name, options, bad)
    width = 0
    columns: dict[str, list] = {"tokens": [], "tags": []}
    lines: list[int] = []
    for sentence in _sentences(document):
        tokens, tags = [], []
        for number, line in sentence:
            fields = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
            width = width or len(fields)
            if not all(-width <= column < width for column in (token_column, tag_column)):
                raise InputError(
                    f"{name}:{number}: {width} columns have no token_column={token_column} or no "
                    f"tag_column={tag_column}; accepted: {-width} to {width - 1}"
                )
            if width == 1:
                raise InputError(
                    f"{name}:{number}: {line[:40]!r} is one column; expected: a token and its tag"
                )
            reason = document.undecodable.get(number)
            if reason is None and (len(fields) != width or not all(fields)):
                reason = f"{line[:60]!r} has {sum(map(bool, fields))} columns, not {width}"
            if reason:
                if bad.policy == "skip":
                    reason += f"; the sentence of lines {sentence[0][0]}-{sentence[-1][0]} is out"
                bad.report(f"{name}:{number}", reason)
                break
            tokens.append(fields[token_column])
            tags.append(fields[tag_column])
        else:
            columns["tokens"].append(tokens)
            columns["tags"].append(tags)
            lines.append(sentence[0][0])
    return Table(columns, lines, word_lines=True)


def _sentences(document: Document) -> Iterator[list[tuple[int, str]]]:
    sentence: list[tuple[int, str]] = []
    for number, line in enumerate(document.lines, start=1):
        blank = not line.strip(" \t\r") and number not in document.undecodable
        if blank or line.startswith("-DOCSTART-"):
            if sentence:
                yield sentence
            sentence = []
        else:
            sentence.append((number, line.removesuffix("\r")))
    if sentence:
        yield sentence


def read_parallel(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """A directory with seq.in, seq.out and label, line for line -> tokens, tags, label.

    The layout of Goo et al. (2018), Slot-Gated Modeling. Rows are named by their line, the same in
    each of the three files.
    """
    files = ("seq.in", "seq.out", "label")
    missing = [file for file in files if not (path / file).is_file()]
    if missing:
        raise InputError(f"{name}: no {', '.join(missing)}; expected: {', '.join(files)}")
    documents = [load(path / file, f"{name}/{file}", options, bad) for file in files]
    counts = [len(document.lines) for document in documents]
    if len(set(counts)) > 1:
        seen = ", ".join(f"{file} {count}" for file, count in zip(files, counts, strict=True))
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
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            reason = f"not JSON: {said}{at}; expected one object a line"
            if number == 1 and line.strip() in ("{", "["):
                reason += " (for a SQuAD file add format=squad)"
            bad.report(f"{document.name}:{number}", reason)
            continue
        if not isinstance(value, dict):
            seen = f"{type(value).__name__} {line.strip()[:40]!r}"
            bad.report(f"{document.name}:{number}", f"a JSON {seen}, not an object {{...}}")
        elif _is_squad(value):
            raise InputError(f"{document.name}:{number}: a SQuAD file; add ?format=squad")
        # json.loads lets "\\ud800" through, which no tokenizer and no file can hold.
        elif "\\ud" in line.lower() and _has_lone_surrogate(value):
            bad.report(f"{document.name}:{number}", "a lone surrogate (\\ud800 to \\udfff)")
        else:
            yield number, value


def _is_squad(value: Mapping[str, Any]) -> bool:
    articles = value.get("data")
    first = articles[0] if isinstance(articles, list) and articles else None
    return isinstance(first, dict) and "paragraphs" in first


def _has_lone_surrogate(value: Any) -> bool:
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
            if "spans" in row:
                spans = [
                    (_whole(s["start"]), _whole(s["end"]), str(s["label"])) for s in row["spans"]
                ]
                rest = {key: value for key, value in row.items() if key != "spans"}
            else:
                spans = _cluener_spans(text, row["label"])
                rest = {key: value for key, value in row.items() if key != "label"}
            rows.append({**rest, "spans": _checked_spans(text, spans)})
        except KeyError as error:
            seen = f'no {error}; expected "text" and "spans" with start, end, label; or CLUENER\'s'
            bad.report(f"{name}:{number}", f"{seen} label")
            continue
        except (ValueError, TypeError, AttributeError) as error:
            bad.report(f"{name}:{number}", str(error))
            continue
        lines.append(number)
    return Table(as_columns(rows), lines)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"a span begins or ends at {value!r}, which is no whole number")
    return value


def _cluener_spans(text: str, label: dict[str, dict[str, list]]) -> list[tuple[int, int, str]]:
    spans = []
    for kind, mentions in label.items():
        for mention, places in mentions.items():
            for first, last in places:
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


def read_squad(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """SQuAD 1.1 or 2.0 JSON -> id, title, question, context, answers, is_impossible.

    `answers` is a list of {"text", "start"}, start in characters of the context (Rajpurkar et al.,
    2016, 2018). Bad: an answer that is not in the context at its start, and a lone surrogate. Rows
    have no lines; the id of a question, and the line where that stands, name it.
    """
    text = "\n".join(load(path, name, options, BadRows()).lines)
    escaped = "\\ud" in text.lower()
    try:
        data = json.loads(text)["data"]
    except json.JSONDecodeError as error:
        raise InputError(f"{name}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON that can be read: {error}") from None
    except (KeyError, TypeError):
        raise InputError(f'{name}: no "data" list; expected the JSON layout of SQuAD') from None
    rows = []
    question_id: Any = None
    try:
        for article in data:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for question in paragraph["qas"]:
                    question_id = question["id"]
                    answers = [
                        {"text": answer["text"], "start": answer["answer_start"]}
                        for answer in question.get("answers", [])
                    ]
                    row = {
                        "id": question_id,
                        "title": article.get("title", ""),
                        "question": question["question"],
                        "context": context,
                        "answers": answers,
                        "is_impossible": bool(question.get("is_impossible", False)),
                    }
                    faults = [_not_there(context, a["text"], a["start"]) for a in answers]
                    if escaped and _has_lone_surrogate(row):
                        faults = ["a lone surrogate (\\ud800 to \\udfff)"]
                    if any(faults):
                        at = f"{name}{_line_of(question_id, text)}: question {question_id!r}"
                        bad.report(at, next(filter(None, faults)))
                        continue
                    rows.append(row)
    except (KeyError, TypeError) as error:
        at, after = name, ""
        if question_id is not None:
            at += _line_of(question_id, text)
            after = f" in or after question {question_id!r}"
        raise InputError(f"{at}: not the JSON layout of SQuAD{after}: {error!r}") from None
    return Table(as_columns(rows), None)


def _not_there(context: str, text: str, start: int) -> str:
    """Why an answer is none; '' where it stands at its start."""
    if start >= 0 and text and context.startswith(text, start):
        return ""
    there = context[max(start, 0) : max(start, 0) + len(text)]
    return f"answer {text[:60]!r} is not at its start {start}: there is {there[:60]!r}"


def _line_of(question_id: Any, text: str) -> str:
    """':LINE' of an id in the text of a JSON file; '' where it is written in no usual way."""
    forms = {re.escape(json.dumps(question_id, ensure_ascii=short)) for short in (True, False)}
    found = re.search(rf'"id"\s*:\s*({"|".join(sorted(forms))})', text)
    return f":{text.count(chr(10), 0, found.start(1)) + 1}" if found else ""


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list]:
    """Rows -> columns, in order of first appearance; None where a row lacks a key."""
    names = dict.fromkeys(key for row in rows for key in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _integer(options: Options, key: str, default: int, name: str) -> int:
    try:
        return int(options.get(key, default))
    except ValueError:
        raise InputError(f"{name}: {key}={options[key]} is not a whole number") from None
