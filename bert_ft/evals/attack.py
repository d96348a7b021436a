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

Score = Callable[[Sequence[str]], np.ndarray]  # texts -> probabilities (N, C)
_WORD = re.compile(r"[^\W\d_]{4,}")
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _beside() -> dict[str, str]:
    """The keys that touch a key: in its row, and above and below, each row being half a key to the
    right of the one above."""
    out = {}
    for r, row in enumerate(_KEYS):
        for c, key in enumerate(row):
            near = [(r, c - 1), (r, c + 1), (r - 1, c), (r - 1, c + 1), (r + 1, c - 1), (r + 1, c)]
            out[key] = "".join(
                _KEYS[i][j] for i, j in near if 0 <= i < len(_KEYS) and 0 <= j < len(_KEYS[i])
            )
    return out


BESIDE = _beside()


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
        near = BESIDE.get(here.lower(), "")
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
    now, chance = list(texts), clean[np.arange(len(texts)), label]
    broken, done = np.zeros(len(texts), bool), np.zeros(len(texts), np.int64)
    order = _by_importance(texts, label, right, score)
    for turn in range(edits):
        tries = {
            int(i): _candidates(texts[int(i)], now[i], order[i], turn)
            for i in np.flatnonzero(right & ~broken)
            if turn < len(order[i])
        }
        flat = [text for options in tries.values() for text in options]
        if not flat:
            continue
        scored, at = score(flat), 0
        for i, options in tries.items():
            own = scored[at : at + len(options)]
            at += len(options)
            worst = int(own[:, label[i]].argmin()) if options else 0
            if not options or own[worst, label[i]] >= chance[i]:
                continue
            now[i], chance[i], done[i] = options[worst], own[worst, label[i]], done[i] + 1
            broken[i] = own[worst].argmax() != label[i]
    results = zip(now, done.tolist(), right.tolist(), broken.tolist(), strict=True)
    return [Attacked(*one) for one in results]


def unbroken(found: Sequence[Attacked]) -> float:
    """The share of all texts that are classified rightly, clean and attacked."""
    return float(np.mean([one.right and not one.broken for one in found]))


def _by_importance(
    texts: Sequence[str], label: np.ndarray, right: np.ndarray, score: Score
) -> list[list[int]]:
    """The words of each text that is worth an attack, by number, the most important first."""
    words = [
        [m.span() for m in _WORD.finditer(text)] if ok else []
        for text, ok in zip(texts, right, strict=True)
    ]
    without = [t[:a] + t[b:] for t, own in zip(texts, words, strict=True) for a, b in own]
    left = score(without) if without else np.zeros((0, 1))
    out, at = [], 0
    for i, own in enumerate(words):
        chance = left[at : at + len(own), label[i]] if own else np.zeros(0)
        at += len(own)
        out.append(np.argsort(chance, kind="stable").tolist())
    return out


def _candidates(clean: str, now: str, order: Sequence[int], turn: int) -> list[str]:
    """The text with each edit of the word whose turn it is. Words keep their number, since an edit
    neither makes nor unmakes one."""
    spans = [m.span() for m in _WORD.finditer(now)]
    if len(spans) != sum(1 for _ in _WORD.finditer(clean)):
        return []
    a, b = spans[order[turn]]
    return [now[:a] + word + now[b:] for word in misspelt(now[a:b])]
