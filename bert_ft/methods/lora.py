"""LoRA (Hu et al. 2022, eq. 3): h = W x + s B A x, of which A and B are trained; s is alpha / rank,
or alpha / sqrt(rank) (rsLoRA: Kalajdzievski 2023, eq. 5 and theorem 3.2).

With `dora`, h = m (W + s B A) x / |W + s B A| (Liu et al. 2024, eq. 5), the norm over each output's
weights; m is trained, and the norm is a constant to the gradient, as in their section 4.3.

A dense layer that finds `lora_a`, `lora_b` and `lora_scale` beside its kernel adds their product
(models/bert.py), so W x and B A x are two thin products and W has no gradient; `lora_gain` is
m / |W + s B A|.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.methods.method import Flat, Method, matched


def dense_layers(params: Flat, key: str, pattern: str) -> list[str]:
    """Paths of the dense layers that the regex of a key of the config finds."""
    return matched(key, pattern, layers_with("kernel", params), "dense layers")


def layers_with(name: str, params: Flat) -> list[str]:
    """Paths of the layers that have a parameter of this name."""
    return [p.removesuffix(f"/{name}") for p in params if p.endswith(f"/{name}")]


def low_rank_merged(params: dict[str, Any]) -> dict[str, Any]:
    """gain (W + s A B) in the place of W, of all that `form` has put beside it."""
    out = {p: v for p, v in params.items() if not p.rpartition("/")[2].startswith("lora_")}
    for path in layers_with("lora_a", params):
        a, b, scale = (params[f"{path}/lora_{name}"] for name in ("a", "b", "scale"))
        kernel = params[f"{path}/kernel"] + scale * (a @ b)
        out[f"{path}/kernel"] = kernel * params.get(f"{path}/lora_gain", 1.0)
    return out


def column_norms(kernel: jax.Array) -> jax.Array:
    """float32 (out,): the L2 norm of each output's weights, of a kernel (in, out)."""
    return jnp.sqrt(jnp.sum(jnp.square(kernel), axis=0))


class Lora(Method):
    """`lora_a` float32 (in, rank), uniform as in the paper's code (Kaiming with a = sqrt(5)), and
    `lora_b` (rank, out), zeros: the model begins as it is. So it does with `lora_magnitude` (out,),
    the norms of W."""

    name = "lora"
    freezes = True
    factors = True

    def __init__(self, config: Any):
        super().__init__(config)
        # Whatever model.dropout is. Layers of the encoder's blocks draw, others have no dropout.
        self.draws = self.knobs.dropout > 0

    @property
    def scale(self) -> float:
        k = self.knobs
        return k.alpha / (k.rank**0.5 if k.rank_stabilized else k.rank)

    def new(self, model: Flat, rng: jax.Array) -> dict[str, jax.Array]:
        made, rank = {}, self.knobs.rank
        for path in dense_layers(model, "lora.targets", self.knobs.targets):
            rng, own = jax.random.split(rng)
            into, out = model[f"{path}/kernel"].shape
            bound = into**-0.5
            made[f"{path}/lora_a"] = jax.random.uniform(
                own, (into, rank), minval=-bound, maxval=bound
            )
            made[f"{path}/lora_b"] = jnp.zeros((rank, out))
            if self.knobs.dora:
                made[f"{path}/lora_magnitude"] = column_norms(model[f"{path}/kernel"])
        return made

    def form(self, params: dict[str, Any], step: jax.Array) -> dict[str, Any]:
        own: dict[str, Any] = {}
        for path in layers_with("lora_a", params):
            own[f"{path}/lora_scale"] = jnp.float32(self.scale)
            if self.knobs.dropout:
                own[f"{path}/lora_rate"] = jnp.float32(self.knobs.dropout)
            if self.knobs.dora:
                a, b = (params[f"{path}/lora_{name}"] for name in ("a", "b"))
                norms = column_norms(params[f"{path}/kernel"] + self.scale * (a @ b))
                magnitude = params[f"{path}/lora_magnitude"]
                own[f"{path}/lora_gain"] = magnitude / jax.lax.stop_gradient(norms)
        return {**params, **own}

    def merged(self, params: dict[str, Any]) -> dict[str, Any]:
        return low_rank_merged(params)
