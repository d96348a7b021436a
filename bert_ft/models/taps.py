"""What an encoder computes on its way, of each layer: hidden states, queries and keys.

Flax records what modules return, so the model itself knows nothing of it. The layers must be
modules of their own: model.layer_loop 'loop' and model.remat 'none'.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

TAPS = "taps"  # among a model's outputs, where a method asks for them
QUERY, KEY = ("attention", "query"), ("attention", "key")
Taps = dict[str, list[jax.Array]]  # a layer each: 'hidden', 'query', 'key' (R, Q or S, H)


def _wanted(module: nn.Module, method: str) -> bool:
    path = module.path
    in_layer = method == "__call__" and len(path) > 1 and path[1].startswith("layer_")
    return in_layer and path[0] == "encoder" and path[2:] in ((), QUERY, KEY)


def applied(taps: bool, model: Any, *args: Any) -> Any:
    """What `model.apply` gives; with what the layers computed beside it, under TAPS, if `taps`."""
    if not taps:
        return model.apply(*args)
    outputs, seen = tapped(model, *args)
    return {**outputs, TAPS: seen}


def tapped(model: Any, variables: Any, *args: Any, **more: Any) -> tuple[Any, Taps]:
    """(what `model.apply` gives, what it computed). Of a last layer that computes first tokens only
    'hidden' and 'query' are theirs, (R, E, H)."""
    outputs, seen = model.apply(
        variables, *args, **more, capture_intermediates=_wanted, mutable=["intermediates"]
    )
    layers: Mapping[str, Any] = seen["intermediates"]["encoder"]

    def of(layer: Mapping[str, Any], path: tuple[str, ...]) -> jax.Array:
        return functools.reduce(lambda at, name: at[name], path, layer)["__call__"][0]

    every = [layers[f"layer_{i}"] for i in range(len(layers))]
    names = {"hidden": (), "query": QUERY, "key": KEY}
    return outputs, {name: [of(x, path) for x in every] for name, path in names.items()}
