"""Answers of a question: those that a row has, those that a model finds, and when there is none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An answer: characters [start, end) of its context, or text '' with None for no answer. score
    is the sum of its two logits, probability its softmax over a question's candidates."""

    text: str
    start: int | None
    end: int | None
    score: float
    probability: float = 0.0


def gold_answers(value: Any) -> list[tuple[str, int]]:
    """[(text, first character)] of a row's answers: a list of {"text", "start"} or "answer_start",
    Hugging Face's {"text": [...], "answer_start": [...]}, or that of a single answer without lists.
    Raises ValueError on anything else."""
    if isinstance(value, Mapping):
        text: Any = value.get("text")
        start: Any = value.get("answer_start", value.get("start"))
        if isinstance(text, str):
            text, start = [text], [start]
        try:
            value = [{"text": t, "start": s} for t, s in zip(text, start, strict=True)]
        except (TypeError, ValueError):
            raise ValueError('a dict needs "text" and "answer_start", or lists of them') from None
    if not isinstance(value, list) or not all(isinstance(a, Mapping) for a in value):
        raise ValueError('not a list of {"text", "start"}')
    found = []
    for answer in value:
        text, start = answer.get("text"), answer.get("start", answer.get("answer_start"))
        if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, int):
            raise ValueError(f'{dict(answer)} has no "text" with a whole number as "start"')
        found.append((text, start))
    return found


def with_probabilities(listed: list[Candidate]) -> list[Candidate]:
    scores = np.asarray([candidate.score for candidate in listed])
    share = np.exp(scores - scores.max())
    share /= share.sum()
    return [
        dataclasses.replace(candidate, probability=float(p))
        for candidate, p in zip(listed, share, strict=True)
    ]


def rounded(candidate: Candidate) -> dict[str, Any]:
    values = dataclasses.asdict(candidate)
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}


def best_null_threshold(apart: np.ndarray, said: np.ndarray, silent: np.ndarray) -> float:
    """The threshold of the highest mean F1, of those midway between neighbouring values of `apart`,
    one beyond each end, and 0; among equals the nearest to 0 (Devlin et al. 2019, 4.3: tau).

    apart (N,): by how much a question's null score exceeds its best answer's. Where that is more
    than the threshold nothing is answered, which has the F1 `silent` (N,), else `said` (N,).
    """
    seen, place = np.unique(apart, return_inverse=True)
    gain = np.zeros(len(seen))  # of an answer that is left out
    np.add.at(gain, place, np.asarray(silent, np.float64) - np.asarray(said, np.float64))
    choices = np.concatenate([(seen[1:] + seen[:-1]) / 2, [seen[0] - 1, seen[-1] + 1, 0.0]])
    above = np.concatenate([np.cumsum(gain[::-1])[::-1], [0.0]])
    gained = above[np.searchsorted(seen, choices, side="right")]
    # Sums in another order may differ in their last digits.
    equal = gained > gained.max() - 1e-9
    return float(min(choices[equal], key=abs))
