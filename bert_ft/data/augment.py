"""Other versions of the training rows, with the same labels: config.data.augment.

    KIND:STRENGTH,…   in this order; noise.py has synonyms, insert (both from data.augment_words),
                      swap, delete, typos, ocr, case and punctuation; besides there are
    masked            words that a masked-word model proposes in their context (Wu et al. 2019,
                      without their labels), from data.augment_model
    paraphrase        the text as a whole, with the strength's probability, for one of
                      data.augment_paraphrases, such as translations there and back (Sennrich et al.
                      2016); it stands first, as it looks up the row's own text, and is not for
                      tags, which can't follow

What is drawn for a row depends on (data.augment_seed, version, row) alone. The versions are encoded
once and cached like any set; epoch e reads version e (epochs.py), so a resumed run is exact.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_ft.data import noise
from bert_ft.data.pieces import OUTSIDE, Pieces, as_text, changed, cut_list, cut_text
from bert_ft.data.rows import Readable, Rows
from bert_ft.data.word_lists import digest, is_function, paraphrased, read_listed
from bert_ft.errors import InputError

BLOCK = 4096  # rows that are changed at a time: in pieces they are large
VERSION = 3  # of what is drawn: raise it when the same settings make other texts
GIVEN = {  # what a kind reads, and the kinds that do
    "augment_words": tuple(noise.WITH_WORDS),
    "augment_model": ("masked",),
    "augment_paraphrases": ("paraphrase",),
}
KINDS = (*noise.PLAIN, *(kind for kinds in GIVEN.values() for kind in kinds))

Draws = Mapping[int, np.random.Generator]  # a row's own
# Of texts, and of the places in each whose words are hidden: (word, probability) for each place,
# the likeliest first.
Proposals = list[list[list[tuple[str, float]]]]
Propose = Callable[[Sequence[Pieces], Sequence[Sequence[int]]], Proposals]


def steps(text: str) -> list[tuple[str, float]]:
    """data.augment -> (kind, strength from 0 to 1), in order. InputError on what is none."""
    found: list[tuple[str, float]] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        kind, _, number = part.partition(":")
        try:
            strength = float(number)
        except ValueError:
            strength = -1.0
        if kind not in KINDS or not 0 <= strength <= 1:
            raise InputError(
                f"config.data.augment has {part!r}; accepted: KIND:STRENGTH, a strength from 0 to "
                f"1 and a kind of {', '.join(KINDS)}"
            )
        if kind == "paraphrase" and found:
            raise InputError(
                f"config.data.augment is {text!r}; accepted: paraphrase before {found[0][0]}: "
                "paraphrases are looked up by the row's own text"
            )
        found.append((kind, strength))
    return found


@dataclasses.dataclass(frozen=True)
class Augmented:
    """The rows of `source` in `versions` versions, one after the other. `texts` are the columns
    that change; `tags` that of the tags or spans which move with them, '' for none. `propose` and
    `model`, its digest, are of 'masked'."""

    source: Readable
    kinds: tuple[tuple[str, float], ...]
    versions: int
    share: float
    seed: int
    texts: tuple[str, ...]
    tags: str = ""
    words: str = ""
    paraphrases: str = ""
    propose: Propose | None = None
    model: str = ""

    @property
    def uri(self) -> str:
        return self.source.uri

    def fingerprint(self) -> str:
        what = [
            *(VERSION, self.source.fingerprint(), self.kinds, self.versions, self.share, self.seed),
            *(self.texts, self.tags, self.model),
            digest("data.augment_words", self.words),
            digest("data.augment_paraphrases", self.paraphrases),
        ]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def read(self) -> Rows:
        """All versions: row v * N + i is version v of row i of N."""
        rows = self.source.read()
        count = len(rows)
        out = rows.take(list(range(count)) * self.versions)
        known: dict[str, list[str]] = {}
        if self.words:
            listed = read_listed("data.augment_words", self.words, "word", "synonyms")
            for word, others in listed.items():
                mine = known.setdefault(word.lower(), [])
                mine += [other for other in others if other not in mine]
        self._require_listed(rows, known)
        # The share is drawn for the row, so that both texts of a pair change, or neither.
        some = [
            k for k in range(len(out)) if _draws(self.seed, *divmod(k, count)).random() < self.share
        ]
        for c, column in enumerate(self.texts, 1):
            rows.column(column)  # says where a row has none
            changes = not self.tags
            for first in range(0, len(some), BLOCK):
                draws = {
                    k: _draws(self.seed, *divmod(k, count), c) for k in some[first : first + BLOCK]
                }
                pieces = self._cut(out, column, draws)
                changes = changes or _any_free(pieces)
                self._change(out, column, draws, pieces, known)
            every = {} if changes or count == 1 else self._cut(out, column, range(count))
            if every and not _any_free(every):
                raise InputError(
                    f"config.data.augment: every word of {self.uri} is tagged other than "
                    f"{OUTSIDE!r}, and such words stay as they are; accepted: '' for these tags"
                )
        return out

    def _require_listed(self, rows: Rows, known: noise.Synonyms) -> None:
        """Raises InputError where the rows have no word of data.augment_words, or no text of a file
        data.augment_paraphrases: all versions would be the rows as they are."""

        def cut() -> Iterator[Pieces]:
            for column in self.texts:
                for i in range(len(rows.column(column))):
                    yield from self._cut(rows, column, [i]).values()

        key = "data.augment_paraphrases"
        if self.words and not any(noise.listed(pieces, known) for pieces in cut()):
            raise InputError(
                f"config.data.augment_words: {self.words} has no word of {self.uri}; accepted: a "
                "list with words of the texts, in small or large letters"
            )
        if self.paraphrases and not is_function(self.paraphrases):
            texts = paraphrased(key, self.paraphrases, ())
            if not any(texts.get(as_text(pieces)[0].strip()) for pieces in cut()):
                raise InputError(
                    f"config.{key}: {self.paraphrases} has no text of {self.uri}; accepted: a file "
                    "whose first column is texts as the rows have them"
                )

    def _cut(self, out: Rows, column: str, wanted: Iterable[int]) -> dict[int, Pieces]:
        """The `wanted` rows of a column, in pieces."""
        values, labels = out.columns[column], out.columns.get(self.tags)
        cut: dict[int, Pieces] = {}
        for i in wanted:
            pieces = _cut(values[i], labels[i] if labels else None, bool(self.tags))
            if pieces is not None:
                cut[i] = pieces
        return cut

    def _change(
        self,
        out: Rows,
        column: str,
        draws: Draws,
        cut: dict[int, Pieces],
        known: noise.Synonyms,
    ) -> None:
        """Changes the rows `draws` of a column, which are there in pieces."""
        values, labels = out.columns[column], out.columns.get(self.tags)
        for kind, strength in self.kinds:
            if kind == "masked":
                cut = self._masked(cut, strength, draws)
            elif kind == "paraphrase":
                cut = self._paraphrased(cut, strength, draws)
            elif kind in noise.WITH_WORDS:
                change = noise.WITH_WORDS[kind]
                cut = {i: change(p, strength, draws[i], known) for i, p in cut.items()}
            else:
                cut = {i: noise.PLAIN[kind](p, strength, draws[i]) for i, p in cut.items()}
        for i, pieces in cut.items():
            if isinstance(values[i], str):
                values[i], spans = as_text(pieces)
            else:
                values[i], spans = [p.text for p in pieces], [p.tag for p in pieces]
            if labels and self.tags:
                labels[i] = spans

    def _masked(self, cut: dict[int, Pieces], strength: float, draws: Draws) -> dict[int, Pieces]:
        assert self.propose is not None
        hidden = {i: noise.chosen(p, strength, draws[i]) for i, p in cut.items()}
        asked = [i for i, places in hidden.items() if places]
        proposed = self.propose([cut[i] for i in asked], [hidden[i] for i in asked])
        out = dict(cut)
        for i, lists in zip(asked, proposed, strict=True):
            texts = {}
            for place, words in zip(hidden[i], lists, strict=True):
                word = cut[i][place].text
                others = [(w, p) for w, p in words if w.lower() != word.lower()]
                if others:
                    chance = np.asarray([p for _, p in others])
                    k = draws[i].choice(len(others), p=chance / chance.sum())
                    texts[place] = noise.like(others[k][0], word)
            out[i] = changed(cut[i], texts)
        return out

    def _paraphrased(
        self, cut: dict[int, Pieces], strength: float, draws: Draws
    ) -> dict[int, Pieces]:
        texts = {i: as_text(p)[0].strip() for i, p in cut.items()}
        key, asked = "data.augment_paraphrases", list(dict.fromkeys(texts.values()))
        known = paraphrased(key, self.paraphrases, asked)
        out = dict(cut)
        for i, text in texts.items():
            if (others := known.get(text)) and draws[i].random() < strength:
                out[i] = cut_text(others[draws[i].integers(len(others))])
        return out


def _any_free(cut: Mapping[int, Pieces]) -> bool:
    """Whether a piece may change."""
    return any(not piece.fixed for pieces in cut.values() for piece in pieces)


def _draws(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _cut(value: Any, label: Any, tagged: bool) -> Pieces | None:
    """A row's text, or words, as pieces. None for what is neither and for labels that don't fit:
    the task says what is wrong with them, in the words of its own that name the line."""
    label = label.tolist() if isinstance(label, np.ndarray) else label
    value = value.tolist() if isinstance(value, np.ndarray) else value
    try:
        if isinstance(value, str):
            return cut_text(value, label if tagged else ())
        if not all(isinstance(word, str) for word in value):
            return None
        return cut_list(value, label if tagged else None)
    except (TypeError, ValueError, KeyError, IndexError):
        return None


def augmented(config: ConfigDict, source: Readable, tags: str) -> Augmented | None:
    """The source as config.data says; None where nothing is to change. `tags` as in Augmented; the
    model of 'masked' is left to be set."""
    d = config.data
    kinds = tuple((kind, strength) for kind, strength in steps(d.augment) if strength > 0)
    if not kinds or d.augment_share == 0:
        return None
    return Augmented(
        source,
        kinds,
        d.augment_epochs,
        d.augment_share,
        d.augment_seed,
        tuple(c for c in (d.text, d.text_pair) if c),
        tags,
        d.augment_words if {kind for kind, _ in kinds} & set(noise.WITH_WORDS) else "",
        d.augment_paraphrases if any(kind == "paraphrase" for kind, _ in kinds) else "",
    )
