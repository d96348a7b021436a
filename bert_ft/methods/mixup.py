"""Mixup of hidden states (Zhang et al. 2018, eq. 1, at the pooled vector: Guo, Mao & Zhang 2019,
senMixup; manifold mixup at one layer, Verma et al. 2019, eq. 1): s h_i + (1 - s) h_j is read with
the label s y_i + (1 - s) y_j. j is a permutation of the batch, and s ~ Beta(alpha, alpha) one
number a batch, both drawn from the step's rng. Of several tasks all mix the same pairs, and what
an example of another data set has no label for counts with the share of the one that has.

The loss of a mixed label is s times that of y_i and 1 - s times that of y_j: for a (binary) cross
entropy the same, for a squared error the same but for a constant.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.methods.method import Method, Run, Sums
from bert_ft.models.bert import Batch

STREAM = 0x4D58  # of the step's rng: what no other method draws from
LABELS = ("label", "target", "weight")  # what of a batch says what is true, and of whom it is known


class Mixup(Method):
    """`mixed_with` int32 (B,) and `mixed_share` float32 () of a batch tell the head what to mix
    (models/heads.py, pooled_first)."""

    name = "mixup"
    draws = True
    of_part = True

    def beside(self, batch: Batch, rng: jax.Array | None) -> Batch:
        alpha = self.knobs.alpha
        if alpha == 0:
            return batch
        assert rng is not None
        of_pairs, of_share = jax.random.split(jax.random.fold_in(rng, STREAM))
        pairs = jax.random.permutation(of_pairs, batch["weight"].shape[0])
        share = jax.random.beta(of_share, alpha, alpha, dtype=jnp.float32)
        return {**batch, "mixed_with": pairs, "mixed_share": share}

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        if self.knobs.alpha == 0:
            return run

        def mixed(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
            made = run(params, batch, rng)
            pairs, share = batch["mixed_with"], batch["mixed_share"]
            others = {name: batch[name][pairs] for name in LABELS if name in batch}
            of_own = task.loss(made.outputs, batch)
            of_others = task.loss(made.outputs, {**batch, **others})
            # What the other labels change is added, so that terms of other methods stay.
            total, count, extra = jax.tree.map(
                lambda own, other: (1 - share) * (other - own), of_own, of_others
            )
            extra = {**made.extra, **{k: made.extra[k] + v for k, v in extra.items()}}
            return Sums(made.total + total, made.count + count, extra, made.outputs)

        return mixed
