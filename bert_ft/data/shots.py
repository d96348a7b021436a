"""Few shots: a part of the training rows that is a function of a seed, and grows with its size.

Where a row may have several labels it is a shot of each of them, so a label may have more than it
asks for, but none is missing: dev and test may have any label of the training rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from bert_ft.data.columns import shown
from bert_ft.data.rows import Readable, Rows, labels_in, plain, written
from bert_ft.errors import InputError

NONE = ""  # the label of rows that have none


@dataclass(frozen=True)
class FewShots:
    """`count` rows for each value of the column `label`, or in all where that is ''. `labels_of`
    finds a row's labels where it may have several, by the delimiter `split`, or none; of rows that
    have none there may be fewer."""

    source: Readable
    count: int
    seed: int
    label: str = ""
    labels_of: Callable[[Rows], Sequence[Collection[str]]] | None = None
    split: str = ""

    @property
    def uri(self) -> str:
        return self.source.uri

    def fingerprint(self) -> str:
        what = [self.source.fingerprint(), self.count, self.seed, self.label]
        what += [self.split] if self.labels_of else []
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def read(self) -> Rows:
        """The chosen rows in their order in the source. InputError where a label has too few."""
        rows = self.source.read()
        labels = self._labels(rows)
        order = np.random.default_rng(self.seed).permutation(len(rows))
        found: dict[str, list[int]] = {label: [] for label in sorted({*chain(*labels)})}
        for i in order:
            for label in labels[i]:
                found[label].append(int(i))
        few = {label: len(chosen) for label, chosen in found.items() if len(chosen) < self.count}
        if self.labels_of:
            few.pop(NONE, None)
        if few and self.label:
            told = shown([f"{label!r} has {n}" for label, n in few.items()])
            raise InputError(
                f"config.data.shots is {self.count}; accepted: at most {min(few.values())}: of "
                f"the labels of {self.uri} {told} rows"
            )
        if few:
            raise InputError(
                f"config.data.shots is {self.count}; accepted: at most {len(rows)}, the rows of "
                f"{self.uri}"
            )
        return rows.take(sorted({i for chosen in found.values() for i in chosen[: self.count]}))

    def _labels(self, rows: Rows) -> list[Collection[str]]:
        """Of each row."""
        if self.labels_of:
            return [own or (NONE,) for own in self.labels_of(rows)]
        if self.label:
            return [(plain(written(v)),) for v in labels_in(rows, self.label)]
        return [(NONE,)] * len(rows)
