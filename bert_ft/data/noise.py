"""What augmentation does to one text: EDA (Wei & Zou 2019), typing and reading errors, case, marks.

Each takes a row's pieces, a strength from 0 to 1 and a generator, and leaves alone what is
annotated (pieces.py). Of EDA's operations (section 2) the strength is their alpha: of a text of l
words, max(1, alpha l) are replaced, put in, or swapped; deletion, and all that is not theirs, takes
each word with that probability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bert_ft.data.pieces import Pieces, changed, free_words, places, put, without

Synonyms = Mapping[str, Sequence[str]]
Draws = np.random.Generator

MARKS = ".,;:!?"  # AEDA's (Karimi et al. 2021, section 2)
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# Each row of a QWERTY keyboard is half a key right of the one above.
_STEPS = ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0))
# What optical character recognition takes for one another, either way.
_ALIKE = (
    *(("0", "O"), ("0", "o"), ("1", "l"), ("1", "I"), ("5", "S"), ("8", "B"), ("2", "Z")),
    *(("rn", "m"), ("cl", "d"), ("vv", "w"), ("ii", "u"), ("e", "c"), ("h", "b"), ("n", "u")),
    *(("i", "l"), ("f", "t"), ("g", "q")),
)


def _neighbours() -> dict[str, str]:
    found = {}
    for r, row in enumerate(_ROWS):
        for k, key in enumerate(row):
            near = [(r + dr, k + dk) for dr, dk in _STEPS if 0 <= r + dr < len(_ROWS)]
            found[key] = "".join(_ROWS[a][b] for a, b in near if 0 <= b < len(_ROWS[a]))
    return found


NEAR = _neighbours()


def _count(strength: float, words: int) -> int:
    return max(1, int(strength * words))


def _some(words: np.ndarray, strength: float, draws: Draws) -> list[int]:
    """Each with this probability."""
    return words[draws.random(len(words)) < strength].tolist()


def _one(items: Sequence[Any], draws: Draws) -> Any:
    return items[int(draws.integers(len(items)))]


def like(text: str, word: str) -> str:
    """In the case of the word that it replaces."""
    if word.isupper() and len(word) > 1:
        return text.upper()
    return text[:1].upper() + text[1:] if word[:1].isupper() else text


def chosen(pieces: Pieces, strength: float, draws: Draws) -> list[int]:
    """The words that another operation replaces, EDA's number of them."""
    words = free_words(pieces)
    count = min(_count(strength, len(words)), len(words))
    return sorted(draws.choice(words, count, replace=False).tolist()) if count else []


def listed(pieces: Pieces, known: Synonyms) -> list[int]:
    """The words that have synonyms."""
    return [i for i in free_words(pieces).tolist() if known.get(pieces[i].text.lower())]


def synonyms(pieces: Pieces, strength: float, draws: Draws, known: Synonyms) -> Pieces:
    """EDA's synonym replacement, of the words that have synonyms."""
    words, there = free_words(pieces), listed(pieces, known)
    count = min(_count(strength, len(words)), len(there))
    texts = {}
    for i in draws.choice(there, count, replace=False).tolist() if there else ():
        word = pieces[i].text
        others = known[word.lower()]
        texts[i] = like(_one(others, draws), word)
    return changed(pieces, texts)


def insert(pieces: Pieces, strength: float, draws: Draws, known: Synonyms) -> Pieces:
    """EDA's random insertion: synonyms of words of the text, in places of their own."""
    there = [pieces[i].text.lower() for i in listed(pieces, known)]
    for _ in range(_count(strength, len(free_words(pieces))) if there else 0):
        others, at = known[_one(there, draws)], places(pieces)
        if at:
            word = _one(others, draws)
            pieces = put(pieces, _one(at, draws), word)
    return pieces


def swap(pieces: Pieces, strength: float, draws: Draws) -> Pieces:
    """EDA's random swap, of words between which no entity stands."""
    words = free_words(pieces)
    runs = np.cumsum([p.fixed for p in pieces])[words] if len(words) else words
    for _ in range(_count(strength, len(words)) if len(words) > 1 else 0):
        k = draws.integers(len(words))
        others = words[(runs == runs[k]) & (words != words[k])]
        if len(others):
            i, j = int(words[k]), int(_one(others, draws))
            pieces = changed(pieces, {i: pieces[j].text, j: pieces[i].text})
    return pieces


def delete(pieces: Pieces, strength: float, draws: Draws) -> Pieces:
    """EDA's random deletion."""
    return without(pieces, _some(free_words(pieces), strength, draws))


def typos(pieces: Pieces, strength: float, draws: Draws) -> Pieces:
    """Of a word one letter is hit beside, left out, hit twice, or hit too late."""
    words = np.asarray([i for i in free_words(pieces) if len(pieces[i].text) > 1], np.int64)
    return changed(
        pieces, {i: _mistyped(pieces[i].text, draws) for i in _some(words, strength, draws)}
    )


def _mistyped(word: str, draws: Draws) -> str:
    at, how = int(draws.integers(len(word))), draws.integers(4)
    letter = word[at]
    if how == 0:
        near = NEAR.get(letter.lower(), letter.lower())
        other = _one(near, draws)
        return word[:at] + (other.upper() if letter.isupper() else other) + word[at + 1 :]
    if how == 1:
        return word[:at] + word[at + 1 :]
    if how == 2:
        return word[:at] + letter + word[at:]
    at = min(at, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def ocr(pieces: Pieces, strength: float, draws: Draws) -> Pieces:
    """Of a word one letter, or two, are taken for what looks like them."""
    both = [*_ALIKE, *((b, a) for a, b in _ALIKE)]
    texts = {}
    for i in _some(free_words(pieces), strength, draws):
        word = pieces[i].text
        found = [
            (at, seen, read)
            for seen, read in both
            for at in range(len(word))
            if word.startswith(seen, at)
        ]
        if found:
            at, seen, read = _one(found, draws)
            texts[i] = word[:at] + read + word[at + len(seen) :]
    return changed(pieces, texts)


def case(pieces: Pieces, strength: float, draws: Draws) -> Pieces:
    """A word in capitals, in small letters, or with a capital."""
    texts = {}
    for i in _some(free_words(pieces), strength, draws):
        word = pieces[i].text
        others = [w for w in (word.upper(), word.lower(), word[:1].upper() + word[1:]) if w != word]
        if others:
            texts[i] = _one(others, draws)
    return changed(pieces, texts)


def punctuation(pieces: Pieces, strength: float, draws: Draws) -> Pieces:
    """Marks are left out, and others put before words, each with this probability."""
    marks = np.asarray([i for i, p in enumerate(pieces) if p.free and p.text in [*MARKS]], np.int64)
    pieces = without(pieces, _some(marks, strength, draws))
    at = np.asarray(places(pieces), np.int64)
    for i in reversed(_some(at, strength, draws)):
        pieces = put(pieces, i, _one(MARKS, draws))
    return pieces


# Those that need nothing but the text, and those that need a list of words besides.
PLAIN: dict[str, Callable[[Pieces, float, Draws], Pieces]] = {
    "swap": swap,
    "delete": delete,
    "typos": typos,
    "ocr": ocr,
    "case": case,
    "punctuation": punctuation,
}
WITH_WORDS: dict[str, Callable[[Pieces, float, Draws, Synonyms], Pieces]] = {
    "synonyms": synonyms,
    "insert": insert,
}
