"""batch = f(seed, step): any step's batch can be computed at a prompt; nothing needs saving.

A batch is a dict of NumPy arrays. Over R rows of S tokens, B examples of `pieces` sequences each:

    tokens, types, positions, segments   int32 (R, S)   positions restart at each sequence;
                                                        segments number the batch's sequences from 1
    slots           int32 (R, E)    column of each sequence's first token, at most E a row
    example_slot    int32 (B*pieces,)   flat index into (R, E) of each sequence
    example_start   int32 (B*pieces,)   flat index into (R, S) of each sequence's first token
    example_length  int32 (B*pieces,)   tokens of each sequence
    ordinal         int32 (B,)      the segment number of each example's first sequence
    weight          float32 (B,)    1 for an example, 0 for one without a label (unlabelled.py) and
                                    for the filling of a last evaluation batch
    and the task's own fields, (B, …) or (R, S).

What a task draws afresh each time an example is used, such as which words are hidden, is drawn here
as well, on the host (`Draw`): so it is a part of batch = f(seed, step).

With gradient accumulation every array gains a leading axis of micro-batches.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bert_ft.data.encode import Encoded
from bert_ft.data.epochs import Order
from bert_ft.data.mixing import Mixture
from bert_ft.data.packing import Places, pack, row_counts
from bert_ft.data.unlabelled import LABELLED

Batch = dict[str, np.ndarray]
ROW_ARRAYS = frozenset({"tokens", "types", "positions", "segments", "slots"})


@dataclasses.dataclass(frozen=True)
class Shape:
    """What fixes a compiled program: rows, tokens a row, sequence slots a row, examples; and which
    arrays of the batch are by row, the others being by example."""

    rows: int
    row_length: int
    slots: int
    examples: int
    row_arrays: frozenset[str]


class Draw(Protocol):
    """A task's optional `draw`: what it changes in a batch, (micro-)batch by batch.

    `batch` may hold only some rows, those of this host; the arrays that are added must be by row,
    and are named in `row_arrays`. Their shapes may depend on `shape` and on the shapes of data's
    fields, so that they are the same on each host and at each step. `seed` is the run's; None in an
    evaluation, where an example is always drawn alike. `uses` int64 (B,) tells the uses of examples
    apart: in training the place in the stream of all epochs, in an evaluation the example's number.
    """

    row_arrays: frozenset[str]

    def __call__(
        self, batch: Batch, data: Encoded, shape: Shape, seed: int | None, uses: np.ndarray
    ) -> Batch: ...


def _row_arrays(data: Encoded, draw: Draw | None) -> frozenset[str]:
    return ROW_ARRAYS | frozenset(data.token_fields) | (draw.row_arrays if draw else frozenset())


def _assemble(
    data: Encoded,
    examples: np.ndarray,
    places: Places,
    k: int,
    shape: Shape,
    first_segment: int,
    rows: range,
) -> Batch:
    """One micro-batch: `examples` (B,), -1 where there is none, laid out as places' batch k says.
    Row arrays hold only `rows`, and only their tokens are read."""
    real = examples >= 0
    index = np.where(real, examples, 0)
    sequence = (index[:, None] * data.pieces + np.arange(data.pieces)).reshape(-1)
    row, column, slot = places.row[k], places.column[k], places.slot()[k]
    here = (row >= rows.start) & (row < rows.stop) & np.repeat(real, data.pieces)
    begin = data.offsets[sequence[here]]
    length = data.offsets[sequence[here] + 1] - begin
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    source = np.repeat(begin, length) + within
    base = (row[here] - rows.start) * shape.row_length + column[here]
    target = np.repeat(base, length) + within

    def rows_of(values: np.ndarray) -> np.ndarray:
        out = np.zeros((len(rows) * shape.row_length, *values.shape[1:]), np.dtype(values.dtype))
        out[target] = values
        return out.reshape(len(rows), shape.row_length, *values.shape[1:])

    slots = np.zeros((len(rows), shape.slots), np.int32)
    slots[row[here] - rows.start, slot[here]] = column[here]
    ordinal = np.flatnonzero(here).astype(np.int32)
    batch = {
        "tokens": rows_of(data.tokens[source]),
        "types": rows_of(data.types[source].astype(np.int32)),
        "positions": rows_of(within.astype(np.int32)),
        "segments": rows_of(np.repeat(first_segment + ordinal, length).astype(np.int32)),
        "slots": slots,
        "example_slot": (row * shape.slots + slot).astype(np.int32),
        "example_start": (row * shape.row_length + column).astype(np.int32),
        "example_length": data.lengths.reshape(-1)[sequence],
        "ordinal": (first_segment + np.arange(len(examples)) * data.pieces).astype(np.int32),
        "weight": real.astype(np.float32),
    }
    batch |= {name: np.asarray(values[index]) for name, values in data.fields.items()}
    if LABELLED in batch:
        batch["weight"] *= batch[LABELLED]
    batch |= {
        name: rows_of(np.asarray(values[source])) for name, values in data.token_fields.items()
    }
    return batch


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the batches of several plans need in common: rows int (steps,) at each step, `slots` in
    a row, and the row `counts` that are compiled."""

    rows: np.ndarray
    slots: int
    counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """The training batches of a run. `multiple`: rows are a multiple of it (the data shards).
    `together`: what they need with those of other plans, whose batches then have one shape."""

    data: Encoded
    batch_size: int
    steps: int
    row_length: int
    seed: int = 0
    packed: bool = True
    accumulate: int = 1
    multiple: int = 1
    at_most: int = 3
    mixture: Order | None = None  # of a set of several groups, versions or quotas
    draw: Draw | None = None
    together: Needs | None = None

    def examples(self, step: int) -> np.ndarray:
        """int64 (batch_size,): the examples of a step. Epochs follow each other without a gap, so
        none is dropped and every batch is full."""
        return self._stream(step * self.batch_size, (step + 1) * self.batch_size)

    def _stream(self, start: int, stop: int) -> np.ndarray:
        mixture = self.mixture or Mixture((len(self.data),))
        return mixture.stream(self.seed, start, stop)

    def _pack(self, examples: np.ndarray) -> Places:
        """Examples of whole steps -> places of their micro-batches."""
        micro = self.batch_size // self.accumulate * self.data.pieces
        return pack(self.data.lengths[examples].reshape(-1, micro), self.row_length, self.packed)

    @functools.cached_property
    def _needs(self) -> tuple[np.ndarray, int]:
        """(rows needed by each step, most sequences in a row), over the whole run."""
        if self.together:
            return self.together.rows, self.together.slots
        rows, slots, block = [], 1, max(1, 2**20 // self.batch_size)
        for first in range(0, self.steps, block):
            last = min(first + block, self.steps)
            places = self._pack(self._stream(first * self.batch_size, last * self.batch_size))
            rows.append(places.rows.reshape(last - first, self.accumulate).max(axis=1))
            slots = max(slots, int(places.slot().max()) + 1)
        return np.concatenate(rows), slots

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """The row counts, hence compiled programs, of the whole run."""
        if self.together:
            return self.together.counts
        return row_counts(self._needs[0], self.at_most, self.multiple)

    def shape(self, step: int) -> Shape:
        rows = next(c for c in self.counts if c >= self._needs[0][step])
        slots = -(-self._needs[1] // 4) * 4
        return Shape(
            rows,
            self.row_length,
            slots,
            self.batch_size // self.accumulate,
            _row_arrays(self.data, self.draw),
        )

    def tokens(self, step: int) -> int:
        """Real tokens in the batch of a step."""
        return int(self.data.lengths[self.examples(step)].sum())

    def first_step_of(self, rows: int) -> int:
        """A step whose batch has this row count."""
        return next(s for s in range(self.steps) if self.shape(s).rows == rows)

    def batch(self, step: int, rows: range | None = None) -> Batch:
        """The batch of a step; with `rows`, row arrays hold those rows only."""
        shape, examples = self.shape(step), self.examples(step)
        places = self._pack(examples)
        micro = examples.reshape(self.accumulate, -1)
        per = micro.shape[1] * self.data.pieces
        parts = [
            _assemble(self.data, micro[a], places, a, shape, 1 + a * per, rows or range(shape.rows))
            for a in range(self.accumulate)
        ]
        if self.draw:
            uses = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
            uses = uses.reshape(micro.shape)
            parts = [
                self.draw(part, self.data, shape, self.seed, uses[a])
                for a, part in enumerate(parts)
            ]
        if self.accumulate == 1:
            return parts[0]
        return {name: np.stack([p[name] for p in parts]) for name in parts[0]}


def in_waves(plans: Sequence[BatchPlan], waves: Sequence[range]) -> list[BatchPlan]:
    """Plans of equal settings but the seed -> the same, with one shape a step in each wave, and the
    same row counts in all."""
    needs = [plan._needs for plan in plans]
    slots = max(slots for _, slots in needs)
    rows = [np.max([needs[k][0] for k in wave], axis=0) for wave in waves]
    first = plans[0]
    counts = row_counts(np.concatenate(rows), first.at_most, first.multiple)
    return [
        dataclasses.replace(plans[k], together=Needs(most, slots, counts))
        for wave, most in zip(waves, rows, strict=True)
        for k in wave
    ]


@dataclasses.dataclass(frozen=True)
class EvalPlan:
    """Batches that hold every example exactly once, all of one shape.

    Examples are dealt out in the order of their lengths, like cards, so all batches need nearly the
    same number of rows; the last place of some batches stays empty with weight 0.
    """

    data: Encoded
    batch_size: int
    row_length: int
    packed: bool = True
    multiple: int = 1
    draw: Draw | None = None

    @functools.cached_property
    def order(self) -> np.ndarray:
        """int64 (steps, B): examples, -1 for none."""
        count = len(self.data)
        size = min(self.batch_size, count)
        steps = -(-count // size)
        by_length = np.argsort(-self.data.lengths.sum(axis=1), kind="stable")
        dealt = np.full(steps * size, -1, np.int64)
        dealt[:count] = by_length
        return dealt.reshape(size, steps).T.copy()

    @property
    def steps(self) -> int:
        return len(self.order)

    @functools.cached_property
    def _places(self) -> Places:
        lengths = np.where(self.order[..., None] >= 0, self.data.lengths[self.order], 1)
        return pack(lengths.reshape(self.steps, -1), self.row_length, self.packed)

    @functools.cached_property
    def shape(self) -> Shape:
        rows = -(-int(self._places.rows.max()) // self.multiple) * self.multiple
        slots = -(-(int(self._places.slot().max()) + 1) // 4) * 4
        return Shape(
            rows,
            self.row_length,
            slots,
            self.order.shape[1],
            _row_arrays(self.data, self.draw),
        )

    def batch(self, step: int, rows: range | None = None) -> Batch:
        rows, examples = rows or range(self.shape.rows), self.order[step]
        made = _assemble(self.data, examples, self._places, step, self.shape, 1, rows)
        if self.draw is None:
            return made
        return self.draw(made, self.data, self.shape, None, np.maximum(examples, 0))
