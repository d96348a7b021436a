"""Questions, their right answers, and the candidates that stand beside those.

A row of pairs is a question and a right answer. A row that a first stage has read (--mode=predict
of 'matching' writes such rows) also has the column `candidates`, its best ones in order: objects
with a `text`, or the texts themselves.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from bert_ft.data.sources import Rows
from bert_ft.errors import InputError

COLUMN = "candidates"


def texts_of(rows: Rows, column: str, blank: bool = False) -> list[str]:
    """The texts of a column. Raises InputError at what is no text or, without `blank`, is blank."""
    texts = rows.column(column)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{rows.where(i)}: column {column!r} is {text!r}, not a text")
        if not blank and not text.strip():
            raise InputError(f"{rows.where(i)}: column {column!r} is blank")
    return texts


def numbered(keys: Sequence[Hashable]) -> tuple[dict[Any, int], list[int]]:
    """({key: number}, the first place of each), numbered in the order in which they first come."""
    number: dict[Any, int] = {}
    first = []
    for i, key in enumerate(keys):
        if key not in number:
            number[key] = len(number)
            first.append(i)
    return number, first


def right_answers(questions: Sequence[Hashable], answers: Sequence[str]) -> dict[Any, set[str]]:
    """{question: its right answers} over all rows."""
    found: dict[Any, set[str]] = {}
    for question, answer in zip(questions, answers, strict=True):
        found.setdefault(question, set()).add(answer)
    return found


def listed(rows: Rows) -> list[list[str]]:
    """The distinct candidates of each row, in their order. Raises InputError where there are none
    or one is no text."""
    if COLUMN not in rows.columns:
        raise InputError(
            f"{rows.origin}: no column {COLUMN!r}; --mode=predict of a 'matching' run adds it"
        )
    out = []
    for i, value in enumerate(rows.columns[COLUMN]):
        if not isinstance(value, list):
            raise InputError(f"{rows.where(i)}: {COLUMN} is {value!r}, not a list")
        texts: list[Any] = [v.get("text") if isinstance(v, Mapping) else v for v in value]
        if not texts:
            raise InputError(f"{rows.where(i)}: {COLUMN} is an empty list")
        for seen, text in zip(value, texts, strict=True):
            if not isinstance(text, str) or not text.strip():
                raise InputError(
                    f"{rows.where(i)}: {COLUMN} holds {seen!r}; accepted: a text, or an object "
                    "with one under 'text'"
                )
        out.append(list(dict.fromkeys(texts)))
    return out


def asked_of(questions: Sequence[str], lists: Sequence[Sequence[str]]) -> list[Hashable]:
    """What tells a question of a row from that of another: asked of other candidates ('which of
    these is right?') it is another one."""
    return [(q, frozenset(texts)) for q, texts in zip(questions, lists, strict=True)]


def hard_negatives(
    rows: Rows, questions: Sequence[str], answers: Sequence[str], count: int, apart: bool = False
) -> list[list[str]]:
    """For each row the `count` best of its candidates that are neither a right answer to its
    question, by any row (with `apart`, by one with the same candidates), nor the question."""
    lists = listed(rows)
    keys = asked_of(questions, lists) if apart else questions
    right, out = right_answers(keys, answers), []
    for i, (question, key, texts) in enumerate(zip(questions, keys, lists, strict=True)):
        wrong = [t for t in texts if t not in right[key] and t != question]
        if len(wrong) < count:
            raise InputError(
                f"{rows.where(i)}: {len(wrong)} of its {len(texts)} {COLUMN} are wrong answers, "
                f"fewer than config.task.negatives ({count}); list more of them, with a greater "
                "config.task.top_k"
            )
        out.append(wrong[:count])
    return out


def drawn_negatives(
    rows: Rows, questions: Sequence[str], answers: Sequence[str], count: int
) -> list[list[str]]:
    """For each row `count` answers of other rows, drawn uniformly, neither right nor the question.
    The draw depends on the rows alone."""
    right, pool = right_answers(questions, answers), list(dict.fromkeys(answers))
    rng, known, out = np.random.default_rng(0), set(pool), []
    for question in questions:
        barred = right[question] | {question}
        if len(pool) - len(barred & known) < count:
            raise InputError(
                f"{rows.origin}: {len(pool)} distinct answers are too few for "
                f"config.task.negatives ({count})"
            )
        drawn: dict[str, None] = {}
        while len(drawn) < count:
            text = pool[int(rng.integers(len(pool)))]
            if text not in barred:
                drawn[text] = None
        out.append(list(drawn))
    return out


def first_right(answer: Mapping[str, Any]) -> str:
    """How a line of the terminal tells the rank of the right answer."""
    rank = answer.get("rank")
    return f"; the right one: {rank}" if rank else ""
