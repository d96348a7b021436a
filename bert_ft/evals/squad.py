"""Exact match and F1 of answers, as the official scripts of SQuAD 1.1 and 2.0 define them.

Rajpurkar et al. 2016 (section 6.1) and 2018; evaluate-v1.1.py and evaluate-v2.0.py. The scripts
differ only in answers of which the normalisation leaves nothing, such as "the": 1.1 gives them an
F1 of 0, 2.0 drops them from the gold answers and calls empty equal to empty.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and articles, single blanks; in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, gold: str) -> float:
    return float(normalise(prediction) == normalise(gold))


def f1(prediction: str, gold: str, unanswerable: bool) -> float:
    """F1 of the two bags of words; `unanswerable` goes by the 2.0 script."""
    said, wanted = normalise(prediction).split(), normalise(gold).split()
    if unanswerable and not (said and wanted):
        return float(said == wanted)
    same = sum((collections.Counter(said) & collections.Counter(wanted)).values())
    if not same:
        return 0.0
    precision, recall = same / len(said), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def best_over_golds(
    prediction: str, golds: Sequence[str], unanswerable: bool
) -> tuple[float, float]:
    """(exact match, F1), each the best over the gold answers; none at all means: no answer.

    Raises ValueError for no golds where every question has an answer.
    """
    if unanswerable:
        golds = [gold for gold in golds if normalise(gold)] or [""]
    elif not golds:
        raise ValueError("a question without a gold answer, in a set where each has one")
    return (
        max(exact_match(prediction, gold) for gold in golds),
        max(f1(prediction, gold, unanswerable) for gold in golds),
    )


def score(
    predictions: Sequence[str], golds: Sequence[Sequence[str]], unanswerable: bool
) -> dict[str, float]:
    """{'exact_match', 'f1'} over all questions, shares of 1; with `unanswerable` (SQuAD 2.0, where
    '' says that there is no answer) also over the questions that have an answer and the others.

    As in the 2.0 script a question counts as answerable by whether it has gold answers at all.
    """
    both = np.asarray(
        [best_over_golds(p, g, unanswerable) for p, g in zip(predictions, golds, strict=True)]
    )
    has = np.asarray([bool(g) for g in golds])
    parts = {"": np.ones(len(has), bool)}
    if unanswerable:
        parts |= {"has_answer_": has, "no_answer_": ~has}
    out: dict[str, float] = {}
    for name, chosen in parts.items():
        if chosen.any():
            exact, overlap = both[chosen].mean(axis=0)
            out |= {f"{name}exact_match": float(exact), f"{name}f1": float(overlap)}
    return out
