"""Dropout whose mask is a function of the seed, the site in the model, the example and the
position; models/ops.py has the hash."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.models import ops

Drop = Callable[[jax.Array, jax.Array], jax.Array]  # x, rate -> x with dropout


@dataclasses.dataclass(frozen=True)
class Noise:
    """Dropout for one forward pass. `words` is uint32 (sites, 2), `rate` a float or scalar array,
    `ids` int32 (R, S) names each token by example and position."""

    words: jax.Array
    rate: jax.Array | float
    ids: jax.Array

    def hidden(self, x: jax.Array, site: int, ids: jax.Array | None = None) -> jax.Array:
        salt = ops.token_salt(self.words[site], self.ids if ids is None else ids)
        return ops.dropout(x, self.rate, salt[..., None], jnp.arange(x.shape[-1]))

    def dense(self, site: int, which: int, ids: jax.Array | None = None) -> Drop:
        """Dropout of what the adaptation of a site's dense layer, `which` of them, reads: at a rate
        of its own, by words that are a function of the site's."""

        def drop(x: jax.Array, rate: jax.Array) -> jax.Array:
            words = ops.other_words(self.words[site], which)
            salt = ops.token_salt(words, self.ids if ids is None else ids)
            return ops.dropout(x, rate, salt[..., None], jnp.arange(x.shape[-1]))

        return drop

    def attention(self, p: jax.Array, site: int, ids: jax.Array, key_positions: jax.Array):
        heads = p.shape[1]
        ids_RxNxQ = ids[:, None, :] * heads + jnp.arange(heads)[None, :, None]
        salt = ops.token_salt(self.words[site], ids_RxNxQ)
        return ops.dropout(p, self.rate, salt[..., None], key_positions[:, None, None, :])


def make_noise(
    key: jax.Array,
    rate: jax.Array | float,
    batch: Mapping[str, jax.Array],
    config: Any,
) -> Noise:
    """Noise for an encoder of this size, which has three sites a layer and one of its embeddings,
    the first ones, and for a head, whose are the last two; some between are no site's."""
    words = jax.random.bits(key, (4 * config.num_hidden_layers + 2, 2), jnp.uint32)
    ids = batch["segments"] * config.max_position_embeddings + batch["positions"]
    return Noise(words, rate, ids)
