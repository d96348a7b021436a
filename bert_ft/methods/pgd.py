"""Projected gradient descent on word vectors (Madry et al. 2018, eq. 2.1 and section 2.1): a
sequence's worst shift r within an L2 ball of radius epsilon is looked for in K steps of ascent of
length `step`, and the loss is (L(x) + w L(x + r)) / (1 + w), as methods/fgm.py has it, which is
this with one step of length epsilon. Here r begins at 0, which is where the clean gradient is known
anyway."""

from __future__ import annotations

from typing import Any

import jax

from bert_ft.methods.method import SHIFT, Method, Pass, Slope
from bert_ft.methods.shifts import beside, climbed, no_shift
from bert_ft.models.bert import Batch


class Pgd(Method):
    """K + 1 passes a step; of all but the first and the last only the gradient by r is taken."""

    name = "pgd"

    def gradient(self, slope: Pass, task: Any, model: Any) -> Pass:
        k = self.knobs

        def both(params: Any, batch: Batch, rng: jax.Array | None) -> Slope:
            def at(shift: jax.Array) -> Slope:
                return slope(params, {**batch, SHIFT: shift}, rng)

            def climb(shift: jax.Array, _: None) -> tuple[jax.Array, None]:
                return climbed(shift, at(shift).by_shift, batch, k.step, k.epsilon), None

            start = no_shift(model, batch)
            clean = at(start)
            first = climbed(start, clean.by_shift, batch, k.step, k.epsilon)
            shift, _ = jax.lax.scan(climb, first, length=k.steps - 1)
            return beside(clean, at(shift), k.weight)

        return both
