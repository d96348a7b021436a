"""Rows of predictions -> what a score is made of, for any task whose score is over examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from bert_ft.errors import InputError
from bert_ft.evals import metrics, spans, squad
from bert_ft.evals.paired import Judged

Row = dict[str, Any]


def judge(rows: Sequence[Row], metric: str, where: str, positive: str = "") -> Judged:
    """The rows of a predictions file, each with its label. `metric` may begin with 'PART/', and be
    'f1/TYPE' of entities; `positive` is task.positive_label, whose F1 is meant; '' is the second of
    two.

    Raises InputError where the rows have no such score; `where` names the file."""
    before, of_type, kind = f"/{metric}".partition("/f1/")
    part, name = (before[1:], f"f1/{kind}") if of_type else before[1:].rpartition("/")[::2]
    own = rows_of_part(rows, part) if part else rows
    kinds = _scores(own, positive) if own else {}
    if name not in kinds:
        accepted = kinds or _of_parts(rows, positive)
        there = ", ".join(accepted) or "none: of this task no score is made of rows"
        raise InputError(f"{where}: no score {metric!r} by example; accepted: {there}")
    return kinds[name]()


def rows_of_part(rows: Sequence[Row], part: str) -> list[Row]:
    """Of a task with several parts the rows that have a label of this one, as it alone has them."""

    def has(row: Row) -> bool:
        return all(isinstance(row.get(k), dict) and part in row[k] for k in ("label", "prediction"))

    def own(row: Row) -> Row:
        split = {k: v[part] for k, v in row.items() if isinstance(v, dict) and part in v}
        return {k: v for k, v in row.items() if not isinstance(v, dict)} | split

    return [own(row) for row in rows if has(row)]


def _of_parts(rows: Sequence[Row], positive: str) -> list[str]:
    """Of a task with several parts the scores of each, PART/METRIC; of another none."""
    of_all = [row["label"] for row in rows if isinstance(row.get("label"), dict)]
    parts = dict.fromkeys(part for labels in of_all for part in labels)
    by_part = ((part, rows_of_part(rows, part)) for part in parts)
    return [f"{part}/{name}" for part, own in by_part if own for name in _scores(own, positive)]


def _scores(rows: Sequence[Row], positive: str) -> dict[str, Callable[[], Judged]]:
    """{metric: what makes it} that rows of this kind have."""
    sides = [row.get(side) for row in rows for side in ("label", "prediction")]
    if spans.are_answers(rows):
        return {"f1": partial(_answers, rows, 1), "exact_match": partial(_answers, rows, 0)}
    if spans.are_entities(rows):
        types = {e["type"] for row in rows for e in row["label"]}
        of_types = {f"f1/{kind}": partial(_entities, rows, kind) for kind in sorted(types)}
        return {"f1": partial(_entities, rows), **of_types}
    scored = all(isinstance(row.get("probabilities"), dict) for row in rows)
    of = (metrics.pearson, metrics.spearman, metrics.rmse, metrics.mae)
    of_numbers: dict[str, Callable[[], Judged]] = {
        metric.__name__: partial(_regression, rows, metric) for metric in of
    }
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in sides) and not scored:
        return of_numbers
    if all(isinstance(x, str | int) for x in sides):
        one = positive or len(rows[0].get("probabilities") or _classes(rows)) == 2
        names = ["accuracy", "f1_macro", "mcc", *(["f1"] if one else [])]
        kinds: dict[str, Callable[[], Judged]] = {
            name: partial(_classification, rows, name, positive) for name in names
        }
        if scored:
            kinds["brier"] = partial(_of_probabilities, rows, "brier", positive)
            if one:
                kinds["auc"] = partial(_of_probabilities, rows, "auc", positive)
        return kinds | (of_numbers if all(map(is_number, sides)) else {})  # ranks are both
    return {}


def is_number(side: Any) -> bool:
    """Whether a label is a number, or a rank that is one."""
    try:
        return math.isfinite(float(side))
    except (TypeError, ValueError):
        return False


def _classes(rows: Sequence[Row]) -> list[str]:
    """Names in the order of the labels, as the probabilities have them."""
    known = [str(name) for name in rows[0].get("probabilities") or ()]
    seen = {str(row[side]) for row in rows for side in ("label", "prediction")}
    return known + sorted(seen - set(known))


def _classification(rows: Sequence[Row], name: str, positive: str) -> Judged:
    names = _classes(rows)
    number = {name: i for i, name in enumerate(names)}
    values = np.array([[number[str(row[s])] for s in ("label", "prediction")] for row in rows])
    of = (positive or names[1]) if name == "f1" else ""

    def score(values: np.ndarray) -> float:
        labels, guesses = values.T
        if name == "accuracy":
            return metrics.accuracy(labels, guesses)
        if name == "f1":
            return metrics.binary_f1(labels, guesses, number.get(of, -1))
        confusion = metrics.confusion_matrix(labels, guesses, len(names))
        if name == "mcc":
            return metrics.matthews_correlation(confusion)
        return metrics.macro_f1(confusion)

    return Judged(values, score, of)


def _of_probabilities(rows: Sequence[Row], name: str, positive: str) -> Judged:
    """Of each row the number of its label and the probabilities, in one order of classes."""
    names = [str(name) for name in rows[0]["probabilities"]]
    number = {name: i for i, name in enumerate(names)}
    values = np.array(
        [
            [number.get(str(row["label"]), -1), *(row["probabilities"][name] for name in names)]
            for row in rows
        ]
    )
    which = names.index(positive) if positive else 1

    def score(values: np.ndarray) -> float:
        labels, p = values[:, 0].astype(int), values[:, 1:]
        if name == "auc":
            return metrics.auc(labels == which, p[:, which])
        seen = labels >= 0  # one that training lacks has no probability
        return metrics.brier(labels[seen], p[seen]) if seen.any() else math.nan

    return Judged(values, score, names[which] if name == "auc" else "")


def _regression(rows: Sequence[Row], metric: Callable[..., float]) -> Judged:
    values = np.array([[row["label"], row["prediction"]] for row in rows], float)
    values[:, 0] = values[:, 0].astype(np.float32)  # as it was scored, not as it is written
    return Judged(values, lambda values: metric(*values.T))


def _answers(rows: Sequence[Row], which: int) -> Judged:
    golds = [[gold["text"] for gold in row["label"]] for row in rows]
    said = [row["prediction"]["text"] for row in rows]
    none = spans.some_have_none(rows)
    both = [squad.best_over_golds(s, g, none) for s, g in zip(said, golds, strict=True)]
    return Judged(np.array(both, float)[:, [which]], lambda values: float(values.mean()))


def _entities(rows: Sequence[Row], only: str = "") -> Judged:
    """Counts of each text, of one type or of all: right, predicted, there."""

    def places(row: Row, side: str) -> set[tuple]:
        found = {(e["type"], e["start"], e["end"]) for e in row[side]}
        return {e for e in found if not only or e[0] == only}

    pairs = [(places(row, "label"), places(row, "prediction")) for row in rows]
    counts = np.array([[len(g & p), len(p), len(g)] for g, p in pairs], float)

    def score(values: np.ndarray) -> float:
        right, found, there = values.sum(axis=0)
        return float(metrics.precision_recall_f1(right, found - right, there - right)[2])

    return Judged(counts, score)
