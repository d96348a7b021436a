"""Answers about one row that are of several parts, and a part's own of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What of an answer is a part's own; the rest, such as its texts, is the row's.
PARTED = ("label", "prediction", "probabilities", "words", "tags", "n_best")


def merged(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The answers of several parts about one row."""
    out: dict[str, Any] = {}
    for part, answer in answers.items():
        for key, value in answer.items():
            if key in PARTED:
                out.setdefault(key, {})[part] = value
            elif key == "truncated":
                out[key] = out.get(key, False) or value
            else:
                out.setdefault(key, value)
    return out


def both(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Two groups' answers about the same row."""
    out = {**b, **a, "truncated": a["truncated"] or b["truncated"]}
    for key in PARTED:
        if key in a or key in b:
            out[key] = {**a.get(key, {}), **b.get(key, {})}
    return out


def single(answer: Mapping[str, Any], part: str) -> dict[str, Any]:
    """A part's own answer again."""
    own = {k: v for k, v in answer.items() if k not in PARTED}
    return own | {k: answer[k][part] for k in PARTED if part in answer.get(k, {})}
