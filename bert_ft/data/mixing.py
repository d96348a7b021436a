"""Which example stands where in the endless stream of training examples; NumPy only.

A set of several groups (data sets) holds them one after the other. Every stream is a function of
the seed alone, and any stretch of it can be computed without what comes before.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

MIXINGS = ("proportion", "temperature", "turns")


@functools.lru_cache(maxsize=16)
def permutation(key: tuple[int, ...], epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([*key, epoch]).permutation(count)


def endless(key: tuple[int, ...], count: int, start: int, stop: int) -> np.ndarray:
    """int64 (stop - start,): places start … stop - 1 of 0 … count - 1 in a new order each epoch,
    epochs following each other without a gap."""
    if stop <= start:
        return np.zeros(0, np.int64)
    parts = [
        permutation(key, e, count)[max(start - e * count, 0) : min(stop - e * count, count)]
        for e in range(start // count, (stop - 1) // count + 1)
    ]
    return np.concatenate(parts)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """How groups of these numbers of examples are mixed.

    'proportion': all examples alike. 'temperature': group k has the share n_k^(1/T) / sum of every
    epoch of sum(n) examples, so that small groups come more often (Raffel et al. 2020, section
    3.5.2). 'turns': each batch is of one group, which take turns.
    """

    groups: tuple[int, ...]
    how: str = "proportion"
    temperature: float = 1.0
    batch_size: int = 1

    @property
    def sizes(self) -> tuple[int]:
        """Draws of an epoch (epochs.py, Order)."""
        return (sum(self.groups),)

    @functools.cached_property
    def quotas(self) -> tuple[int, ...]:
        """Examples of each group in an epoch of the mixture; they add up to sum(groups), and no
        group that has examples is left out."""
        total, sizes = sum(self.groups), np.asarray(self.groups, float)
        power = 1 / self.temperature if self.how == "temperature" else 1.0
        share = np.where(sizes > 0, np.power(np.maximum(sizes, 1), power), 0.0)
        exact = share / share.sum() * total
        quota = np.maximum(np.floor(exact).astype(int), sizes > 0)
        # What rounding has left over or taken too much goes to, or comes from, the largest.
        for k in np.argsort(quota - exact, kind="stable")[: max(total - quota.sum(), 0)]:
            quota[k] += 1
        quota[quota.argmax()] += total - quota.sum()
        return tuple(int(q) for q in quota)

    def stream(self, seed: int, start: int, stop: int) -> np.ndarray:
        """int64 (stop - start,): examples at places start … stop - 1 of the endless stream."""
        if self.how == "proportion":
            return endless((seed,), sum(self.groups), start, stop)
        if self.how == "turns":
            return self._turns(seed, np.arange(start, stop))
        total = sum(self.groups)
        epochs = range(start // total, (stop - 1) // total + 1)
        whole = np.concatenate([_epoch(self, seed, e) for e in epochs])
        return whole[start - epochs[0] * total : stop - epochs[0] * total]

    def _turns(self, seed: int, places: np.ndarray) -> np.ndarray:
        begins = np.cumsum((0, *self.groups))
        there = [k for k, n in enumerate(self.groups) if n]
        step, within = np.divmod(places, self.batch_size)
        out = np.empty(len(places), np.int64)
        for turn, k in enumerate(there):
            mine = step % len(there) == turn
            at = step[mine] // len(there) * self.batch_size + within[mine]
            if len(at):  # consecutive but for the batches of others
                own = endless((seed, k + 1), self.groups[k], int(at[0]), int(at[-1]) + 1)
                out[mine] = begins[k] + own
        return out


@functools.lru_cache(maxsize=2)
def _epoch(mixture: Mixture, seed: int, epoch: int) -> np.ndarray:
    """An epoch of a mixture by quotas."""
    begins = np.cumsum((0, *mixture.groups))
    parts = [
        begins[k] + endless((seed, k + 1), n, epoch * q, (epoch + 1) * q)
        for k, (n, q) in enumerate(zip(mixture.groups, mixture.quotas, strict=True))
        if n
    ]
    mixed = np.concatenate(parts)
    return mixed[permutation((seed, 0), epoch, len(mixed))]
