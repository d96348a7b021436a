"""Supervised contrastive learning beside the cross entropy: (1 - w) CE + w SCL (Gunel et al. 2021,
eq. 1 to 3; Khosla et al. 2020, eq. 2, L_out).

SCL of an example i is -mean over j of log (exp(z_i z_j / t) / sum over k of exp(z_i z_k / t)); z is
the pooled vector, divided by its norm, j are the others of the batch with i's label, k all others.
An example without a j has the loss 0. The batch is the global one, whatever the mesh; of several
tasks only the examples of the one whose loss it is are in it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.methods.method import Method, Run, Sums
from bert_ft.models.bert import Batch


class Contrastive(Method):
    name = "contrastive"
    of_part = True

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        k = self.knobs

        def contrasted(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
            made = run(params, batch, rng)
            pooled_BxH = made.outputs["pooled"]
            _, weight = task.log_likelihoods(made.outputs, batch)
            own_B = batch["weight"] > 0
            apart = contrast(pooled_BxH, batch["label"], own_B, k.temperature)
            apart = jnp.sum(apart * weight)
            total = (1 - k.weight) * made.total + k.weight * apart
            extra = {**made.extra, "contrastive_loss": apart}
            return dataclasses.replace(made, total=total, extra=extra)

        return contrasted


def contrast(
    x_BxH: jax.Array, label_B: jax.Array, own_B: jax.Array, temperature: float
) -> jax.Array:
    """float32 (B,): SCL of each example among those of `own`, bool; x of any norm but 0."""
    squares = jnp.sum(jnp.square(x_BxH), axis=1, keepdims=True)
    z = x_BxH * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
    # At full precision: a TPU would take bfloat16 products otherwise.
    near_BxB = jnp.einsum("ih,jh->ij", z, z, precision="highest") / temperature
    other_BxB = ~jnp.eye(len(label_B), dtype=bool) & own_B
    same_BxB = (label_B[:, None] == label_B) & other_BxB
    # Finite where there is no other, whose gradient would not be.
    near_BxB = jnp.where(other_BxB, near_BxB, -1e30)
    log_p = near_BxB - jax.nn.logsumexp(near_BxB, axis=1, keepdims=True)
    total = jnp.sum(jnp.where(same_BxB, log_p, 0.0), axis=1)
    return -total / jnp.maximum(jnp.sum(same_BxB, axis=1), 1)
