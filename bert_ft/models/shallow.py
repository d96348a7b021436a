"""A model that begins with some layers of a deeper checkpoint, as students of a distillation do
(Sanh et al. 2019, section 3, take every second one)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bert_ft.errors import InputError

_LAYER = re.compile(r"^encoder/layer_(\d+)/")


def chosen_layers(text: str, count: int) -> list[int]:
    """config.model.layers_from -> the layers that are taken of `count`, all where it is ''. Raises
    InputError on one that the checkpoint does not have."""
    if not text:
        return list(range(count))
    layers = [int(part) for part in text.split(",")]
    if max(layers) >= count:
        raise InputError(
            f"config.model.layers_from is {text!r}; accepted: layers 0 to {count - 1}, which the "
            "checkpoint has"
        )
    return layers


def deepened(flat: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Shapes by path, of a model of `count` layers, from those of one with fewer."""
    first = {p: leaf for p, leaf in flat.items() if p.startswith("encoder/layer_0/")}
    out = {p: leaf for p, leaf in flat.items() if not _LAYER.match(p)}
    for i in range(count):
        out |= {_LAYER.sub(f"encoder/layer_{i}/", p): leaf for p, leaf in first.items()}
    return out


def picked(flat: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The parameters of a deep model -> those of one whose layer i is its layer layers[i]."""
    out = {p: leaf for p, leaf in flat.items() if not _LAYER.match(p)}
    for i, layer in enumerate(layers):
        own = f"encoder/layer_{layer}/"
        out |= {
            _LAYER.sub(f"encoder/layer_{i}/", p): leaf
            for p, leaf in flat.items()
            if p.startswith(own)
        }
    return out
