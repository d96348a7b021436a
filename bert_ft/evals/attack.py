"""Misspellings that break a classifier: how much of its score is left where each text may be edited
by characters, at most a few times.

Edits are those of Pruthi, Dhingra & Lipton 2019, section 2: within a word of four letters or more,
but for its first and last, two neighbours are swapped, one is dropped, one is added, or one is
another key beside it. Words are taken in the order of their importance, that of Gao et al. 2018,
section III.B (DeepWordBug): what the probability of the label loses where the word is left out.
Of a word's edits the worst is kept, if it is worse than none; the search is greedy and has no
randomness. All texts are attacked together, so that each round is one pass over its candidates.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np

from bert_ft.data.noise import NEAR

Score = Callable[[Sequence[str]], np.ndarray]  # texts -> probabilities (N, C)
_WORD = re.compile(r"([^\W\d_]{4,})")


@dataclasses.dataclass(frozen=True)
class Attacked:
    """What an attack leaves of a text: with `edits` of its words changed. `right`: whether the
    clean text was classified as its label says; `broken`: whether it was and no longer is."""

    text: str
    edits: int
    right: bool
    broken: bool


def misspelt(word: str) -> list[str]:
    """All edits of a word, in a fixed order, each once."""
    found: dict[str, None] = {}
    for i in range(1, len(word) - 1):
        before, here, after = word[:i], word[i], word[i + 1 :]
        near = NEAR.get(here.lower(), "")
        near = near.upper() if here.isupper() else near
        if i < len(word) - 2:
            found[before + after[0] + here + after[1:]] = None
        found[before + after] = None
        for key in near:
            found[before + key + after] = None
            found[before + here + key + after] = None
    found.pop(word, None)
    return list(found)


def attack(
    texts: Sequence[str], labels: Sequence[int], score: Score, edits: int = 3
) -> list[Attacked]:
    """One a text. `labels`: columns of `score`'s probabilities."""
    label = np.asarray(labels, np.int64)
    clean = score(texts)
    right = clean.argmax(axis=1) == label
    # Gaps and words in turn: a word stays one when an edit leaves it with three letters.
    now, chance = [_WORD.split(text) for text in texts], clean[np.arange(len(texts)), label]
    broken, done = np.zeros(len(texts), bool), np.zeros(len(texts), np.int64)
    order = _by_importance(now, label, right, score)
    for turn in range(max(map(len, order), default=0)):  # a word that no edit hurts costs none
        tries = {
            int(i): (order[i][turn], misspelt(now[i][order[i][turn]]))
            for i in np.flatnonzero(right & ~broken & (done < edits))
            if turn < len(order[i])
        }
        flat = [_with(now[i], at, word) for i, (at, words) in tries.items() for word in words]
        if not tries:
            break
        scored, first = score(flat), 0
        for i, (at, words) in tries.items():
            own = scored[first : first + len(words)]
            first += len(words)
            worst = int(own[:, label[i]].argmin())
            if own[worst, label[i]] >= chance[i]:
                continue
            now[i][at], chance[i], done[i] = words[worst], own[worst, label[i]], done[i] + 1
            broken[i] = own[worst].argmax() != label[i]
    left = ["".join(pieces) for pieces in now]
    results = zip(left, done.tolist(), right.tolist(), broken.tolist(), strict=True)
    return [Attacked(*one) for one in results]


def unbroken(found: Sequence[Attacked]) -> float:
    """The share of all texts that are classified rightly, clean and attacked."""
    return float(np.mean([one.right and not one.broken for one in found]))


def _by_importance(
    pieces: Sequence[list[str]], label: np.ndarray, right: np.ndarray, score: Score
) -> list[list[int]]:
    """The places of the words of each text that is worth an attack, the most important first."""
    places = [range(1, len(p), 2) if ok else () for p, ok in zip(pieces, right, strict=True)]
    without = [_with(p, at, "") for p, own in zip(pieces, places, strict=True) for at in own]
    left = score(without) if without else np.zeros((0, 1))
    out, first = [], 0
    for i, own in enumerate(places):
        chance = left[first : first + len(own), label[i]] if own else np.zeros(0)
        first += len(own)
        out.append([own[k] for k in np.argsort(chance, kind="stable").tolist()])
    return out


def _with(pieces: Sequence[str], at: int, word: str) -> str:
    """The text with another piece at a place."""
    return "".join([*pieces[:at], word, *pieces[at + 1 :]])
