"""A teacher's layers as hints (Romero et al. 2015) for those of a student, as TinyBERT has them
(Jiao et al. 2020, eq. 7 and 8): beside the loss, the mean square of hidden states' differences,
H_s W - H_t with W trained, and that of attention's scores q k / sqrt(d) before the softmax.

Means are over an example's tokens, or pairs of tokens, then features or heads, then layers, so an
example counts alike however long it is (the paper adds layers up). What the teacher computes is
read from the batch: train/teacher.py has it in the cache, by token.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.methods.method import Flat, Method, Run, Sums
from bert_ft.methods.shifts import sequence_of
from bert_ft.models.bert import Batch
from bert_ft.models.taps import TAPS

# Of a batch: float16 (R, S, layers of the student, width), of the layer that each is to resemble.
TOLD = {name: f"teacher_{name}" for name in ("hidden", "query", "key")}
OWN = "hints/"  # paths of W


class Hints(Method):
    name = "hints"
    taps = True

    def new(self, model: Flat, rng: jax.Array) -> dict[str, jax.Array]:
        """W of each layer, (H, the teacher's H): the identity where both are one, else normal, so
        that the sizes stay."""
        if not self.knobs.hidden:
            return {}
        ends = [p for p in model if p.startswith("encoder/layer_") and p.endswith("/down/bias")]
        made = {}
        for i, key in enumerate(jax.random.split(rng, len(ends))):
            (own,) = model[f"encoder/layer_{i}/down/bias"].shape
            width = self.knobs.width or own
            drawn = jax.random.normal(key, (own, width)) / math.sqrt(own)
            made[f"{OWN}layer_{i}/kernel"] = jnp.eye(own) if own == width else drawn
        return made

    def form(self, params: dict[str, Any], step: Any) -> dict[str, Any]:
        return {path: leaf for path, leaf in params.items() if not path.startswith(OWN)}

    def merged(self, params: dict[str, Any]) -> dict[str, Any]:
        return self.form(params, 0)

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        k, heads = self.knobs, model.config.num_attention_heads

        def hinted(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
            made = run(params, batch, rng)
            places, own = _Places(batch), made.outputs[TAPS]
            total, extra = made.total, dict(made.extra)
            count = len(own["hidden"])
            if k.hidden:
                far = [
                    places.hidden(own["hidden"][i], params["hints"][f"layer_{i}"]["kernel"], i)
                    for i in range(count)
                ]
                extra["hints_hidden"] = jnp.sum(jnp.stack(far)) / count * made.each
                total += k.hidden * extra["hints_hidden"]
            if k.attention:
                far = [
                    places.scores(own["query"][i], own["key"][i], i, heads) for i in range(count)
                ]
                extra["hints_attention"] = jnp.sum(jnp.stack(far)) / count * made.each
                total += k.attention * extra["hints_attention"]
            return dataclasses.replace(made, total=total, extra=extra)

        return hinted


class _Places:
    """Sums over the examples of a batch, by their weights, of means over each one's tokens."""

    def __init__(self, batch: Batch):
        self.batch, self.segments, self.slots = batch, batch["segments"], batch["slots"]
        sequence = sequence_of(batch)
        example, real = jnp.maximum(sequence - 1, 0), sequence > 0
        length = batch["example_length"].astype(jnp.float32)
        self.share_RxS = jnp.where(real, (1 / length)[example], 0.0)
        self.weight_RxS = jnp.where(real, batch["weight"][example], 0.0)
        # Slots that hold no sequence point to column 0, where only the first slot's is.
        first = jnp.arange(self.slots.shape[1]) == 0
        self.filled_RxE = (first | (self.slots > 0)).astype(jnp.float32)

    def _asking(self, x_RxSxK: jax.Array, queries: int) -> jax.Array:
        """Of all tokens, or of those that the last layer computes."""
        if queries == self.segments.shape[1]:
            return x_RxSxK
        at = self.slots.reshape(*self.slots.shape, *[1] * (x_RxSxK.ndim - 2))
        return jnp.take_along_axis(x_RxSxK, at, axis=1)

    def _share(self, queries: int) -> jax.Array:
        """float32 (R, Q): what a token counts for."""
        weight = self._asking(self.weight_RxS, queries)
        if queries == self.segments.shape[1]:
            return weight * self.share_RxS
        return weight * self.filled_RxE

    def _told(self, name: str, layer: int) -> jax.Array:
        return self.batch[TOLD[name]][:, :, layer].astype(jnp.float32)

    def hidden(self, own_RxQxH: jax.Array, kernel: jax.Array, layer: int) -> jax.Array:
        queries = own_RxQxH.shape[1]
        told = self._asking(self._told("hidden", layer), queries)
        own = jnp.matmul(own_RxQxH.astype(jnp.float32), kernel, precision="highest")
        return jnp.sum(jnp.mean(jnp.square(own - told), axis=-1) * self._share(queries))

    def scores(
        self, query_RxQxH: jax.Array, key_RxSxH: jax.Array, layer: int, heads: int
    ) -> jax.Array:
        queries = query_RxQxH.shape[1]
        own = _scores(query_RxQxH, key_RxSxH, heads)
        told_query = self._asking(self._told("query", layer), queries)
        told = _scores(told_query, self._told("key", layer), heads)
        asking = self._asking(self.segments, queries)
        alike_RxQxS = asking[:, :, None] == self.segments[:, None, :]
        share = self._share(queries)[:, :, None] * self.share_RxS[:, None, :] * alike_RxQxS
        return jnp.sum(jnp.mean(jnp.square(own - told), axis=1) * share)


def _scores(query_RxQxH: jax.Array, key_RxSxH: jax.Array, heads: int) -> jax.Array:
    """float32 (R, N, Q, S): q k / sqrt(d)."""
    query, key = (
        x.astype(jnp.float32).reshape(*x.shape[:2], heads, -1) for x in (query_RxQxH, key_RxSxH)
    )
    scores = jnp.einsum("rqnd,rsnd->rnqs", query, key, precision="highest")
    return scores / math.sqrt(query.shape[-1])
