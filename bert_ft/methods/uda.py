"""Unsupervised data augmentation (Xie et al. 2020, eq. 1): what the model says of a changed text
shall be what it says of the text itself, L + weight x mean KL(p || q), over the texts without
labels (data.unlabelled) and the versions of them that data.augment makes.

p is of the text, sharpened by a temperature, without a gradient, and counts where its likeliest
label, before that, has `threshold` or more, of several decisions (labels that are there or not,
ranks above or not) the least sure one; q is of the changed text. Both are from the one pass of the
step. Texts that do not count are in the mean with 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.method_checks import unlabelled_places
from bert_ft.methods.method import Method, Run, Sums
from bert_ft.models.bert import Batch


class Uda(Method):
    name = "uda"
    of_part = counts = True

    def __init__(self, config: Any):
        super().__init__(config)
        self.config = config  # whose batches count once it is trained with, not as config.resume

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        k = self.knobs
        micro, free = unlabelled_places(self.config)

        def consistent(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
            made = run(params, batch, rng)
            logits = made.outputs["logits"][micro - free :]
            as_it_is, changed = jax.lax.stop_gradient(logits[::2]), logits[1::2]
            likeliest, _ = task.guesses_of({"logits": as_it_is})
            sure = (jnp.min(jnp.exp(likeliest), axis=1) >= k.threshold).astype(jnp.float32)
            far = task.divergence(
                {"logits": as_it_is / k.temperature}, {"logits": changed}, {"weight": sure}
            )
            scale = made.of_free(len(as_it_is))
            own = far * scale
            extra = {"uda_divergence": own, "uda_share": jnp.sum(sure) * scale}
            return dataclasses.replace(
                made, total=made.total + k.weight * own, extra={**made.extra, **extra}
            )

        return consistent
