"""What is added to word vectors, measured by sequence: its norm is the same packed or padded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.methods.method import Slope
from bert_ft.models import ops
from bert_ft.models.bert import Batch


def _width(model: Any) -> int:
    return model.config.embedding_size or model.config.hidden_size


def no_shift(model: Any, batch: Batch) -> jax.Array:
    """Zeros float32 (R, S, width of the word table)."""
    return jnp.zeros((*batch["tokens"].shape, _width(model)), jnp.float32)


def random_shift(rng: jax.Array, model: Any, batch: Batch) -> jax.Array:
    """float32 (R, S, width), uniform within -1 to 1, zeros in padding. As with dropout, a token's
    is a function of the rng, the number of its sequence and its position."""
    ids = batch["segments"] * model.config.max_position_embeddings + batch["positions"]
    salt = ops.token_salt(jax.random.bits(rng, (2,), jnp.uint32), ids)[..., None]
    drawn = 2 * ops.uniform(salt, jnp.arange(_width(model))) - 1
    return jnp.where(_real(batch), drawn, 0.0)


def sequence_of(batch: Batch) -> jax.Array:
    """int32 (R, S): the sequence of each token, from 1 in every micro-batch; 0 is padding."""
    first = batch["ordinal"][0]
    return jnp.where(batch["segments"] > 0, batch["segments"] - first + 1, 0)


def over_sequence(
    x_RxS: jax.Array, batch: Batch, reduce: Callable[..., jax.Array] = jax.ops.segment_sum
) -> jax.Array:
    """float32 (R, S, 1): at each token the sum of x over all tokens of its sequence, or what else
    `reduce` makes of them."""
    sequence, count = sequence_of(batch), batch["example_slot"].shape[0]
    found = reduce(x_RxS.reshape(-1), sequence.reshape(-1), count + 1)
    return found[sequence][..., None]


def norms(x_RxSxH: jax.Array, batch: Batch) -> jax.Array:
    """float32 (R, S, 1): at each token the L2 norm of x over all tokens of its sequence. x is
    divided by its largest entry first: squares of entries below 1e-19 would be 0 in float32."""
    largest = over_sequence(jnp.max(jnp.abs(x_RxSxH), axis=-1), batch, jax.ops.segment_max)
    x_RxSxH = x_RxSxH / jnp.maximum(largest, 1e-30)
    return largest * jnp.sqrt(over_sequence(jnp.sum(jnp.square(x_RxSxH), axis=-1), batch))


def scaled_to(x_RxSxH: jax.Array, batch: Batch, norm: jax.Array | float) -> jax.Array:
    """x of the given norm in every sequence, zeros in padding; of less where its own norm is below
    1e-30, and where x is 0 it stays so."""
    scale = norm / jnp.maximum(norms(x_RxSxH, batch), 1e-30)
    return jnp.where(_real(batch), scale * x_RxSxH, 0.0)


def projected(x_RxSxH: jax.Array, batch: Batch, radius: float) -> jax.Array:
    """The nearest to x whose norm is at most the radius in every sequence."""
    return x_RxSxH * jnp.minimum(1.0, radius / jnp.maximum(norms(x_RxSxH, batch), 1e-30))


def climbed(
    shift_RxSxH: jax.Array, uphill: jax.Array | None, batch: Batch, step: float, radius: float
) -> jax.Array:
    """A step of projected gradient ascent (Madry et al. 2018, section 2.1, for the L2 norm): of
    length `step` along `uphill`, in every sequence, then back into the ball."""
    assert uphill is not None
    return projected(shift_RxSxH + scaled_to(uphill, batch, step), batch, radius)


def beside(clean: Slope, moved: Slope, weight: float) -> Slope:
    """That of (L(x) + w L(x + r)) / (1 + w). The loss that is shown is L(x)."""
    gradient = jax.tree.map(
        lambda a, b: (a + weight * b) / (1 + weight), clean.gradient, moved.gradient
    )
    extra = {**clean.extra, "adversarial_loss": moved.total}
    return dataclasses.replace(clean, gradient=gradient, extra=extra, by_shift=None)


def _real(batch: Batch) -> jax.Array:
    return (batch["segments"] > 0)[..., None]
