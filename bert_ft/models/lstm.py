"""The baseline: embedding, LSTM (Hochreiter & Schmidhuber 1997), dropout, dense; over packed rows.

It reads the encoder's batch (`bert.py`) and stands in its place under every head. The recurrence
starts anew at each segment, so that an example is read as if it had a row to itself.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from bert_ft.models import ops
from bert_ft.models.bert import Batch, Embed
from bert_ft.models.noise import Noise


@dataclasses.dataclass(frozen=True)
class LstmConfig:
    """Sizes; the names that `bert.EncoderConfig` has too are read by heads and by dropout."""

    vocab_size: int
    hidden_size: int = 256  # of the embedding, and of the state of one direction
    num_hidden_layers: int = 1
    bidirectional: bool = True
    pool: str = "last"
    max_position_embeddings: int = 512  # the longest example; there is no table of positions
    initializer_range: float = 0.1  # of the embedding and the dense layer; 0.02 is a deep BERT's
    pooler: bool = False

    @property
    def positions(self) -> int:
        return self.max_position_embeddings

    def encoder(self, dtype: jnp.dtype, *_: Any) -> nn.Module:
        """The encoder of these sizes; how a BERT's layers are computed is of no concern here."""
        return LstmEncoder(self, dtype)

    def pooled(self, states: jax.Array, segments: jax.Array, slots: jax.Array) -> jax.Array:
        """(R, E, D) of states (R, S, D): each sequence's vector, as `pool` has it."""
        mine = jnp.take_along_axis(segments, slots, axis=1)[..., None] == segments[:, None, :]
        length_RxE = jnp.sum(mine, axis=-1)
        if self.pool == "mean":
            return jnp.einsum("res,rsh->reh", mine / length_RxE[..., None], states)
        # A direction's last state is at the sequence's end, of the backward one at its beginning.
        sides = jnp.split(states, states.shape[-1] // self.hidden_size, axis=-1)
        ends = (slots + length_RxE - 1, slots)
        taken = [
            jnp.take_along_axis(side, end[..., None], axis=1)
            for side, end in zip(sides, ends, strict=False)
        ]
        return jnp.concatenate(taken, axis=-1)


def lstm_config(config: ConfigDict, vocab_size: int) -> LstmConfig:
    m = config.model
    return LstmConfig(vocab_size, m.hidden_size, m.layers, m.bidirectional, m.pool, m.max_positions)


class Lstm(nn.Module):
    """One direction of one layer: (R, S, I) -> float32 (R, S, H).

    `starts` bool (R, S): tokens before which the state is zero; `reverse` reads each row backwards,
    and `starts` are then the segments' last tokens. Gates are laid out i, f, g, o, as in torch; its
    two biases, whose sum alone matters, are one.
    """

    features: int
    dtype: jnp.dtype
    reverse: bool = False

    @nn.compact
    def __call__(self, x_RxSxI: jax.Array, starts_RxS: jax.Array) -> jax.Array:
        size = self.features

        # Uniform within 1 / sqrt(H), torch's rule.
        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -(size**-0.5), size**-0.5)

        # A forget gate that begins open lets gradients through (Jozefowicz et al. 2015, 2.2).
        def open_gate(_: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return jnp.zeros(shape, dtype).at[size : 2 * size].set(1.0)

        kernel = self.param("kernel", uniform, (x_RxSxI.shape[-1], 4 * size), jnp.float32)
        recurrent = self.param("recurrent", uniform, (size, 4 * size), jnp.float32)
        bias = self.param("bias", open_gate, (4 * size,), jnp.float32)
        # All products with the input at once; only those with the state have to wait for it.
        inputs_RxSxG = ops.matmul(x_RxSxI.astype(self.dtype), kernel.astype(self.dtype)) + bias
        recurrent = recurrent.astype(self.dtype)

        def step(
            state: tuple[jax.Array, jax.Array], now: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            gates_RxG, start_R = now
            h, c = (jnp.where(start_R[:, None], 0.0, s) for s in state)
            gates = gates_RxG + jnp.dot(h.astype(self.dtype), recurrent).astype(jnp.float32)
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((x_RxSxI.shape[0], size), jnp.float32)
        along = (inputs_RxSxG.astype(jnp.float32).swapaxes(0, 1), starts_RxS.T)
        _, h_SxRxH = lax.scan(step, (zero, zero), along, reverse=self.reverse)
        return h_SxRxH.swapaxes(0, 1)


class LstmEncoder(nn.Module):
    config: LstmConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, batch: Batch, noise: Noise | None = None, first_only: bool = False):
        """States (R, S, D), D being H or, of both directions, 2 H; with first_only (R, E, D),
        each sequence's vector, pooled from all its states, in the place of its first token."""
        c, segments = self.config, batch["segments"]
        edge = segments[:, 1:] != segments[:, :-1]
        firsts = jnp.pad(edge, ((0, 0), (1, 0)), constant_values=True)
        lasts = jnp.pad(edge, ((0, 0), (0, 1)), constant_values=True)
        x = Embed(c.vocab_size, c.hidden_size, c.initializer_range, name="word")(batch["tokens"])
        for i in range(c.num_hidden_layers):
            if noise:
                x = noise.hidden(x, i)
            sides = [Lstm(c.hidden_size, self.dtype, name=f"forward_{i}")(x, firsts)]
            if c.bidirectional:
                backward = Lstm(c.hidden_size, self.dtype, reverse=True, name=f"backward_{i}")
                sides.append(backward(x, lasts))
            x = jnp.concatenate(sides, axis=-1)
        return c.pooled(x, segments, batch["slots"]) if first_only else x
