"""A row's text as words that can be changed, moved and left out, and as a text again.

What is annotated stays: the words of an entity (tagged other than O, or within a character span)
are `fixed`, and so is, as `held`, what leans on an entity without a blank, lest a span come to end
inside a word. `without` and `put` keep to two rules, under which any scheme's tags stay legal and
spell the same entities (IOB1 and plain tags would else join two of them):

    between two entities stays a word that is of none, and none comes between two words of entities.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

OUTSIDE = "O"
# Chinese characters are words, as BERT's tokenizer has them (Devlin et al., tokenization.py).
_CHINESE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Accents, vowel signs and the like (all are in these two ranges), and the zero-width joiners.
_MARKS = "\u200c\u200d" + "".join(
    chr(c)
    for c in chain(range(0x300, 0x20000), range(0xE0100, 0xE01F0))
    if unicodedata.category(chr(c)).startswith("M")
)
_LETTERS = rf"[^\W{_CHINESE}]+(?:[{_MARKS}]+[^\W{_CHINESE}]*)*"
_JOINED = rf"{_LETTERS}(?:(?<=\d)[.,:](?=\d){_LETTERS})*"  # 3.5, 10:30 and v2.0
_WORD = re.compile(rf"[{_CHINESE}]|{_JOINED}(?:['’-]{_JOINED})*|[^\w\s]")
_AT_END = re.compile(rf"[^\W_{_CHINESE}][{_MARKS}]*\Z")
_AT_BEGINNING = re.compile(rf"[^\W_{_CHINESE}]")


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """A word, a punctuation mark, or a whole annotated span. `gap` stands before it; `tag` is its
    tag, or its span, as the row has it."""

    text: str
    gap: str = " "
    tag: Any = None
    fixed: bool = False
    held: bool = False

    @property
    def free(self) -> bool:
        return not (self.fixed or self.held)

    @property
    def is_word(self) -> bool:
        return any(c.isalnum() for c in self.text)


Pieces = list[Piece]


def cut_text(text: str, spans: Sequence[Any] = ()) -> Pieces:
    """Of a text with character spans, each {'start', 'end', …} or (start, end, …), in their order.
    ValueError, TypeError or KeyError where they are no spans of the text, one after the other."""
    pieces: Pieces = []
    at = 0

    def words(start: int, stop: int) -> int:
        last = start
        for match in _WORD.finditer(text, start, stop):
            pieces.append(Piece(match[0], text[last : match.start()]))
            last = match.end()
        return last

    for span in sorted(spans, key=_begin):
        start, end = _begin(span), _end(span)
        if not at <= start < end <= len(text):
            raise ValueError(span)
        last = words(at, start)
        pieces.append(Piece(text[start:end], text[last:start], span, fixed=True))
        at = end
    last = words(at, len(text))
    if last < len(text):  # blanks at the end
        pieces.append(Piece("", text[last:], held=True))
    for i, (one, other) in enumerate(zip(pieces, pieces[1:], strict=False)):
        if not other.gap and one.fixed != other.fixed:
            k = i if other.fixed else i + 1
            pieces[k] = dataclasses.replace(pieces[k], held=True)
    return pieces


def cut_list(words: Sequence[str], tags: Sequence[str] | None = None) -> Pieces:
    """Of a list of words, with a tag each where they are tagged."""
    if tags is None:
        return [Piece(word) for word in words]
    return [
        Piece(word, tag=tag, fixed=tag != OUTSIDE) for word, tag in zip(words, tags, strict=True)
    ]


def as_text(pieces: Sequence[Piece]) -> tuple[str, list[Any]]:
    """(the text, its spans at their new places, each in the form that it had)."""
    text, spans = "", []
    for piece in pieces:
        text += piece.gap
        if piece.fixed:
            spans.append(_moved(piece.tag, len(text), len(text) + len(piece.text)))
        text += piece.text
    return text, spans


def _begin(span: Any) -> int:
    return span["start"] if isinstance(span, Mapping) else span[0]


def _end(span: Any) -> int:
    return span["end"] if isinstance(span, Mapping) else span[1]


def _moved(span: Any, start: int, end: int) -> Any:
    if isinstance(span, Mapping):
        return {**span, "start": start, "end": end}
    return [start, end, *span[2:]]


def without(pieces: Sequence[Piece], dropped: Collection[int]) -> Pieces:
    """Less those, but for what has to stay; one word is left at least."""
    kept: Pieces = []
    gap: str | None = None  # of the first that was dropped before this one
    for i, piece in enumerate(pieces):
        after = pieces[i + 1] if i + 1 < len(pieces) else None
        divides = bool(kept and kept[-1].fixed and after and after.fixed)
        last = not kept and not (after and after.text)
        if i in dropped and piece.free and not divides and not last:
            gap = piece.gap if gap is None else gap
            continue
        if gap is not None and not kept:
            piece = dataclasses.replace(piece, gap=gap)
        elif gap is not None and not piece.gap:
            # An entity may end in a symbol, as "Acme™"; of the others only words would join.
            if kept[-1].fixed or piece.fixed:
                piece = dataclasses.replace(piece, gap=gap)
            elif _AT_END.search(kept[-1].text) and _AT_BEGINNING.match(piece.text):
                piece = dataclasses.replace(piece, gap=gap or " ")
        kept.append(piece)
        gap = None
    return kept


def places(pieces: Sequence[Piece]) -> list[int]:
    """Where a word may be put, before piece i, or at the end."""
    return [
        i
        for i in range(len(pieces) + 1)
        if any(not p.fixed and p.text for p in pieces[max(i - 1, 0) : i + 1])
        and (i in (0, len(pieces)) or bool(pieces[i].gap))
    ]


def put(pieces: Sequence[Piece], at: int, text: str) -> Pieces:
    """With a word of no entity before piece `at`, one of `places(pieces)`."""
    like = next(p for p in pieces[max(at - 1, 0) : at + 1] if not p.fixed and p.text)
    new = dataclasses.replace(like, text=text, gap=" ", held=False)
    rest = list(pieces[at:])
    if at < len(pieces):
        new = dataclasses.replace(new, gap=pieces[at].gap)
    if at == 0 and not (rest and rest[0].gap):
        rest[:1] = [dataclasses.replace(p, gap=" ") for p in rest[:1]]
    return [*pieces[:at], new, *rest]


def changed(pieces: Sequence[Piece], texts: Mapping[int, str]) -> Pieces:
    """With other texts in these places."""
    return [
        dataclasses.replace(piece, text=texts[i]) if i in texts else piece
        for i, piece in enumerate(pieces)
    ]


def free_words(pieces: Sequence[Piece]) -> np.ndarray:
    """int (n,): the places of the words that may be changed."""
    return np.asarray([i for i, p in enumerate(pieces) if p.free and p.is_word], np.int64)
