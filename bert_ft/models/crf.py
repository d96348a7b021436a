"""Linear-chain conditional random field (Lafferty et al. 2001) and Viterbi, for a batch of chains.

B chains of at most W steps over C labels. `emissions` float32 (B, W, C). `mask` bool (B, W): the
steps that a chain has; the others are passed over, wherever they stand. `start` float32 (B, C) is
added to the first step of a chain, `end` (B, C) to the last, `steps` (C, C) between neighbours
(row: the label before). A chain without steps scores 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def _first(mask: Array) -> Array:
    """bool (B, W): the first step of each chain."""
    return mask & (jnp.cumsum(mask, axis=1) == 1)


def log_partition(emissions: Array, mask: Array, start: Array, steps: Array, end: Array) -> Array:
    """float32 (B,): log of the sum of exp(score) over all paths (Rabiner 1989, III.A, in logs)."""

    def step(alpha: Array, at: tuple[Array, Array, Array]) -> tuple[Array, None]:
        emission, here, first = at
        on = jax.nn.logsumexp(alpha[:, :, None] + steps[None], axis=1)
        new = jnp.where(first[:, None], start, on) + emission
        return jnp.where(here[:, None], new, alpha), None

    alpha, _ = jax.lax.scan(step, jnp.zeros_like(start), _by_time(emissions, mask))
    return jnp.where(mask.any(axis=1), jax.nn.logsumexp(alpha + end, axis=1), 0.0)


def path_score(
    emissions: Array, mask: Array, labels: Array, start: Array, steps: Array, end: Array
) -> Array:
    """float32 (B,): the score of one path; labels int32 (B, W)."""

    def step(before: tuple[Array, Array], at: tuple) -> tuple[tuple[Array, Array], None]:
        (score, last), (emission, here, first, label) = before, at
        on = jnp.where(first, _pick(start, label), steps[last, label])
        score = score + jnp.where(here, on + _pick(emission, label), 0.0)
        return (score, jnp.where(here, label, last)), None

    zero = jnp.zeros(mask.shape[0])
    (score, last), _ = jax.lax.scan(
        step, (zero, jnp.zeros_like(labels[:, 0])), (*_by_time(emissions, mask), labels.T)
    )
    return score + jnp.where(mask.any(axis=1), _pick(end, last), 0.0)


def log_likelihood(
    emissions: Array, mask: Array, labels: Array, start: Array, steps: Array, end: Array
) -> Array:
    """float32 (B,): log p(labels | emissions)."""
    score = path_score(emissions, mask, labels, start, steps, end)
    return score - log_partition(emissions, mask, start, steps, end)


def marginals(emissions: Array, mask: Array, start: Array, steps: Array, end: Array) -> Array:
    """float32 (B, W, C): p(label at step): the gradient of the log partition by the emissions."""
    return jax.grad(lambda e: log_partition(e, mask, start, steps, end).sum())(emissions)


def viterbi(emissions: Array, mask: Array, start: Array, steps: Array, end: Array) -> Array:
    """int32 (B, W): the labels of the path with the highest score; 0 where a chain has no step."""

    def step(best: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        emission, here, first = at
        through = best[:, :, None] + steps[None]
        new = jnp.where(first[:, None], start, through.max(axis=1)) + emission
        stay = jnp.arange(best.shape[1])[None]
        back = jnp.where((here & ~first)[:, None], through.argmax(axis=1), stay)
        return jnp.where(here[:, None], new, best), back

    def trace(label: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        back, here = at
        return _pick(back, label), jnp.where(here, label, 0)

    best, backs = jax.lax.scan(step, jnp.zeros_like(start), _by_time(emissions, mask))
    last = jnp.argmax(best + end, axis=1)
    _, labels = jax.lax.scan(trace, last, (backs, mask.T), reverse=True)
    return labels.T.astype(jnp.int32)


def _by_time(emissions: Array, mask: Array) -> tuple[Array, Array, Array]:
    return emissions.swapaxes(0, 1), mask.T, _first(mask).T


def _pick(values: Array, index: Array) -> Array:
    """values (B, C) at index (B,)."""
    return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]
