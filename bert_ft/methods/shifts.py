"""What is added to word vectors, measured by sequence: its norm is the same packed or padded."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.models.bert import Batch


def no_shift(model: Any, batch: Batch) -> jax.Array:
    """Zeros float32 (R, S, width of the word table)."""
    width = model.config.embedding_size or model.config.hidden_size
    return jnp.zeros((*batch["tokens"].shape, width), jnp.float32)


def sequence_of(batch: Batch) -> jax.Array:
    """int32 (R, S): the sequence of each token, from 1 in every micro-batch; 0 is padding."""
    first = batch["ordinal"][0]
    return jnp.where(batch["segments"] > 0, batch["segments"] - first + 1, 0)


def norms(x_RxSxH: jax.Array, batch: Batch) -> jax.Array:
    """float32 (R, S, 1): at each token the L2 norm of x over all tokens of its sequence."""
    sequence, count = sequence_of(batch), batch["example_slot"].shape[0]
    squares = jnp.sum(jnp.square(x_RxSxH), axis=-1)
    by_sequence = jax.ops.segment_sum(squares.reshape(-1), sequence.reshape(-1), count + 1)
    return jnp.sqrt(by_sequence)[sequence][..., None]


def scaled_to(x_RxSxH: jax.Array, batch: Batch, norm: jax.Array | float) -> jax.Array:
    """x of the given norm in every sequence, zeros in padding; where x is 0 it stays so."""
    real = (batch["segments"] > 0)[..., None]
    return jnp.where(real, norm * x_RxSxH / jnp.maximum(norms(x_RxSxH, batch), 1e-30), 0.0)
