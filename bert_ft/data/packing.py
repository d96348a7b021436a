"""Lengths -> places. NumPy only.

Short examples share rows of S tokens, first-fit decreasing: the longest first, each into the first
row with room (Johnson 1973: at most 11/9 of the fewest rows, plus 6/9). Many batches are packed at
once, so that a whole run's row counts are known before its first step.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class Places:
    """Where each of B examples of each of K batches lies. int32 (K, B), (K, B), (K,)."""

    row: np.ndarray
    column: np.ndarray
    rows: np.ndarray

    def slot(self) -> np.ndarray:
        """Which one of its row's examples each is, from the left. int32 (K, B)."""
        return self._slot

    @functools.cached_property
    def _slot(self) -> np.ndarray:
        order = np.lexsort((self.column, self.row), axis=-1)
        sorted_row = np.take_along_axis(self.row, order, axis=-1)
        at = np.arange(self.row.shape[-1])
        first = np.concatenate(
            [
                np.ones((*sorted_row.shape[:-1], 1), bool),
                sorted_row[..., 1:] != sorted_row[..., :-1],
            ],
            axis=-1,
        )
        start = np.maximum.accumulate(np.where(first, at, 0), axis=-1)
        out = np.empty_like(self.row)
        np.put_along_axis(out, order, (at - start).astype(np.int32), axis=-1)
        return out


def shortest_row(longest: int, platform: str) -> int:
    """The row length that holds the longest sequence, for attention costs rows x length squared. In
    whole vectors of the machine: 16 on a CPU, 128 lanes on a TPU (and no worse on a GPU)."""
    lane = 16 if platform == "cpu" else 128
    return -(-longest // lane) * lane


def pack(lengths_KxB: np.ndarray, row_length: int, shared: bool = True) -> Places:
    """First-fit decreasing of each of K batches of B lengths; shared=False gives each its own row.

    Raises ValueError for a length over `row_length` or under 1.
    """
    lengths = np.asarray(lengths_KxB, np.int32)
    batches, count = lengths.shape
    if count and (lengths.max(initial=0) > row_length or lengths.min(initial=1) < 1):
        raise ValueError(
            f"lengths must lie in 1..{row_length}, seen {lengths.min()}..{lengths.max()}"
        )
    if not shared:
        row = np.broadcast_to(np.arange(count, dtype=np.int32), lengths.shape).copy()
        return Places(row, np.zeros_like(row), np.full(batches, count, np.int32))
    order = np.argsort(-lengths, axis=1, kind="stable")
    # At least half of every row but one is filled, so this many rows always suffice.
    most = int(
        min(count, (2 * lengths.sum(axis=1, dtype=np.int64).max(initial=0)) // row_length + 1)
    )
    # The same places either way: an array operation a length, or one an example.
    few = 4 * np.count_nonzero(np.bincount(lengths.reshape(-1))) < count
    place = _by_length if few else _by_example
    row, column = place(np.take_along_axis(lengths, order, axis=1), most, row_length)
    out = np.empty((2, *lengths.shape), np.int32)
    np.put_along_axis(out[0], order, row, axis=1)
    np.put_along_axis(out[1], order, column, axis=1)
    return Places(out[0], out[1], (row.max(axis=1) + 1).astype(np.int32))


def _by_example(
    falling_KxB: np.ndarray, most: int, row_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(row, column), int32 (K, B), of lengths that fall: the j-th of all batches at once."""
    room = np.full((len(falling_KxB), most), row_length, np.int32)
    row, column = np.empty_like(falling_KxB), np.empty_like(falling_KxB)
    at, opened = np.arange(len(falling_KxB)), 0
    for j, length in enumerate(falling_KxB.T):
        chosen = np.argmax(room[:, : opened + 1] >= length[:, None], axis=1)
        opened = max(opened, int(chosen.max()) + 1)
        row[:, j] = chosen
        column[:, j] = row_length - room[at, chosen]
        room[at, chosen] -= length
    return row, column


def _by_length(
    falling_KxB: np.ndarray, most: int, row_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same, for many examples of few lengths: those of one length fill the first row that has
    room for one with as many as it holds, then the next."""
    room = np.full((len(falling_KxB), most), row_length, np.int32)
    row, column = np.empty_like(falling_KxB), np.empty_like(falling_KxB)
    opened = 0
    for length in np.flatnonzero(np.bincount(falling_KxB.reshape(-1)))[::-1]:
        mine = falling_KxB == length
        count = mine.sum(axis=1, dtype=np.int32)[:, None]
        top = min(most, opened - -int(count.max()) // (row_length // int(length)))
        free = room[:, :top]
        holds = free // length
        taken = np.clip(count - (np.cumsum(holds, axis=1) - holds), 0, holds)
        where = np.repeat(np.arange(taken.size), taken.reshape(-1))
        before = np.cumsum(taken.reshape(-1)) - taken.reshape(-1)
        nth = np.arange(len(where)) - before[where]
        row[mine] = where % top
        column[mine] = row_length - free.reshape(-1)[where] + nth * length
        free -= taken * length
        opened = max(opened, int(np.flatnonzero(taken.any(axis=0))[-1]) + 1)
    return row, column


def row_counts(needed: np.ndarray, at_most: int, multiple: int) -> tuple[int, ...]:
    """The row counts to compile for: at most `at_most`, multiples of `multiple`, chosen so that the
    fewest rows in total are computed when each batch takes the smallest count that holds it."""
    ceiled = -(-np.asarray(needed) // multiple) * multiple
    values, weight = np.unique(ceiled, return_counts=True)
    total = np.concatenate([[0], np.cumsum(weight)])

    @functools.cache
    def best(last: int, counts: int) -> tuple[int, tuple[int, ...]]:
        """Fewest rows for the batches up to values[last] with at most `counts` counts; those."""
        alone = int(values[last] * total[last + 1]), (int(values[last]),)
        if counts == 1:
            return alone
        choices: list[tuple[int, tuple[int, ...]]] = [alone]
        for cut in range(last):
            rows, below = best(cut, counts - 1)
            rows += int(values[last] * (total[last + 1] - total[cut + 1]))
            choices.append((rows, (*below, int(values[last]))))
        return min(choices)

    return best(len(values) - 1, at_most)[1]
