"""Texts without labels beside the labelled ones: each batch has a fixed share of them, in its last
places, where methods/pseudo.py and methods/uda.py look for them.

An example without a label has the weight 0, so that no loss of a label counts it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bert_ft.data.encode import Encoded
from bert_ft.data.epochs import Epochs, Order
from bert_ft.data.mixing import endless
from bert_ft.data.rows import Rows

LABELLED = "labelled"  # of a batch: float32 (B,), 1 for an example with a label, 0 for one without
STREAM = 0x554C  # beside the run's seed: what no other stream is drawn from


@dataclasses.dataclass(frozen=True)
class Beside:
    """A set of `labelled` examples, then `rows` without labels, then `versions` changed versions of
    those, one after the other. In each `micro` examples the last `free` have no label; with
    versions these are pairs, a text and its changed one next to each other. `count` is that of the
    labelled examples.

    An epoch is one of the labelled examples. Epoch e of the others, which are another stream, pairs
    with version e. As in mixing.py any stretch can be computed without what comes before.
    """

    labelled: Order
    count: int
    rows: int
    versions: int
    micro: int
    free: int

    @property
    def sizes(self) -> Sequence[float]:
        """Draws in an epoch of each block of the labelled."""
        return [n * self.micro / (self.micro - self.free) for n in self.labelled.sizes]

    def stream(self, seed: int, start: int, stop: int) -> np.ndarray:
        """int64 (stop - start,): examples at places start … stop - 1 of the endless stream."""
        first, last = start // self.micro, -(-stop // self.micro)
        own = self.micro - self.free
        labelled = self.labelled.stream(seed, first * own, last * own).reshape(-1, own)
        texts = self.free // 2 if self.versions else self.free
        drawn = endless((seed, STREAM), self.rows, first * texts, last * texts)
        if self.versions:
            version = np.arange(first * texts, last * texts) // self.rows % self.versions
            drawn = np.stack([drawn, drawn + self.rows * (1 + version)], axis=1)
        free = self.count + drawn.reshape(-1, self.free)
        every = np.concatenate([labelled, free], axis=1).reshape(-1)
        return every[start - first * self.micro : stop - first * self.micro]


@dataclasses.dataclass(frozen=True)
class TextsOf:
    """A task's encoder, or that of tasks which share rows, for rows whose `labels`, these columns,
    are not looked at where there are any."""

    task: Any
    labels: tuple[str, ...]

    def signature(self) -> dict[str, Any]:
        return {**self.task.signature(), "columns": self.columns(), "labels": False}

    def columns(self) -> list[str]:
        return [c for c in self.task.columns() if c not in self.labels]

    def fit(self, rows: Rows) -> dict[str, Any]:
        raise NotImplementedError("labels are learnt from rows that have them")

    def encode(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        texts = {k: v for k, v in rows.columns.items() if k not in self.labels}
        rows = dataclasses.replace(rows, columns=texts)
        return self.task.encode(rows, tokenizer, max_length, fitted)


def joined(
    data: Encoded, texts: Sequence[Encoded], micro: int, free: int, order: Order | None = None
) -> Encoded:
    """`data` with the examples of `texts`, encoded by TextsOf, behind its own: the rows, and where
    there is a second set their versions; all have one example a row. `order` is that of `data`,
    where it is not its own. Fields of single tokens, which
    no task with such texts reads, are left out."""
    sets = [data, *texts]
    counts = [len(one) for one in sets]
    beside = Beside(
        order or data.order or Epochs((len(data),)),
        counts[0],
        counts[1],
        counts[2] // counts[1] if len(texts) > 1 else 0,
        micro,
        free,
    )
    fields = {
        name: np.concatenate([values, np.zeros((sum(counts[1:]), *values.shape[1:]), values.dtype)])
        for name, values in data.fields.items()
    }
    fields[LABELLED] = np.repeat(np.asarray([1, 0], np.float32), [counts[0], sum(counts[1:])])
    about = [*(one.fingerprint for one in sets), micro, free]
    return dataclasses.replace(
        data,
        tokens=np.concatenate([one.tokens for one in sets]),
        types=np.concatenate([one.types for one in sets]),
        offsets=np.cumsum([0, *np.concatenate([np.diff(one.offsets) for one in sets])]),
        row=np.concatenate([data.row, np.full(sum(counts[1:]), -1)]),
        truncated=np.concatenate([one.truncated for one in sets]),
        fields=fields,
        token_fields={},
        order=beside,
        fingerprint=hashlib.sha256(json.dumps(about).encode()).hexdigest(),
    )
