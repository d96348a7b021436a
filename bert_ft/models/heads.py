"""Heads on the encoder, and the model that joins the two.

A head says by `first_only` that it reads no token but the first of each sequence, and by `kind`
which row of models/families.py gives its architecture and its tensors in the Hugging Face format
('' or none where it has no such form).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_ft.models import ops
from bert_ft.models.bert import Batch, Dense, Encoder, EncoderConfig, Noise, make_noise

Outputs = dict[str, jax.Array]


_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": ops.gelu}


class SequenceHead(nn.Module):
    """Logits of each sequence from its first token: pooler (dense, tanh), dropout, dense, as BERT
    has it (Devlin et al. 2019, 3.2 and A.2); other families have another activation. Reads
    (R, E, H) and gives {'logits': float32 (B * pieces, classes)}."""

    classes: int
    config: EncoderConfig
    dtype: jnp.dtype
    first_only = True
    kind = "sequence"

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> Outputs:
        first_BxH = hidden.reshape(-1, hidden.shape[-1])[batch["example_slot"]]
        std = self.config.initializer_range
        activate = _ACTIVATIONS[self.config.head_activation]
        pooled = activate(Dense(first_BxH.shape[-1], self.dtype, std, name="pooler")(first_BxH))
        if noise:
            pooled = noise.hidden(pooled, -1, sequence_ids(batch))
        logits = Dense(self.classes, jnp.float32, std, name="classifier")(
            pooled.astype(jnp.float32)
        )
        return {"logits": logits}


class ChoiceHead(SequenceHead):
    """One logit for each of an example's `pieces` sequences, from the same two layers (`classes` is
    1): the choices of BertForMultipleChoice. Gives {'logits': float32 (B, pieces)}."""

    first_only = True
    kind = "choice"

    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> Outputs:
        logits = super().__call__(hidden, batch, noise)["logits"]
        return {"logits": logits.reshape(batch["ordinal"].shape[0], -1)}


class EmbeddingHead(nn.Module):
    """A unit vector for each sequence: the mean of its tokens' last hidden states, special tokens
    included, or the first one's (`pooling` 'mean' or 'cls'), divided by its Euclidean norm, as
    sentence-transformers has it (Reimers & Gurevych 2019, 3). It has no parameters.
    Gives {'embedding': float32 (B * pieces, H)}."""

    pooling: str
    config: EncoderConfig
    dtype: jnp.dtype
    kind = "embedding"

    @property
    def first_only(self) -> bool:
        return self.pooling == "cls"

    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> Outputs:
        x_RxQxH = hidden.astype(jnp.float32)
        if self.pooling == "mean":
            segments = batch["segments"]
            first_RxE = jnp.take_along_axis(segments, batch["slots"], axis=1)
            own_RxExS = (first_RxE[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None]
            own_RxExS = own_RxExS.astype(jnp.float32)
            # At full precision: a TPU would take bfloat16 products otherwise.
            total = jnp.einsum("res,rsh->reh", own_RxExS, x_RxQxH, precision="highest")
            x_RxQxH = total / jnp.maximum(jnp.sum(own_RxExS, axis=2, keepdims=True), 1.0)
        x = x_RxQxH.reshape(-1, x_RxQxH.shape[-1])[batch["example_slot"]]
        squared = jnp.sum(x * x, axis=-1, keepdims=True)
        return {"embedding": x * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))}


def sequence_ids(batch: Batch) -> jax.Array:
    """int32 (B * pieces,): the segment number of every sequence, by which dropout is drawn."""
    ordinal = batch["ordinal"]
    pieces = batch["example_slot"].shape[0] // ordinal.shape[0]
    return (ordinal[:, None] + jnp.arange(pieces)).reshape(-1)


def kind_of(head: Any) -> str:
    """The `kind` of a head's class, or of a partial of it; '' where it has none."""
    return getattr(getattr(head, "func", head), "kind", "")


class Model(nn.Module):
    """encoder + head. `rng` is None where nothing is random; `rate` may be traced."""

    config: EncoderConfig
    head: Any
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.dtype)
        self.top = self.head(self.config, self.dtype)

    def __call__(
        self, batch: Batch, rng: jax.Array | None = None, rate: jax.Array | float = 0.0
    ) -> Outputs:
        noise = None if rng is None else make_noise(rng, rate, batch, self.config)
        hidden = self.encoder(batch, noise, first_only=self.top.first_only)
        return self.top(hidden, batch, noise)
