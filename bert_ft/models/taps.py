"""What an encoder computes on its way, of each layer: hidden states, queries and keys.

Flax records what modules return. Of layers that are none of the model's own, since they are in a
loop or computed twice (model.layer_loop, model.remat), the encoder stores it under the same names.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

TAPS = "/taps"  # among a model's outputs, where a method asks for them; no part has this name
QUERY, KEY = ("attention", "query"), ("attention", "key")
Taps = dict[str, list[jax.Array]]  # a layer each: 'hidden', 'query', 'key' (R, Q or S, H)


def _in_layer(module: nn.Module, method: str, above: int = 0) -> bool:
    return method == "__call__" and module.path[above:] in ((), QUERY, KEY)


def _in_model(module: nn.Module, method: str) -> bool:
    path = module.path
    layers = len(path) > 1 and path[0] == "encoder" and path[1].startswith("layer_")
    return layers and _in_layer(module, method, 2)


def of_layer(taps: bool, layer: nn.Module, variables: Any, *args: Any) -> tuple[Any, Any]:
    """(what a layer of no model gives, what it computed, {} without `taps`)."""
    if not taps:
        return layer.apply(variables, *args), {}
    made, seen = layer.apply(
        variables, *args, capture_intermediates=_in_layer, mutable=["intermediates"]
    )
    return made, seen["intermediates"]


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
        variables, *args, **more, capture_intermediates=_in_model, mutable=["intermediates"]
    )
    layers: Mapping[str, Any] = seen["intermediates"]["encoder"]

    def of(layer: Mapping[str, Any], path: tuple[str, ...]) -> jax.Array:
        return functools.reduce(lambda at, name: at[name], path, layer)["__call__"][0]

    every = [layers[f"layer_{i}"] for i in range(len(layers))]
    names = {"hidden": (), "query": QUERY, "key": KEY}
    return outputs, {name: [of(x, path) for x in every] for name, path in names.items()}
