"""Pseudo-labels (Lee 2013, section 2 and eq. 15 and 16): texts without labels (data.unlabelled) are
learnt with the label that the model itself finds likeliest, beside the loss L of the labelled ones,
as means over either: L + a(t) U. a(t) is 0 up to the step `begin`, `weight` from `end` on (where
both are one, from the step after), and rises in a straight line between. A text counts where the
model is sure enough, by `threshold`, as in FixMatch (Sohn et al. 2020, eq. 4); those that don't
count are in the mean with 0. Where a text has several decisions (labels that are there or not,
ranks above or not) each counts for itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.data.unlabelled import LABELLED
from bert_ft.methods.method import STEP, Method, Run, Sums
from bert_ft.models.bert import Batch


class Pseudo(Method):
    name = "pseudo"
    of_part = True
    timed = counts = True

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        k = self.knobs

        def guessed(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
            made = run(params, batch, rng)
            free_B = 1 - batch[LABELLED]
            likeliest_BxD, each = task.guesses_of(made.outputs)
            sure_BxD = jax.lax.stop_gradient(jnp.exp(likeliest_BxD)) >= k.threshold
            sure_BxD = free_B[:, None] * sure_BxD
            scale = made.of_free(jnp.sum(free_B))
            own = -jnp.sum(likeliest_BxD * sure_BxD) * each * scale
            rise = (batch[STEP] - k.begin) / max(k.end - k.begin, 1)
            total = made.total + k.weight * jnp.clip(rise, 0, 1) * own
            extra = {
                "pseudo_loss": own,
                "pseudo_share": jnp.sum(jnp.mean(sure_BxD, axis=1)) * scale,
            }
            return dataclasses.replace(made, total=total, extra={**made.extra, **extra})

        return guessed
