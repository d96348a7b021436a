"""SQuAD's JSON (Rajpurkar et al., 2016, 2018) -> a row a question."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_ft.data.annotated import as_columns, has_lone_surrogate
from bert_ft.data.columns import BadRows, Options, Table, load
from bert_ft.errors import InputError

_ID = re.compile(r'"id"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')


def read_squad(path: Path, name: str, options: Options, bad: BadRows) -> Table:
    """SQuAD 1.1 or 2.0 JSON -> id, title, question, context, answers, is_impossible.

    `answers` is a list of {"text", "start"}, start in characters of the context, empty where there
    is none, and None where it is not told; no column where none is told. The line of a row is that
    of its id. Bad: a question without id, text or context, an answer that is not in the context at
    its start, or beside is_impossible, a lone surrogate, and what is not of the layout, whose line
    is that of the id before it.
    """
    text = "\n".join(load(path, name, options, BadRows()).lines)
    escaped = "\\ud" in text.lower()
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}:{error.lineno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON that can be read: {error}") from None
    if not isinstance(whole, dict) or not isinstance(whole.get("data"), list):
        raise InputError(f'{name}: no "data" list; expected the JSON layout of SQuAD')
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    ids, line = _ids(text), 1
    for article_at, article in _objects(whole, "data", ""):
        for paragraph_at, paragraph in _objects(article, "paragraphs", article_at):
            for place, question in _objects(paragraph, "qas", paragraph_at):
                if isinstance(question, str):
                    bad.report(f"{name}:{line}", question)
                    continue
                given = question.get("id")
                if type(given) not in (str, int):
                    bad.report(f"{name}:{line}", f'{place} has the "id" {given!r}, not a string')
                    continue
                line = next((at for one, at in ids if one == given), line)
                row = {
                    "id": given,
                    "title": article.get("title", ""),
                    "question": question.get("question"),
                    "context": paragraph.get("context"),
                    "is_impossible": bool(question.get("is_impossible")),
                }
                # A blind test set may have [] for what is not told.
                blind = question.get("answers") == [] and question.get("is_impossible") is False
                if "answers" in question and not blind:
                    row["answers"] = question["answers"]
                fault = _fault(row)
                if not fault and escaped and has_lone_surrogate(row):
                    fault = "a lone surrogate (\\ud800 to \\udfff)"
                if fault:
                    bad.report(f"{name}:{line}", f"question {given!r}: {fault}")
                    continue
                if "answers" in row:
                    row["answers"] = [
                        {"text": a["text"], "start": a["answer_start"]} for a in row["answers"]
                    ]
                rows.append(row)
                lines.append(line)
    return Table(as_columns(rows), lines)


def _objects(whole: Any, key: str, place: str) -> Iterator[tuple[str, Any]]:
    """(place, object) of the members of a list; what is wrong, as a string, in an object's stead,
    and once where there is no list or `whole` is such a string itself."""
    if isinstance(whole, str):
        yield place, whole
        return
    members = whole.get(key)
    if not isinstance(members, list):
        yield place, f'{place} has no list "{key}", as in the JSON layout of SQuAD'
        return
    for i, member in enumerate(members):
        at = f"{place}.{key}[{i}]".lstrip(".")
        good = isinstance(member, dict)
        yield at, member if good else f"{at} is {str(member)[:40]!r}, not an object {{...}}"


def _ids(text: str) -> Iterator[tuple[str | int, int]]:
    """(id, its line) of each "id" of a JSON file, in order."""
    line, before = 1, 0
    for found in _ID.finditer(text):
        line += text.count("\n", before, found.start(1))
        before = found.start(1)
        yield json.loads(found[1]), line


def _fault(row: dict[str, Any]) -> str:
    """What is wrong with a question; '' where nothing is."""
    for key in ("question", "context"):
        if not isinstance(row[key], str):
            return f'"{key}" is {str(row[key])[:40]!r}; accepted: a text'
    answers = row.get("answers", [])
    if not isinstance(answers, list):
        return f'"answers" is {str(row["answers"])[:40]!r}; accepted: a list'
    if answers and row["is_impossible"]:
        return '"is_impossible" is true beside "answers"; accepted: either, as in SQuAD 2.0'
    for answer in answers:
        text, start = (
            answer.get(key) if isinstance(answer, dict) else None
            for key in ("text", "answer_start")
        )
        if not isinstance(text, str) or type(start) is not int:
            accepted = '{"text": "Ada", "answer_start": 0}'
            return f"answer {str(answer)[:60]!r}; accepted: {accepted}"
        if start < 0 or not text or not row["context"].startswith(text, start):
            there = row["context"][max(start, 0) : max(start, 0) + len(text)]
            return f"answer {text[:60]!r} is not at its start {start}: there is {there[:60]!r}"
    return ""
