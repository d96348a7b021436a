"""Smoothness around the word vectors: the output must not change where a sequence's vectors are
shifted by the r, of norm epsilon, that changes it most.

SMART (Jiang et al. 2020, section 3.1): L + w (D(f(x), f(x + r)) + D(f(x + r), f(x))), D being the
task's `divergence`. Virtual adversarial training (Miyato et al. 2018, section 3.2), where not
`symmetric`: L + w D(f(x), f(x + r)), f(x) taken as it is. r is found by their power iteration
(section 3.3): from a random direction d, K times d <- the gradient of D(f(x), f(x + start d)), and
r = epsilon d / |d|. Dropout masks are the same in all passes, so that D is of r alone.

The paper bounds r by its largest entry (L-infinity), here as in Miyato et al. it is by the L2 norm
over a sequence.

SMART's other half, the Bregman proximal point steps of its section 3.2, is not here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from bert_ft.methods.method import SHIFT, Method, Run, Sums
from bert_ft.methods.shifts import no_shift, random_shift, scaled_to
from bert_ft.models.bert import Batch

STREAM = 0x534D  # of the step's rng: what no other method draws from


class Smart(Method):
    """K + 2 passes a step; of K the gradient by r alone is taken."""

    name = "smart"
    draws = True

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        k = self.knobs

        def smooth(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
            assert rng is not None
            given = batch.get(SHIFT, no_shift(model, batch))
            made = run(params, batch, rng)

            def moved(params: Any, given: jax.Array, shift: jax.Array) -> Any:
                return run(params, {**batch, SHIFT: given + shift}, rng).outputs

            still, fixed, around = jax.lax.stop_gradient((made.outputs, params, given))

            def apart(shift: jax.Array) -> jax.Array:
                return task.divergence(still, moved(fixed, around, shift), batch)

            def iterate(direction: jax.Array, _: None) -> tuple[jax.Array, None]:
                return jax.grad(apart)(scaled_to(direction, batch, k.start)), None

            drawn = random_shift(jax.random.fold_in(rng, STREAM), model, batch)
            direction, _ = jax.lax.scan(iterate, drawn, length=k.steps)
            shift = jax.lax.stop_gradient(scaled_to(direction, batch, k.epsilon))
            there = moved(params, given, shift)
            if k.symmetric:
                far = task.divergence(made.outputs, there, batch)
                far += task.divergence(there, made.outputs, batch)
            else:
                far = task.divergence(still, there, batch)
            extra = {**made.extra, "smart_divergence": far}
            return dataclasses.replace(made, total=made.total + k.weight * far, extra=extra)

        return smooth
