"""The BERT encoder (Devlin et al. 2019) in Flax Linen, over packed rows.

A batch is a dict of arrays; the encoder reads four of them, each int32 (R, S):
`tokens`, `types`, `positions` (restarting at each example) and `segments` (which example of the
batch a token belongs to, counted from 1; 0 is padding). Attention stays within a segment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_ft.errors import InputError
from bert_ft.models import attention, ops, positions, taps
from bert_ft.models.noise import Drop, Noise

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes and constants of an encoder; the names are those of Hugging Face's config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    initializer_range: float = 0.02
    pooler: bool = True
    # What sets BERT's relatives apart; models/families.py knows which has what.
    family: str = "bert"  # model_type in config.json
    embedding_size: int = 0  # width of the three tables; 0 is hidden_size (ELECTRA has less)
    position_offset: int = 0  # the row of the position table for position 0 (RoBERTa: 2)
    pad_token_id: int = 0  # read where position_offset is not 0
    head_activation: str = "tanh"  # between the two layers of the sequence head

    @property
    def positions(self) -> int:
        """The longest sequence, in tokens."""
        return self.max_position_embeddings - self.position_offset

    def encoder(
        self,
        dtype: jnp.dtype,
        remat: str = "none",
        loop: str = "loop",
        attend: attention.Attend = attention.PLAIN,
    ) -> nn.Module:
        """The encoder of these sizes, called as (batch, noise, first_only=…)."""
        return Encoder(self, dtype, remat, loop, attend)


class Dense(nn.Module):
    """y = x W + b; W float32 (in, features), used in `dtype`. With `lora_a` (in, rank), `lora_b`
    (rank, features) and a `lora_scale` among its parameters, which methods/lora.py puts there, also
    + scale (drop(x) A) B; with a `lora_gain` (features,), gain times both."""

    features: int
    dtype: jnp.dtype
    std: float

    @nn.compact
    def __call__(self, x: jax.Array, drop: Drop | None = None) -> jax.Array:
        init = nn.initializers.truncated_normal(self.std)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        x = x.astype(self.dtype)
        y = ops.matmul(x, kernel.astype(self.dtype))
        if self.has_variable("params", "lora_a"):
            y = low_rank(self.variables["params"], y, x, drop)
        y += bias.astype(self.dtype)
        return ops.by_rows(y) if y.ndim > 2 else y  # two axes: by example


def low_rank(
    own: Mapping[str, jax.Array], y: jax.Array, x: jax.Array, drop: Drop | None
) -> jax.Array:
    """y = x W with what a layer's `own` parameters say of a low-rank part, in the dtype of x."""
    a, b, scale = (own[f"lora_{name}"] for name in ("a", "b", "scale"))
    if drop and "lora_rate" in own:
        x = drop(x, own["lora_rate"])
    y += ops.matmul(ops.matmul(x, a.astype(x.dtype)), (scale * b).astype(x.dtype))
    if "lora_gain" in own:  # near 1, where bfloat16 has steps of 0.4 to 0.8 %
        y = (y.astype(jnp.float32) * own["lora_gain"]).astype(x.dtype)
    return y


class LayerNorm(nn.Module):
    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return ops.layer_norm(x, scale, bias, self.eps)


class Embed(nn.Module):
    """A table of `count` rows, float32 (count, features)."""

    count: int
    features: int
    std: float

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        init = nn.initializers.truncated_normal(self.std)
        return self.param("embedding", init, (self.count, self.features), jnp.float32)[ids]


class Adapter(nn.Module):
    """act(x N + n) V + v, of the width that its parameters have (methods/modules.py)."""

    config: EncoderConfig
    dtype: jnp.dtype
    act: Callable[[jax.Array], jax.Array] = ops.gelu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = self.variables["params"]["narrow"]["bias"].shape[0]
        std = self.config.initializer_range
        y = self.act(Dense(width, self.dtype, std, name="narrow")(x))
        return Dense(x.shape[-1], self.dtype, std, name="widen")(y)


class Attention(nn.Module):
    config: EncoderConfig
    dtype: jnp.dtype
    attend: attention.Attend = attention.PLAIN

    @nn.compact
    def __call__(self, x_RxSxH, batch: Batch, noise: Noise | None, site: int, slots=None):
        """With `slots` (R, E: columns), only those tokens ask; the result is (R, E, H). With
        `prefix_key` and `prefix_value` (P, H) among its parameters, every token attends to them as
        well. A `houlsby` there adapts what the block adds."""
        c = self.config
        heads, width = c.num_attention_heads, c.hidden_size // c.num_attention_heads
        positions, segments = batch["positions"], batch["segments"]
        ask_RxQxH, ask_segments = x_RxSxH, segments
        ids = noise.ids if noise else positions  # of no use without noise
        if slots is not None:
            ask_RxQxH = jnp.take_along_axis(x_RxSxH, slots[..., None], axis=1)
            ask_segments = jnp.take_along_axis(segments, slots, axis=1)
            ids = jnp.take_along_axis(ids, slots, axis=1)

        def project(name: str, y: jax.Array) -> jax.Array:
            """(R, S, H) -> (R, N, S, D): heads first, so that their products are plain ones."""
            which = ("query", "key", "value").index(name)
            drop = noise.dense(site, which, None if which else ids) if noise else None
            y = Dense(c.hidden_size, self.dtype, c.initializer_range, name=name)(y, drop)
            return y.reshape(*y.shape[:-1], heads, width).transpose(0, 2, 1, 3)

        q_RxNxQxD, k_RxNxSxD = project("query", ask_RxQxH), project("key", x_RxSxH)
        v_RxNxSxD = project("value", x_RxSxH)
        seen = 0  # keys of a prefix, before all others
        if self.has_variable("params", "prefix_key"):
            k_RxNxSxD, v_RxNxSxD = self._prefixed(k_RxNxSxD, v_RxNxSxD)
            seen = k_RxNxSxD.shape[2] - segments.shape[1]
            # Dropout's names of the keys: those behind every position are the prefix's.
            own = jnp.broadcast_to(c.positions + jnp.arange(seen), (len(segments), seen))
            positions = jnp.concatenate([own, positions], axis=1)
        of_keys = (lambda p: noise.attention(p, site, ids, positions)) if noise else None
        mixed = attention.attend(
            self.attend, q_RxNxQxD, k_RxNxSxD, v_RxNxSxD, ask_segments, segments, of_keys, seen
        ).transpose(0, 2, 1, 3)
        mixed = mixed.reshape(*mixed.shape[:2], c.hidden_size)
        drop = noise.dense(site + 1, 0, ids) if noise else None
        out = Dense(c.hidden_size, self.dtype, c.initializer_range, name="output")(mixed, drop)
        if noise:
            out = noise.hidden(out, site + 1, ids)
        if self.has_variable("params", "houlsby"):
            out += Adapter(c, self.dtype, name="houlsby")(out)
        return LayerNorm(c.layer_norm_eps, name="norm")(out + ask_RxQxH), ids

    def _prefixed(self, *x_RxNxSxD: jax.Array) -> list[jax.Array]:
        """Keys and values behind the prefix's, which are the same for all rows."""
        out = []
        for name, x in zip(("key", "value"), x_RxNxSxD, strict=True):
            prefix_PxH = self.variables["params"][f"prefix_{name}"].astype(self.dtype)
            rows, heads, _, width = x.shape
            prefix_NxPxD = prefix_PxH.reshape(-1, heads, width).transpose(1, 0, 2)
            before = jnp.broadcast_to(prefix_NxPxD, (rows, *prefix_NxPxD.shape))
            out.append(jnp.concatenate([before, x], axis=2))
        return out


class Layer(nn.Module):
    config: EncoderConfig
    dtype: jnp.dtype
    attend: attention.Attend = attention.PLAIN

    @nn.compact
    def __call__(self, x, batch: Batch, noise: Noise | None, site: int, slots=None):
        c = self.config
        attend = Attention(c, self.dtype, self.attend, name="attention")
        x, ids = attend(x, batch, noise, site, slots)
        up, down = (noise.dense(site + 2, k, ids) if noise else None for k in (0, 1))
        y = Dense(c.intermediate_size, self.dtype, c.initializer_range, name="up")(x, up)
        y = Dense(c.hidden_size, self.dtype, c.initializer_range, name="down")(ops.gelu(y), down)
        if noise:
            y = noise.hidden(y, site + 2, ids)
        if self.has_variable("params", "houlsby"):
            y += Adapter(c, self.dtype, name="houlsby")(y)
        norm = LayerNorm(c.layer_norm_eps, name="norm")
        if self.has_variable("params", "pfeiffer"):
            y += Adapter(c, self.dtype, jax.nn.relu, name="pfeiffer")(norm(x + y))
        return norm(x + y)


# What the backward pass finds kept of a layer beside its input, by config.model.remat; None is
# nothing. 'dots' keeps products with weights, so that only what is quick is computed again:
# attention's own products, whose size grows with the square of the length, and all between.
_KEPT = {"layer": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


class Encoder(nn.Module):
    """`remat` and `layer_loop` are those of config.model: they change neither result nor
    parameters."""

    config: EncoderConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    layer_loop: str = "loop"
    attend: attention.Attend = attention.PLAIN

    @nn.compact
    def __call__(self, batch: Batch, noise: Noise | None = None, first_only: bool = False):
        """Returns hidden states (R, S, H); with first_only, those of each example's first token,
        (R, E, H): the last layer then computes nothing that no head will read."""
        c = self.config
        std = c.initializer_range
        width = c.embedding_size or c.hidden_size
        x = Embed(c.vocab_size, width, std, name="word")(batch["tokens"])
        # Where fsdp splits the table's width, each device looks up its part of the words of all
        # with its data index; then each has its rows. Otherwise the table's gradient needs those
        # of all devices.
        x = ops.by_rows(ops.by_rows(x, ("data",)))
        if self.has_variable("params", "prompt"):  # methods/modules.py
            prompt, at = self.variables["params"]["prompt"], batch["positions"] - 1
            soft = (at >= 0) & (at < len(prompt)) & (batch["segments"] > 0)
            x = jnp.where(soft[..., None], prompt[jnp.clip(at, 0, len(prompt) - 1)], x)
        if "word_shift" in batch:  # of an adversary (methods/shifts.py)
            x += batch["word_shift"]
        x += Embed(c.max_position_embeddings, width, std, name="position")(
            positions.rows(batch, c.position_offset, c.pad_token_id) + self._prefix_length()
        )
        if c.type_vocab_size:  # a table of one row gives both texts of a pair the same
            types = jnp.minimum(batch["types"], c.type_vocab_size - 1)
            x += Embed(c.type_vocab_size, width, std, name="type")(types)
        x = LayerNorm(c.layer_norm_eps, name="norm")(x)
        if noise:
            x = noise.hidden(x, 0)
        x = ops.by_rows(x.astype(self.dtype))
        if width != c.hidden_size:
            x = Dense(c.hidden_size, self.dtype, std, name="project")(x)
        plain = (self.remat, self.layer_loop) == ("none", "loop")
        if not plain and not self.is_initializing():
            return self._layers(x, batch, noise, batch["slots"] if first_only else None)
        for i in range(c.num_hidden_layers):
            slots = batch["slots"] if first_only and i == c.num_hidden_layers - 1 else None
            x = Layer(c, self.dtype, self.attend, name=f"layer_{i}")(
                x, batch, noise, 1 + 3 * i, slots
            )
        return x

    def _prefix_length(self) -> int:
        """Of the first layer's attention, 0 without: so far on the tokens' positions begin."""
        layer = self.variables.get("params", {}).get("layer_0", {})
        prefix = layer.get("attention", {}).get("prefix_key")
        return 0 if prefix is None else prefix.shape[0]

    def _layers(self, x: jax.Array, batch: Batch, noise: Noise | None, slots: jax.Array | None):
        """All layers, each as a function of its parameters and of its own words of noise."""
        c, all_params = self.config, self.variables["params"]
        params = [all_params[f"layer_{i}"] for i in range(c.num_hidden_layers)]
        words = [noise.words[1 + 3 * i : 4 + 3 * i] if noise else None for i in range(len(params))]
        scanned = (len(params) - (slots is not None)) * (self.layer_loop == "scan")
        tapping, seen = self.is_mutable_collection("intermediates"), []

        def layer(x, params, words, slots):
            own = dataclasses.replace(noise, words=words) if noise else None
            made = Layer(c, self.dtype, self.attend, parent=None)
            return taps.of_layer(tapping, made, {"params": params}, x, batch, own, 0, slots)

        def kept(inside_scan: bool) -> Callable:
            """Nothing in a scan can merge the second computation with the first."""
            if self.remat == "none":
                return layer
            return jax.checkpoint(layer, policy=_KEPT[self.remat], prevent_cse=not inside_scan)

        if scanned:
            trees = {jax.tree.structure(p) for p in params[:scanned]}
            if len(trees) > 1:
                raise InputError(
                    "config.model.layer_loop is 'scan', but a method gives some layers parameters "
                    "that others lack; accepted: 'loop', or targets in every layer"
                )
            # Stacked in the step, since everything else knows a layer's parameters by its name.
            stacked = jax.tree.map(
                lambda *leaves: jnp.stack(leaves), *list(zip(params, words, strict=True))[:scanned]
            )
            run = kept(True)
            x, found = jax.lax.scan(lambda x, now: run(x, *now, None), x, stacked)
            seen = [jax.tree.map(lambda leaves, i=i: leaves[i], found) for i in range(scanned)]
        run = kept(False)
        for i in range(scanned, len(params)):
            x, found = run(x, params[i], words[i], slots if i == len(params) - 1 else None)
            seen.append(found)
        for i in range(len(seen) * tapping):
            self.put_variable("intermediates", f"layer_{i}", seen[i])
        return x
