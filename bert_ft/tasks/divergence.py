"""How far two outputs of a model are apart, for the tasks' `divergence(p, q, batch, temperature)`:
what smoothness, R-Drop and distillation ask for. p is what q is measured by; at a temperature T
both are softened, logits / T, and the value is multiplied by T^2, so that its gradient keeps its
size (Hinton et al. 2015, eq. 1 and section 2).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def categorical(p: jax.Array, q: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(softmax p || softmax q) over the last axis, in nats. A logit of heads.MASKED in both is no
    choice and adds nothing."""
    log_p, log_q = (jax.nn.log_softmax(x / temperature) for x in (p, q))
    return temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def bernoulli(p: jax.Array, q: jax.Array, temperature: float = 1.0) -> jax.Array:
    """KL(sigmoid p || sigmoid q) of each element, in nats."""
    p, q = p / temperature, q / temperature
    hit = jax.nn.log_sigmoid(p) - jax.nn.log_sigmoid(q)
    miss = jax.nn.log_sigmoid(-p) - jax.nn.log_sigmoid(-q)
    return temperature**2 * (jax.nn.sigmoid(p) * hit + jax.nn.sigmoid(-p) * miss)
