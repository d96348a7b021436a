"""Precision, recall and F1 of entities: right is the same type from the same first to the same last
word (Tjong Kim Sang and De Meulder 2003). With tags read strictly, seqeval's mode='strict'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from bert_ft.evals.metrics import precision_recall_f1

Entity = tuple[str, int, int]


def entity_scores(
    gold: Iterable[Iterable[Entity]], predicted: Iterable[Iterable[Entity]]
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """(scores over all entities, {type: its scores}), sentence by sentence in the same order.

    'precision', 'recall' and 'f1' sum all types' counts; 'f1_macro' is the mean over the types that
    occur in either; 0/0 is 0. A type's scores are precision, recall, f1 and n, its gold entities.
    """
    right, found, there = Counter[str](), Counter[str](), Counter[str]()
    for truth, guess in zip(gold, predicted, strict=True):
        truth, guess = set(truth), set(guess)
        there.update(kind for kind, *_ in truth)
        found.update(kind for kind, *_ in guess)
        right.update(kind for kind, *_ in truth & guess)
    kinds = sorted(there.keys() | found.keys())
    tp, guessed, actual = (
        np.asarray([counter[kind] for kind in kinds], np.int64) for counter in (right, found, there)
    )
    precision, recall, f1 = precision_recall_f1(
        tp.sum(), guessed.sum() - tp.sum(), actual.sum() - tp.sum()
    )
    each = np.stack(precision_recall_f1(tp, guessed - tp, actual - tp), axis=1)
    scores = {
        "f1": float(f1),
        "precision": float(precision),
        "recall": float(recall),
        "f1_macro": float(each[:, 2].mean()) if kinds else 0.0,
    }
    names = ("precision", "recall", "f1")
    by_type = {
        kind: {**dict(zip(names, map(float, row), strict=True)), "n": float(n)}
        for kind, row, n in zip(kinds, each, actual, strict=True)
    }
    return scores, by_type
