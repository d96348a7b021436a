"""Epochs of one training set that has several versions of its rows, or classes of unlike sizes.

As in mixing.py, the stream is a function of the seed alone, and any stretch of it can be computed
without what comes before: a killed run goes on bit for bit.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bert_ft.data.mixing import permutation

# Oversampling: the quota of a class of n examples is n^power, times what makes that of the largest
# class its own size. So no class loses an example.
OVERSAMPLING = {"none": 1.0, "sqrt": 0.5, "balanced": 0.0}


class Order(Protocol):
    """How training goes through a set: `sizes` are the draws of an epoch, or of one epoch after the
    other, `stream` int64 (stop - start,) the examples at places start … stop - 1."""

    @property
    def sizes(self) -> Sequence[float]: ...
    def stream(self, seed: int, start: int, stop: int) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Epochs:
    """`blocks`: examples of each version, which lie one after the other; epoch e draws from block
    e modulo their number. `classes` int (sum(blocks),): the class of each example, where classes
    are to be drawn by quotas with `power` (OVERSAMPLING); None where every one comes once."""

    blocks: tuple[int, ...]
    classes: np.ndarray | None = None
    power: float = 1.0

    @functools.cached_property
    def _members(self) -> list[list[np.ndarray]]:
        """The examples of each class of each block."""
        begins = np.cumsum([0, *self.blocks])
        members = [np.arange(a, b) for a, b in zip(begins[:-1], begins[1:], strict=True)]
        if self.classes is None:
            return [[m] for m in members]
        return [[m[self.classes[m] == k] for k in np.unique(self.classes[m])] for m in members]

    @functools.cached_property
    def quotas(self) -> list[list[int]]:
        """Draws of each class of each block in an epoch, at least the class's size."""
        found = []
        for members in self._members:
            most = max(map(len, members))
            exact = [most * (len(m) / most) ** self.power for m in members]
            found.append([max(len(m), round(q)) for m, q in zip(members, exact, strict=True)])
        return found

    @property
    def sizes(self) -> list[int]:
        """Draws in an epoch of each block."""
        return [sum(quotas) for quotas in self.quotas]

    def stream(self, seed: int, start: int, stop: int) -> np.ndarray:
        """int64 (stop - start,): examples at places start … stop - 1 of the endless stream."""
        if stop <= start:
            return np.zeros(0, np.int64)
        ends = np.cumsum(self.sizes)

        def epoch_at(place: int) -> int:
            cycle, within = divmod(place, int(ends[-1]))
            return cycle * len(ends) + int(np.searchsorted(ends, within, "right"))

        first, last = epoch_at(start), epoch_at(stop - 1)
        cycle, block = divmod(first, len(ends))
        begins = cycle * int(ends[-1]) + (int(ends[block - 1]) if block else 0)
        whole = np.concatenate([_epoch(self, seed, e) for e in range(first, last + 1)])
        return whole[start - begins : stop - begins]


@functools.lru_cache(maxsize=4)
def _epoch(epochs: Epochs, seed: int, epoch: int) -> np.ndarray:
    """The examples of an epoch, in its order. Each comes quota // size times, and those that the
    rest falls to once more; with a quota a class's size, and blocks of one size, the order is that
    of `mixing.endless`: versions of rows then come where the rows themselves would."""
    block = epoch % len(epochs.blocks)
    drawn = []
    for k, (members, quota) in enumerate(
        zip(epochs._members[block], epochs.quotas[block], strict=True)
    ):
        times, rest = divmod(quota, len(members))
        more = permutation((seed, k + 1, 1), epoch, len(members))[:rest]
        drawn += [np.tile(members, times), members[more]]
    every = np.concatenate(drawn)
    return every[permutation((seed,), epoch, len(every))]
