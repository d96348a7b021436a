"""Heads on the encoder, and the model that joins the two."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_ft.models.bert import Batch, Dense, Encoder, EncoderConfig, Noise, make_noise

Outputs = dict[str, jax.Array]
MASKED = -1e30  # a logit of what is no choice; the sum of two is still finite


class SequenceHead(nn.Module):
    """Logits of each example from its first token: pooler (dense, tanh), dropout, dense, as BERT has it
    (Devlin et al. 2019, 3.2 and A.2). Reads (R, E, H) and gives {'logits': float32 (B, classes)}."""

    classes: int
    config: EncoderConfig
    dtype: jnp.dtype
    first_only = True  # reads no other token's last hidden state

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> Outputs:
        first_BxH = hidden.reshape(-1, hidden.shape[-1])[batch["example_slot"]]
        std = self.config.initializer_range
        pooled = jnp.tanh(Dense(first_BxH.shape[-1], self.dtype, std, name="pooler")(first_BxH))
        if noise:
            pooled = noise.hidden(pooled, -1, batch["ordinal"])
        logits = Dense(self.classes, jnp.float32, std, name="classifier")(
            pooled.astype(jnp.float32)
        )
        return {"logits": logits}


class TokenHead(nn.Module):
    """Logits of each token: dropout, dense, as BertForTokenClassification has it. Reads (R, S, H),
    gives {'logits': float32 (R, S, classes)}; with crf_rate > 0 also the scores of a linear chain
    over the labels, 'start' and 'end' (classes,) and 'steps' (classes, classes), row: the former.

    Adam moves every parameter by about the learning rate a step, too little for scores that start
    from 0 beside a pretrained encoder. So the parameters are scores divided by crf_rate: they
    move as if their learning rate were crf_rate times the encoder's."""

    classes: int
    crf_rate: float
    config: EncoderConfig
    dtype: jnp.dtype
    first_only = False

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> Outputs:
        if noise:
            hidden = noise.hidden(hidden, -1)
        dense = Dense(self.classes, jnp.float32, self.config.initializer_range, name="classifier")
        out = {"logits": dense(hidden.astype(jnp.float32))}
        if self.crf_rate:
            for name, axes in (("start", 1), ("steps", 2), ("end", 1)):
                shape, zeros = (self.classes,) * axes, nn.initializers.zeros
                scores = self.param(f"crf_{name}", zeros, shape, jnp.float32)
                out[name] = scores * self.crf_rate
        return out


class SpanHead(nn.Module):
    """Logits of each token of an example to be an answer's first and its last: one dense layer
    without dropout (Devlin et al. 2019, 4.2). Reads (R, S, H) and gives {'start', 'end': float32
    (B, S)}, counted from the example's own first token; MASKED beyond its last."""

    config: EncoderConfig
    dtype: jnp.dtype
    first_only = False

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> Outputs:
        rows, length = hidden.shape[:2]
        dense = Dense(2, jnp.float32, self.config.initializer_range, name="qa_outputs")
        logits = dense(hidden.astype(jnp.float32)).reshape(rows * length, 2)
        at = jnp.arange(length)
        where_BxS = jnp.minimum(batch["example_start"][:, None] + at, rows * length - 1)
        own_BxSx1 = (at < batch["example_length"][:, None])[..., None]
        of_example_BxSx2 = jnp.where(own_BxSx1, logits[where_BxS], MASKED)
        return {"start": of_example_BxSx2[..., 0], "end": of_example_BxSx2[..., 1]}


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
