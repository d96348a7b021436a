"""The focal loss (Lin et al. 2017, eq. 4 and 5): -(1 - p)^gamma log p of what is true, so that
what is right already counts less; with class weights, their alpha."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.methods.method import Method, Run, Sums
from bert_ft.models.bert import Batch


class Focal(Method):
    """What the task's loss lacks is added to it, so that terms of other methods stay."""

    name = "focal"
    of_part = True

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        gamma = self.knobs.gamma

        def focused(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
            made = run(params, batch, rng)
            log_p, weight = task.log_likelihoods(made.outputs, batch)
            # Not 0, whose power has no finite slope where gamma is less than 1.
            wrong = jnp.maximum(-jnp.expm1(log_p), 1e-12)
            more = jnp.sum(weight * (1 - wrong**gamma) * log_p)
            return dataclasses.replace(made, total=made.total + more)

        return focused
