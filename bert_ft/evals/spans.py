"""What predictions that are pieces of a text show: answers to questions, entities in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_ft.evals import metrics, plots, squad
from bert_ft.evals.entities import entity_scores
from bert_ft.evals.page import cards, figure, fold, grid, mistake, note, section, table

MISTAKES = 20
AROUND = 150  # characters shown on each side of a mistake
FIRST_WORDS = 12


def are_answers(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the rows are those of task 'span', with their gold answers."""
    return all(
        isinstance(row.get("prediction"), dict)
        and isinstance(row["prediction"].get("text"), str)
        and "n_best" in row
        and isinstance(row.get("label"), list)
        for row in rows
    )


def are_entities(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the rows are those of task 'tagging', with their gold entities; lists that are all
    empty may also be those of several labels."""
    return any("tags" in row or row.get("label") or row.get("prediction") for row in rows) and all(
        isinstance(row.get(side), list)
        and all(isinstance(e, dict) and "type" in e for e in row[side])
        for row in rows
        for side in ("prediction", "label")
    )


def some_have_none(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the rows were scored as SQuAD 2.0 is: a question of theirs has no answer, or one of
    the training set's, for then 'no answer' is beside others among a row's candidates."""
    listed = [row["n_best"] for row in rows if len(row.get("n_best", ())) > 1]
    return not all(row["label"] for row in rows) or not all(c["text"] for n in listed for c in n)


def answer_sections(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Exact match against confidence, scores by the question's first word, and the mistakes of
    which the model was surest."""
    golds = [[gold["text"] for gold in row["label"]] for row in rows]
    none = some_have_none(rows)
    scores = [
        squad.best_over_golds(row["prediction"]["text"], gold, none)
        for row, gold in zip(rows, golds, strict=True)
    ]
    exact, f1 = np.asarray(scores, float).T
    sure = np.asarray([row["prediction"].get("probability") or 0.0 for row in rows], float)
    wrong_label = (exact == 0).astype(int)  # class 0 is 'right', with the confidence as probability
    got = metrics.calibration(wrong_label, np.stack([sure, np.zeros(len(sure))], axis=1))
    caption = (
        f"{int(exact.sum()):,} of {len(rows):,} exactly right; ECE {got.ece:.1%}; below: answers "
        f"per bin, {got.count.max():,} at most"
    )
    keys = [("cell", "exact match"), ("gap", "gap to confidence")]
    charts = [figure("Confidence", plots.reliability_chart(got), caption, keys)]
    charts.append(_by_first_word([_question(row) for row in rows], exact, f1))
    order = np.argsort(-sure, kind="stable")
    found = [i for i in order if f1[i] == 0][:MISTAKES]
    partly = int(((f1 > 0) & (exact == 0)).sum())
    html = [_answer_card(rows[i], golds[i], sure[i]) for i in found]
    heading = f"Most confident mistakes, without a word in common ({int((f1 == 0).sum()):,})"
    return [
        section("Answers", grid(charts) + note(f"{partly:,} answers are right in part.")),
        section(heading, cards(html) if html else note("There are none.")),
    ]


def entity_sections(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Scores by type, and the mistakes of which the model was surest. Right is the same type from
    the same first to the same last character."""
    sides = [
        [[(e["type"], e["start"], e["end"]) for e in row[side]] for row in rows]
        for side in ("label", "prediction")
    ]
    scores, by_type = entity_scores(*sides)
    lines = [
        (kind, f"{s['n']:,.0f}", *(f"{100 * s[k]:.1f}" for k in ("precision", "recall", "f1")))
        for kind, s in sorted(by_type.items(), key=lambda item: -item[1]["n"])
    ]
    heads = ("type", "n", "prec. %", "rec. %", "F1 %")
    named = fold(f"{len(lines)} types", table(heads, lines, numeric=(1, 2, 3, 4)), len(lines) <= 12)
    kinds: Counter[str] = Counter()
    wrong: list[tuple[float, str]] = []
    for row, gold, guess in zip(rows, *sides, strict=True):
        kinds["missed"] += sum(not _touching(entity, guess) for entity in gold)
        for entity, said in zip(guess, row["prediction"], strict=True):
            if entity not in gold:
                kind, instead = _kind_of_mistake(entity, gold, row)
                kinds[kind] += 1
                sure = said.get("probability") or 0.0
                wrong.append((sure, _entity_card(row, said, sure, instead)))
    order = ("bounds", "type", "bounds and type", "spurious", "missed")
    rows_of = [(kind, f"{kinds[kind]:,}") for kind in order]
    charts = [
        figure("Mistakes", table(("", "n"), rows_of, numeric=(1,)), "spurious: nothing is there")
    ]
    wrong.sort(key=lambda pair: -pair[0])
    html = [card for _, card in wrong[:MISTAKES]]
    total = sum(map(len, sides[0]))
    line = f"{total:,} entities in {len(rows):,} texts; F1 {scores['f1']:.1%} over all of them."
    return [
        section("Entities", note(line) + grid(charts) + named),
        section("Most confident mistakes", cards(html) if html else note("There are none.")),
    ]


def _question(row: dict[str, Any]) -> str:
    """The first of the row's texts: the question stands before its context."""
    texts = [v for k, v in row.items() if isinstance(v, str) and k != "id"]
    return texts[0] if texts else ""


def _by_first_word(questions: Sequence[str], exact: np.ndarray, f1: np.ndarray) -> str:
    words = [" ".join(question.lower().split()[:1]) or "(none)" for question in questions]
    most = Counter(words).most_common(FIRST_WORDS)
    lines = []
    for word, count in most:
        mine = np.asarray([w == word for w in words])
        lines.append((word, f"{count:,}", f"{exact[mine].mean():.1%}", f"{f1[mine].mean():.1%}"))
    html = table(("first word", "n", "exact", "F1"), lines, numeric=(1, 2, 3))
    shown = sum(count for _, count in most)
    return figure("By the question's first word", html, f"{shown:,} of {len(words):,} questions")


def _answer_card(row: dict[str, Any], golds: Sequence[str], sure: float) -> str:
    said = row["prediction"]
    texts = [v for k, v in row.items() if isinstance(v, str) and k != "id"]
    context = texts[-1] if len(texts) > 1 else ""
    at = row["label"][0]["start"] if row["label"] else said.get("start")
    text = f"{_question(row)}\n{_around(context, at or 0, at or 0)}"
    label = " / ".join(dict.fromkeys(golds)) or "(no answer)"
    return mistake(text, said["text"] or "(no answer)", f"{sure:.1%}", label, 4 * AROUND)


def _entity_card(row: dict[str, Any], said: dict[str, Any], sure: float, instead: str) -> str:
    text = _around(str(row.get("text", "")), said["start"], said["end"])
    return mistake(text, f"{said['text']} [{said['type']}]", f"{sure:.1%}", instead, 4 * AROUND)


def _touching(entity: tuple, others: Sequence[tuple]) -> list[tuple]:
    """Those that share a character with it."""
    return [other for other in others if entity[1] < other[2] and other[1] < entity[2]]


def _kind_of_mistake(entity: tuple, gold: Sequence[tuple], row: dict[str, Any]) -> tuple[str, str]:
    """(what is wrong, what is there instead) of a predicted entity that is not in `gold`."""
    there = _touching(entity, gold)
    if not there:
        return "spurious", "(none)"
    names = [f"{e['text']} [{e['type']}]" for e in row["label"]]
    instead = ", ".join(name for name, e in zip(names, gold, strict=True) if e in there)
    if any(other[1:] == entity[1:] for other in there):
        return "type", instead
    return ("bounds" if any(o[0] == entity[0] for o in there) else "bounds and type"), instead


def _around(text: str, start: int, end: int) -> str:
    first, last = max(0, start - AROUND), min(len(text), end + AROUND)
    return f"{'…' if first else ''}{text[first:last]}{'…' if last < len(text) else ''}"
