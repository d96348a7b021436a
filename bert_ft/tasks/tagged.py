"""Annotated rows -> tags of words: lists of words with tags, or texts with character spans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from bert_ft.data.columns import shown
from bert_ft.data.rows import require_apart
from bert_ft.data.sources import Rows
from bert_ft.data.words import Words
from bert_ft.errors import InputError
from bert_ft.tasks import schemes
from bert_ft.tasks.schemes import OUTSIDE

CharacterSpan = tuple[int, int, str]  # start, end (exclusive), type


def inputs(rows: Rows, column: str) -> list[str | list[str]]:
    """The text, or the words, of each row. InputError on what is neither."""
    out: list[str | list[str]] = []
    for i, value in enumerate(rows.column(column)):
        if not isinstance(value, str):
            value = _listed(value)
            if value is None or not all(isinstance(w, str) for w in value):
                raise InputError(
                    f"{rows.where(i)}: column {column!r} is {_short(rows.columns[column][i])}; "
                    "accepted: a text, or a list of words"
                )
        out.append(value)
    return out


def fit(rows: Rows, text: str, label: str, scheme: str) -> dict[str, Any]:
    """{'labels', 'names', 'scheme', 'read_as'}: the training rows' tags, 'O' first, and their
    scheme ('auto' finds it). Spans are tagged in IOB2, as are tags in IOB1."""
    given = inputs(rows, text)
    spans = {kind for i, s in _spans_of(rows, label, given) for _, _, kind in s}
    written = _tags_of(rows, label, given)
    every = spans.union(*(tags for _, tags in written))
    require_apart(sorted(every), f"{rows.origin}: column {label!r}", "tag")
    read_as = "IOB2" if scheme == "auto" else scheme
    seen = {f"{prefix}-{kind}" for kind in spans for prefix in "BI"}
    if written:
        where, tags = _where(rows, written), [tags for _, tags in written]
        if scheme == "auto":
            read_as = schemes.detect(tags, where)
        else:
            schemes.check(tags, scheme, where)
        seen |= {tag for row in _as_read(tags, read_as) for tag in row}
    labels = sorted(seen - {OUTSIDE})
    if read_as != "plain" or OUTSIDE in seen:
        labels = [OUTSIDE, *labels]
    if len(labels) < 2:
        raise InputError(
            f"{rows.origin}: column {label!r} has the tag {labels[0] if labels else OUTSIDE!r} "
            "only; at least 2 are needed"
        )
    if spans and read_as not in ("IOB2", "IOB1"):
        raise InputError(
            f"config.task.scheme is {scheme!r}, but column {label!r} of {rows.origin} has "
            "character spans, which are tagged in IOB2; accepted: 'auto' or 'IOB2'"
        )
    made = "IOB2" if read_as == "IOB1" else read_as
    return {"labels": labels, "names": labels, "scheme": made, "read_as": read_as}


def tags(
    rows: Rows,
    label: str,
    given: Sequence[str | list[str]],
    words: Sequence[Words],
    fitted: Mapping[str, Any],
    widen: bool,
) -> list[list[str]]:
    """One tag a word, in the scheme of `fitted`. InputError on tags that it forbids, that are
    not as many as the words, and on spans that are out of the text, overlap or cut a word."""
    out: list[list[str]] = [[] for _ in given]
    written = _tags_of(rows, label, given)
    why = f"{fitted['read_as']} is what the training rows' tags were read as"
    schemes.check([tags for _, tags in written], fitted["read_as"], _where(rows, written), why)
    read = _as_read([tags for _, tags in written], fitted["read_as"])
    for (i, _), row in zip(written, read, strict=True):
        out[i] = row
    for i, spans in _spans_of(rows, label, given):
        out[i] = schemes.to_tags(_on_words(spans, words[i], widen, rows.where(i)), len(words[i]))
    require_apart(
        sorted({*fitted["labels"], *chain(*out)}),
        f"{rows.origin}: column {label!r}, with training's",
        "tag",
    )
    return out


def unseen(rows: Rows, row: int, word: int, tag: str, known: Sequence[str]) -> InputError:
    """What to raise on a tag that training lacks."""
    return InputError(
        f"{rows.where_word(row, word)}: tag {tag!r} is not among the training tags: "
        f"{shown(known, 20)}; with task.unseen_tags='score' it counts as missed"
    )


def _where(rows: Rows, written: Sequence[tuple[int, list[str]]]) -> Any:
    def where(k: int, word: int) -> str:
        return rows.where_word(written[k][0], word)

    return where


def _as_read(tags: Sequence[list[str]], read_as: str) -> list[list[str]]:
    return [schemes.iob1_to_iob2(row) for row in tags] if read_as == "IOB1" else list(tags)


def _tags_of(
    rows: Rows, label: str, given: Sequence[str | list[str]]
) -> list[tuple[int, list[str]]]:
    """(row, tags) of the rows that are words."""
    found = []
    for i, (words, value) in enumerate(zip(given, rows.column(label), strict=True)):
        if isinstance(words, str):
            continue
        tags = _listed(value)
        if tags is None or not all(isinstance(t, str) and t for t in tags):
            raise InputError(
                f"{rows.where(i)}: column {label!r} is {_short(value)}; accepted where the text is "
                "a list of words: a list of tags, as strings"
            )
        if len(tags) != len(words):
            raise InputError(f"{rows.where(i)}: {len(tags)} tags for {len(words)} words")
        found.append((i, tags))
    return found


def _spans_of(
    rows: Rows, label: str, given: Sequence[str | list[str]]
) -> list[tuple[int, list[CharacterSpan]]]:
    """(row, sorted spans) of the rows that are texts."""
    found = []
    for i, (text, value) in enumerate(zip(given, rows.column(label), strict=True)):
        if not isinstance(text, str):
            continue
        try:
            spans = sorted(_span(s) for s in _listed(value) or ())
            if _listed(value) is None:
                raise TypeError
        except (TypeError, KeyError, ValueError):
            raise InputError(
                f"{rows.where(i)}: column {label!r} is {_short(value)}; accepted where the text is "
                'a string: a list of spans {"start": 0, "end": 4, "label": "TYPE"}'
            ) from None
        last = 0
        for start, end, kind in spans:
            if not 0 <= start < end <= len(text):
                raise InputError(
                    f"{rows.where(i)}: span {start}-{end} ({kind}) is not within "
                    f"0-{len(text)}, its text"
                )
            if start < last:
                raise InputError(
                    f"{rows.where(i)}: span {start}-{end} ({kind}) overlaps the one before it, "
                    f"which ends at {last}"
                )
            last = end
        found.append((i, spans))
    return found


def _span(value: Any) -> CharacterSpan:
    """From (start, end, type), or an object with start, end and label (predictions say type)."""
    if isinstance(value, Mapping):
        value = value["start"], value["end"], value["label"] if "label" in value else value["type"]
    start, end, kind = value
    if type(start) is not int or type(end) is not int or not isinstance(kind, str) or not kind:
        raise TypeError
    return start, end, kind


def _on_words(
    spans: Sequence[CharacterSpan], words: Words, widen: bool, where: str
) -> list[schemes.Span]:
    """Spans of characters -> spans of words."""
    begin, end = np.asarray(words.begin), np.asarray(words.end)
    found: list[schemes.Span] = []
    for start, stop, kind in spans:
        inside = np.flatnonzero((begin < stop) & (end > start)) if len(words) else begin
        said = f"{where}: span {start}-{stop} ({kind}) {words.text[start:stop][:40]!r}"
        if not len(inside):
            raise InputError(f"{said} holds no word: the tokenizer leaves nothing of it")
        first, last = int(inside[0]), int(inside[-1])
        if not widen and (begin[first] < start or end[last] > stop):
            k = first if begin[first] < start else last
            raise InputError(
                f"{said} cuts the word {words.text[begin[k] : end[k]]!r}; mend it, or set "
                "task.cut_spans='widen' to take such words whole"
            )
        if found and first < found[-1][2]:
            raise InputError(f"{said} shares a word with the span before it")
        found.append((kind, first, last + 1))
    return found


def _listed(value: Any) -> list | None:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, list | tuple) else None


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else said[:60] + "…"
