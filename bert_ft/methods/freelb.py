"""FreeLB (Zhu et al. 2020, algorithm 1): K steps of ascent from a random shift of the word vectors,
each within an L2 ball of radius epsilon around the clean ones; the gradient is the mean of those
at all K shifts, which the ascent computes anyway.

A sequence's shift begins uniform in a cube whose corners have the norm `start`, as in the paper's
code, where it is a number of its own (the algorithm takes epsilon). Dropout masks are the same in
all K passes (section 3.3).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.methods.method import SHIFT, Method, Pass, Slope
from bert_ft.methods.shifts import climbed, over_sequence, projected, random_shift
from bert_ft.models.bert import Batch

STREAM = 0x4652  # of the step's rng: what no other method draws from


class FreeLb(Method):
    """K passes a step; the loss that is shown is their mean."""

    name = "freelb"
    draws = True

    def gradient(self, slope: Pass, task: Any, model: Any) -> Pass:
        k = self.knobs

        def mean(params: Any, batch: Batch, rng: jax.Array | None) -> Slope:
            assert rng is not None
            drawn = random_shift(jax.random.fold_in(rng, STREAM), model, batch)
            ones = jnp.ones(batch["tokens"].shape, jnp.float32)
            entries = jnp.maximum(over_sequence(ones, batch) * drawn.shape[-1], 1.0)
            start = projected(drawn * k.start / jnp.sqrt(entries), batch, k.epsilon)

            def climb(shift: jax.Array, _: None) -> tuple[jax.Array, Slope]:
                made = slope(params, {**batch, SHIFT: shift}, rng)
                shift = climbed(shift, made.by_shift, batch, k.step, k.epsilon)
                return shift, dataclasses.replace(made, by_shift=None)

            def add(carry: tuple[jax.Array, Slope], _: None) -> tuple[Any, None]:
                shift, made = climb(carry[0], None)
                return (shift, jax.tree.map(jnp.add, carry[1], made)), None

            (_, total), _ = jax.lax.scan(add, climb(start, None), length=k.steps - 1)
            return jax.tree.map(lambda x: x / k.steps, total)

        return mean
