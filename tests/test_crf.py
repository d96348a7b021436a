"""The chain's likelihood, marginals and best path against all paths, counted one by one."""

import itertools

import jax
import numpy as np
import pytest

from bert_ft.models import crf
from bert_ft.tasks.schemes import forbidden

LABELS = ["O", "B-X", "I-X"]


def chain(seed, steps=4, labels=3):
    """Chains with a gap, without a step, with one step, whole, and with a gap at the front."""
    rng = np.random.default_rng(seed)
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1], [0, 1, 1, 0]], bool)
    draw = lambda *shape: rng.normal(0, 2, shape).astype(np.float32)  # noqa: E731
    count = len(mask)
    return (
        draw(count, steps, labels),
        mask,
        draw(count, labels),
        draw(labels, labels),
        draw(count, labels),
    )


def paths(b, emissions, mask, start, steps, end):
    """[(labels of the chain's own steps, score)] of every path, by the definition."""
    at = np.flatnonzero(mask[b])
    found = []
    for path in itertools.product(range(emissions.shape[2]), repeat=len(at)):
        score = sum(float(emissions[b, t, y]) for t, y in zip(at, path, strict=True))
        score += sum(float(steps[a, c]) for a, c in itertools.pairwise(path))
        if path:
            score += float(start[b, path[0]] + end[b, path[-1]])
        found.append((path, score))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_against_all_paths(seed):
    emissions, mask, start, steps, end = given = chain(seed)
    best = np.asarray(jax.jit(crf.viterbi)(*given))
    log_z = np.asarray(jax.jit(crf.log_partition)(*given))
    chances = np.asarray(jax.jit(crf.marginals)(*given))
    labels = np.random.default_rng(seed).integers(0, 3, mask.shape).astype(np.int32)
    log_p = np.asarray(jax.jit(crf.log_likelihood)(emissions, mask, labels, start, steps, end))
    for b in range(len(mask)):
        every = paths(b, *given)
        scores = np.array([s for _, s in every], np.float64)
        assert log_z[b] == pytest.approx(np.log(np.exp(scores).sum()), abs=1e-4)
        own = tuple(labels[b][mask[b]])
        assert log_p[b] == pytest.approx(dict(every)[own] - np.log(np.exp(scores).sum()), abs=1e-4)
        assert tuple(best[b][mask[b]]) == max(every, key=lambda x: x[1])[0]
        assert (best[b][~mask[b]] == 0).all()
        share = np.exp(scores) / np.exp(scores).sum()
        for k, t in enumerate(np.flatnonzero(mask[b])):
            for y in range(3):
                expected = sum(p for (path, _), p in zip(every, share, strict=True) if path[k] == y)
                assert chances[b, t, y] == pytest.approx(expected, abs=1e-5)


def test_the_gradient_is_that_of_finite_differences():
    emissions, mask, start, steps, end = chain(0)
    labels = np.zeros(mask.shape, np.int32)

    @jax.jit
    def total(steps):
        return crf.log_likelihood(emissions, mask, labels, start, steps, end).sum()

    gradient = np.asarray(jax.grad(total)(steps))
    assert np.isfinite(gradient).all()
    for i, j in itertools.product(range(3), repeat=2):
        moved = np.zeros_like(steps)
        moved[i, j] = 0.05
        slope = (total(steps + moved) - total(steps - moved)) / 0.1
        assert gradient[i, j] == pytest.approx(float(slope), abs=2e-2)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_legal_path(seed):
    emissions, mask, *_ = chain(seed)
    no_start, no_steps, no_end = forbidden(LABELS, "IOB2")
    count = len(mask)
    start, end = np.tile(no_start, (count, 1)), np.tile(no_end, (count, 1))
    best = np.asarray(jax.jit(crf.viterbi)(emissions, mask, start, no_steps, end))
    free = emissions.argmax(axis=2)
    assert any((free[b][mask[b]] != best[b][mask[b]]).any() for b in range(count))
    for b in range(count):
        every = paths(b, emissions, mask, start, no_steps, end)
        legal = [(p, s) for p, s in every if not illegal(p)]
        assert tuple(best[b][mask[b]]) == max(legal, key=lambda x: x[1])[0]


def illegal(path):
    return any(y == 2 and before == 0 for before, y in itertools.pairwise((0, *path)))
