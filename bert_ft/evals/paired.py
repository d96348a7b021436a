"""Whether two systems differ on a set that both have answered: a bootstrap and a paired test.

NumPy only. Names of axes: N examples, D numbers an example.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Judged:
    """A run's answers to a set, reduced to what its score is made of: `values` (N, D), and the
    score of any multiset of these rows, such as their mean. `of`: the label that it is of, '' where
    it is of all."""

    values: np.ndarray
    score: Callable[[np.ndarray], float]
    of: str = ""

    @property
    def whole(self) -> float:
        return self.score(self.values)


@dataclasses.dataclass(frozen=True)
class Difference:
    """b - a, of means over runs. low, high: 95 % of it; p: of the paired test, None without one."""

    a: float
    b: float
    low: float
    high: float
    p: float | None

    @property
    def gap(self) -> float:
        return self.b - self.a


def difference(
    a: Sequence[Judged], b: Sequence[Judged], resamples: int = 2000, seed: int = 0
) -> Difference:
    """Two systems, each of one run (seed) or more on the same examples in the same order.

    The interval is the percentile bootstrap's (Efron & Tibshirani 1993, 13.3): examples are drawn
    with replacement, the same for both systems, and so are each system's runs. The test is
    approximate randomisation (Noreen 1989; Yeh 2000): under the hypothesis that the systems are
    alike, an example's two answers, of the k-th runs of each, may change sides; p is the share of
    random exchanges, the observed one counted in, whose |b - a| is as large. It needs as many runs
    on both sides.
    """
    count = len(a[0].values)
    if any(len(run.values) != count for run in (*a, *b)):
        raise ValueError("runs of different numbers of examples")
    rng = np.random.default_rng(seed)
    before, after = _mean(run.whole for run in a), _mean(run.whole for run in b)
    drawn = np.empty(resamples)
    for i in range(resamples):
        examples = rng.integers(count, size=count)
        sides = [
            _mean(_of(side[k], examples) for k in rng.integers(len(side), size=len(side)))
            for side in (a, b)
        ]
        drawn[i] = sides[1] - sides[0]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    p = None
    if len(a) == len(b):
        observed = abs(after - before)
        at_least = sum(
            # An undefined one, which can't be told to be smaller, counts.
            not abs(_exchanged(a, b, rng.random(count) < 0.5)) < observed - 1e-12
            for _ in range(resamples)
        )
        p = (1 + at_least) / (1 + resamples)
    return Difference(before, after, float(low), float(high), p)


def _of(run: Judged, examples: np.ndarray) -> float:
    return run.score(run.values[examples])


def _exchanged(a: Sequence[Judged], b: Sequence[Judged], swap: np.ndarray) -> float:
    """b - a once the examples `swap` bool (N,) have changed sides."""
    gaps = []
    for one, other in zip(a, b, strict=True):
        mine = np.where(swap[:, None], other.values, one.values)
        theirs = np.where(swap[:, None], one.values, other.values)
        gaps.append(other.score(theirs) - one.score(mine))
    return float(np.mean(gaps))


def _mean(values) -> float:  # type: ignore[no-untyped-def]
    return float(np.mean(list(values)))
