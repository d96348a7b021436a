"""Few shots: a part of the training rows that is a function of a seed, and grows with its size."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from bert_ft.data.columns import shown
from bert_ft.data.rows import Readable, Rows, written
from bert_ft.errors import InputError


@dataclass(frozen=True)
class FewShots:
    """`count` rows for each value of the column `label`, or in all where that is ''."""

    source: Readable
    count: int
    seed: int
    label: str = ""

    @property
    def uri(self) -> str:
        return self.source.uri

    def fingerprint(self) -> str:
        what = [self.source.fingerprint(), self.count, self.seed, self.label]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def read(self) -> Rows:
        """The chosen rows in their order in the source. InputError where a label has too few."""
        rows = self.source.read()
        labels = [written(v) for v in rows.column(self.label)] if self.label else [""] * len(rows)
        order = np.random.default_rng(self.seed).permutation(len(rows))
        found: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
        for i in order:
            found[labels[i]].append(int(i))
        few = {label: len(chosen) for label, chosen in found.items() if len(chosen) < self.count}
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
        return rows.take(sorted(i for chosen in found.values() for i in chosen[: self.count]))
