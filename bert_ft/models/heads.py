"""Heads on the encoder, and the model that joins the two.

A head says by `first_only` that it reads no token but the first of each sequence, and by `kind`
which row of models/families.py gives its architecture and its tensors in the Hugging Face format
('' or none where it has no such form). Two more are optional: `slots` names the array of the batch
whose columns it reads, (R, M), in the place of those first tokens; a `tied` head is given the
encoder's word table.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bert_ft.models import attention, ops
from bert_ft.models.bert import Batch, Dense, LayerNorm, low_rank
from bert_ft.models.noise import Noise, make_noise

Outputs = dict[str, jax.Array]
MASKED = -1e30  # a logit of what is no choice; the sum of two is still finite
_ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu, "gelu": ops.gelu}


def pooled_first(
    hidden: jax.Array, batch: Batch, noise: Noise | None, config: Any, dtype: jnp.dtype
) -> jax.Array:
    """float32 (B * pieces, H) of (R, E, H): each sequence's first token behind the pooler (dense,
    tanh) and dropout, as BERT has it (Devlin et al. 2019, 3.2 and A.2); without the pooler where
    the config has none. To be called within a head, whose parameters 'pooler/' then are. With
    `mixed_with` int32 (B,) in the batch, and `mixed_share` float32 (), each is mixed with another's
    (methods/mixup.py)."""
    pooled_BxH = hidden.reshape(-1, hidden.shape[-1])[batch["example_slot"]]
    if config.pooler:
        dense = Dense(hidden.shape[-1], dtype, config.initializer_range, name="pooler")
        pooled_BxH = _ACTIVATIONS[config.head_activation](dense(pooled_BxH))
    if noise:
        pooled_BxH = noise.hidden(pooled_BxH, -1, sequence_ids(batch))
    pooled_BxH = pooled_BxH.astype(jnp.float32)
    if "mixed_with" in batch:
        share = batch["mixed_share"]
        pooled_BxH = share * pooled_BxH + (1 - share) * pooled_BxH[batch["mixed_with"]]
    return pooled_BxH


class SequenceHead(nn.Module):
    """Logits of each example from its first token: pooler, dropout, dense. Reads (R, E, H), gives
    {'logits': float32 (B, classes)}, 'pooled' float32 (B, H), which the dense layer reads, and
    'class_weights', float32 (classes,), where there are some: constants of the training data that
    the loss needs."""

    classes: int
    config: Any
    dtype: jnp.dtype
    class_weights: tuple[float, ...] = ()
    first_only = True  # reads no other token's last hidden state
    kind = "sequence"

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> Outputs:
        pooled = pooled_first(hidden, batch, noise, self.config, self.dtype)
        std = self.config.initializer_range
        logits = Dense(self.classes, jnp.float32, std, name="classifier")(pooled)
        out = {"logits": logits, "pooled": pooled}
        if self.class_weights:
            out["class_weights"] = jnp.asarray(self.class_weights, jnp.float32)
        return out


class Coral(nn.Module):
    """x (B, H) -> x w + b_k, float32 (B, len(initial)), one weight vector for all k.

    `bias` holds b_0 and then what softplus makes the falls b_k-1 - b_k: so the biases fall in every
    state of training. The free ones of the paper fall at the optimum only (its theorem 1), which is
    thereby not excluded. `initial`: the biases to begin with, falling strictly.
    """

    initial: tuple[float, ...]
    std: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        falls = -np.diff(self.initial)
        start = np.concatenate([self.initial[:1], np.log(np.expm1(falls))])
        init = nn.initializers.truncated_normal(self.std)
        kernel = self.param("kernel", init, (x.shape[-1], 1), jnp.float32)
        raw = self.param("bias", lambda *_: jnp.asarray(start, jnp.float32))
        bias = raw[0] - jnp.concatenate([jnp.zeros(1), jnp.cumsum(nn.softplus(raw[1:]))])
        y = x @ kernel
        if self.has_variable("params", "lora_a"):
            y = low_rank(self.variables["params"], y, x, None)
        return y + bias


class CoralHead(nn.Module):
    """Logits of P(rank > k), k = 0 … ranks - 2 (CORAL: Cao, Mirjalili & Raschka 2020, section 3.3),
    from each example's first token: pooler, dropout, `Coral`. Reads (R, E, H) and gives {'logits':
    float32 (B, ranks - 1)}, falling in k, and 'pooled' float32 (B, H), which they are of."""

    initial: tuple[float, ...]
    config: Any
    dtype: jnp.dtype
    first_only = True

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> Outputs:
        pooled = pooled_first(hidden, batch, noise, self.config, self.dtype)
        coral = Coral(self.initial, self.config.initializer_range, name="classifier")
        return {"logits": coral(pooled), "pooled": pooled}


class TokenHead(nn.Module):
    """Logits of each token: dropout, dense, as BertForTokenClassification has it. Reads (R, S, H),
    gives {'logits': float32 (R, S, classes)}, 'hidden' float32 (R, S, H), which the dense layer
    reads, and with crf_rate > 0 the scores of a linear chain over the labels, 'start' and 'end'
    (classes,) and 'steps' (classes, classes), row: the former.

    Adam moves every parameter by about the learning rate a step, too little for scores that start
    from 0 beside a pretrained encoder. So the parameters are scores divided by crf_rate: they
    move as if their learning rate were crf_rate times the encoder's (`ops.scaled`)."""

    classes: int
    crf_rate: float
    config: Any
    dtype: jnp.dtype
    first_only = False
    kind = "token"

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> Outputs:
        if noise:
            hidden = noise.hidden(hidden, -1)
        dense = Dense(self.classes, jnp.float32, self.config.initializer_range, name="classifier")
        hidden = hidden.astype(jnp.float32)
        out = {"logits": dense(hidden), "hidden": hidden}
        if self.crf_rate:
            for name, axes in (("start", 1), ("steps", 2), ("end", 1)):
                shape, zeros = (self.classes,) * axes, nn.initializers.zeros
                raw = self.param(f"crf_{name}", zeros, shape, jnp.float32)
                out[name] = ops.scaled(raw, self.crf_rate)
        return out


class SpanHead(nn.Module):
    """Logits of each token of an example to be an answer's first and its last: one dense layer
    without dropout (Devlin et al. 2019, 4.2). Reads (R, S, H) and gives {'start', 'end': float32
    (B, S)}, counted from the example's own first token; MASKED beyond its last."""

    config: Any
    dtype: jnp.dtype
    first_only = False
    kind = "span"

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
    config: Any
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


class MaskedHead(nn.Module):
    """Logits of the words that stood where the batch's `masked_slots` (R, M) point: dense, GELU,
    LayerNorm, and the word table with a bias of its own (Devlin et al. 2019, 3.1, as their code and
    BertForMaskedLM have it; ELECTRA's table, hence the dense layer, is narrower than H). No logit
    of any other place is computed. Reads (R, M, H), gives {'logits': float32 (R, M, vocab)}."""

    config: Any
    dtype: jnp.dtype
    first_only = True  # the last layer computes the slots only
    slots = "masked_slots"
    tied = True
    kind = "masked"

    @nn.compact
    def __call__(
        self, hidden: jax.Array, batch: Batch, noise: Noise | None, table_VxW: jax.Array
    ) -> Outputs:
        c, (vocab, width) = self.config, table_VxW.shape
        x = ops.gelu(Dense(width, self.dtype, c.initializer_range, name="transform")(hidden))
        x = LayerNorm(c.layer_norm_eps, name="norm")(x).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (vocab,), jnp.float32)
        # Two axes, so that the table's gradient is one plain product as well.
        logits = jax.lax.dot_general(
            x.reshape(-1, width),
            table_VxW.astype(self.dtype),
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        return {"logits": logits.reshape(*hidden.shape[:2], vocab) + bias}


def sequence_ids(batch: Batch) -> jax.Array:
    """int32 (B * pieces,): the segment number of every sequence, by which dropout is drawn."""
    ordinal = batch["ordinal"]
    pieces = batch["example_slot"].shape[0] // ordinal.shape[0]
    return (ordinal[:, None] + jnp.arange(pieces)).reshape(-1)


def kind_of(head: Any) -> str:
    """The `kind` of a head's class, or of a partial of it; '' where it has none."""
    return getattr(getattr(head, "func", head), "kind", "")


class Model(nn.Module):
    """encoder + head. `rng` is None where nothing is random; `rate`, of dropout, may be traced."""

    config: Any  # an EncoderConfig, or another that makes an encoder and has its names
    head: Any
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"  # these two as in config.model; they change no result
    layer_loop: str = "loop"
    attend: attention.Attend = attention.PLAIN

    def setup(self) -> None:
        make = functools.partial(self.config.encoder, self.dtype, self.remat, self.layer_loop)
        self.encoder = make(self.attend)
        # The same one for a pass of noise without dropout: what else draws, such as a method, drops
        # no probabilities, and need not go without a fused kernel.
        self.keeping = make(dataclasses.replace(self.attend, drops=False))
        nn.share_scope(self.keeping, self.encoder)
        self.top = self.head(self.config, self.dtype)

    def encoded(self, batch: Batch) -> jax.Array:
        """Hidden states of every token, (R, S, H), without noise."""
        return self.encoder(batch)

    def __call__(
        self, batch: Batch, rng: jax.Array | None = None, rate: jax.Array | float = 0.0
    ) -> Outputs:
        noise = None if rng is None else make_noise(rng, rate, batch, self.config)
        read = batch.get(getattr(self.top, "slots", "slots"), batch["slots"])
        drops = noise is None or isinstance(rate, jax.Array) or rate > 0
        encoder = self.encoder if drops else self.keeping
        hidden = encoder({**batch, "slots": read}, noise, first_only=self.top.first_only)
        if getattr(self.top, "tied", False):
            table = self.encoder.variables["params"]["word"]["embedding"]
            return self.top(hidden, batch, noise, table)
        return self.top(hidden, batch, noise)
