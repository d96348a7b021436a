"""Small trained modules within a frozen encoder, which it computes where it finds their parameters
(models/bert.py): adapters, prefixes, prompts. They are no part of a plain model's weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bert_ft.errors import InputError
from bert_ft.methods.method import Flat, Method


def _layers(model: Flat) -> list[str]:
    """Paths of the encoder's layers."""
    end = "/up/kernel"
    return [p.removesuffix(end) for p in model if p.startswith("encoder/") and p.endswith(end)]


class Module(Method):
    """`advice`: what else can be done with a model that can't be merged."""

    freezes = True
    merges = False
    advice = "config.export.format=peft writes it as peft loads it"

    def merged(self, params: dict[str, Any]) -> dict[str, Any]:
        raise InputError(
            f"config.methods.use names {self.name!r}, which can't be merged into plain weights; "
            f"{self.advice}"
        )


class _Adapter(Module):
    """x -> act(x N + n) V + v with N (H, width) normal, standard deviation 0.02, and V, n, v zeros:
    the model begins as it is."""

    places: tuple[str, ...] = ()  # within a layer
    advice = "neither transformers nor peft has a place for it; --mode=predict answers with it"

    def new(self, model: Flat, rng: jax.Array) -> dict[str, jax.Array]:
        made = {}
        for layer in _layers(model):
            hidden, width = model[f"{layer}/up/kernel"].shape[0], self.knobs.width
            for place in self.places:
                rng, own = jax.random.split(rng)
                at = f"{layer}/{place}"
                made[f"{at}/narrow/kernel"] = 0.02 * jax.random.normal(own, (hidden, width))
                made[f"{at}/narrow/bias"] = jnp.zeros(width)
                made[f"{at}/widen/kernel"] = jnp.zeros((width, hidden))
                made[f"{at}/widen/bias"] = jnp.zeros(hidden)
        return made


class Houlsby(_Adapter):
    """Two adapters a layer, each on what a sub-layer adds, before its residual and LayerNorm, and
    the LayerNorms are trained (Houlsby et al. 2019, section 2.1)."""

    name = "houlsby"
    places = ("attention/houlsby", "houlsby")

    def trains(self, path: str) -> bool:
        return path.startswith("encoder/layer_") and "/norm/" in path


class Pfeiffer(_Adapter):
    """One adapter a layer, of the feed-forward's normalised output, added before that LayerNorm
    (Pfeiffer et al. 2021; the place is that of their code)."""

    name = "pfeiffer"
    places = ("pfeiffer",)


class Prefix(Module):
    """Keys and values (length, H) of each layer, trained themselves (Li & Liang 2021, section 4;
    without their network behind them, as Liu et al. 2022, P-tuning v2, section 3.3), which every
    sequence attends to. Positions of tokens begin behind it, as where transformers is given it as
    past_key_values."""

    name = "prefix"

    def new(self, model: Flat, rng: jax.Array) -> dict[str, jax.Array]:
        made = {}
        for layer in _layers(model):
            hidden = model[f"{layer}/up/kernel"].shape[0]
            for name in ("key", "value"):
                rng, own = jax.random.split(rng)
                drawn = jax.random.normal(own, (self.knobs.length, hidden))
                made[f"{layer}/attention/prefix_{name}"] = self.knobs.std * drawn
        return made


class Prompt(Module):
    """Soft tokens: word vectors (length, width of the table) behind the first token of a sequence,
    which the head reads, trained themselves (Lester et al. 2021, section 2); they begin as those of
    words drawn from the table (section 3.2). Their places are in the data (data/prompts.py)."""

    name = "prompt"
    advice = (
        "transformers has no place for it, peft only before the first token; --mode=predict "
        "answers with it"
    )

    def new(self, model: Flat, rng: jax.Array) -> dict[str, jax.Array]:
        table = model["encoder/word/embedding"]
        words = jax.random.randint(rng, (self.knobs.length,), 0, table.shape[0])
        return {"encoder/prompt": jnp.asarray(table)[words]}
