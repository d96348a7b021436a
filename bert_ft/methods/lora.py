"""LoRA (Hu et al. 2022, eq. 3): h = W x + (alpha / rank) B A x, of which A and B are trained.

A dense layer that finds `lora_a`, `lora_b` and `lora_scale` beside its kernel adds their product
(models/bert.py), so W x and B A x are two thin products and W has no gradient.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.methods.method import Flat, Method


class Lora(Method):
    """`lora_a` float32 (in, rank), uniform as in the paper's code (Kaiming with a = sqrt(5)), and
    `lora_b` (rank, out), zeros: the model begins as it is."""

    name = "lora"
    freezes = True

    def targets(self, params: Flat) -> list[str]:
        """Paths of the dense layers that are adapted."""
        dense = [p.removesuffix("/kernel") for p in params if p.endswith("/kernel")]
        return [p for p in dense if re.search(self.knobs.targets, p)]

    def new(self, model: Flat, rng: jax.Array) -> dict[str, jax.Array]:
        made, rank = {}, self.knobs.rank
        for path in self.targets(model):
            rng, own = jax.random.split(rng)
            into, out = model[f"{path}/kernel"].shape
            bound = into**-0.5
            made[f"{path}/lora_a"] = jax.random.uniform(
                own, (into, rank), minval=-bound, maxval=bound
            )
            made[f"{path}/lora_b"] = jnp.zeros((rank, out))
        return made

    def form(self, params: dict[str, Any], step: jax.Array) -> dict[str, Any]:
        constants = {"lora_scale": self.knobs.alpha / self.knobs.rank}
        if self.knobs.dropout:
            constants["lora_rate"] = self.knobs.dropout
        own = {
            f"{path}/{name}": jnp.float32(value)
            for path in self.targets(params)
            for name, value in constants.items()
        }
        return {**params, **own}

    def merged(self, params: dict[str, Any]) -> dict[str, Any]:
        out = {p: v for p, v in params.items() if not p.rpartition("/")[2].startswith("lora_")}
        for path in self.targets(params):
            a, b, scale = (params[f"{path}/lora_{name}"] for name in ("a", "b", "scale"))
            out[f"{path}/kernel"] = params[f"{path}/kernel"] + scale * (a @ b)
        return out
