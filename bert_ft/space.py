"""A space of settings to search, as JSON:

{"learning_rate": {"log": [1e-5, 1e-3]}, "dropout": {"uniform": [0, 0.3]}, "seed": {"int": [0, 9]},
 "train.schedule": {"choice": ["linear", "cosine"]}}

Names are those of config.trials. Both ends of a range are in it; 'log' is uniform in the logarithm.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np

from bert_ft.config import default, flat
from bert_ft.errors import InputError
from bert_ft.varying import Settings, key_of, known, once

KINDS = ("uniform", "log", "int", "choice")
SHAPE = '{"learning_rate": {"log": [1e-5, 1e-3]}, "dropout": {"uniform": [0, 0.3]}}'


@dataclasses.dataclass(frozen=True)
class Dimension:
    """`values`: (low, high) of a range, both included, or the choices."""

    key: str
    kind: str
    values: tuple[Any, ...]


def parsed(text: str, where: str) -> list[Dimension]:
    """A space, read. Raises InputErrors that begin with `where` it was given."""
    try:
        given = json.loads(text, object_pairs_hook=once)
    except ValueError as e:
        raise InputError(f"{where} is no JSON ({e}); accepted: {SHAPE}") from None
    if not isinstance(given, dict) or not given:
        raise InputError(f"{where} is {text!r}; accepted: {SHAPE}")
    found = [_dimension(name, of, where) for name, of in given.items()]
    keys = [one.key for one in found]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"{where}: {key!r} is given twice")
    return found


def _dimension(name: str, given: Any, where: str) -> Dimension:
    key = key_of(name, where)
    usual = flat(default())[key]
    kinds = {bool: KINDS[3:], int: KINDS[2:], str: KINDS[3:]}.get(type(usual), KINDS)
    if not (isinstance(given, dict) and len(given) == 1 and next(iter(given)) in kinds):
        shapes = " or ".join(f'{{"{kind}": […]}}' for kind in kinds)
        raise InputError(f"{where}: {name!r} is {json.dumps(given)}; accepted: {shapes}")
    [(kind, values)] = given.items()
    there = f"{where}: {name!r}: {kind!r} is {json.dumps(values)}"
    if not isinstance(values, list) or not values:
        raise InputError(f"{there}; accepted: a list")
    if kind != "choice":
        whole = kind == "int"
        numbers = (int,) if whole else (int, float)
        if len(values) != 2 or not all(type(v) in numbers and math.isfinite(v) for v in values):
            of = "whole numbers" if whole else "numbers"
            raise InputError(f"{there}; accepted: two {of}, the lower one first")
        if values[0] >= values[1]:
            raise InputError(f"{there}, which holds nothing; accepted: the lower number first")
        if kind == "log" and values[0] <= 0:
            raise InputError(f"{there}; accepted: numbers above 0")
    typed = [known({key: v}, f"{where}: {name!r}")[key] for v in values]
    if kind == "choice" and len({json.dumps(v) for v in typed}) < len(typed):
        raise InputError(f"{there}; accepted: each value once")
    return Dimension(key, kind, tuple(typed))


def draw(space: list[Dimension], rng: np.random.Generator) -> Settings:
    """A point of the space."""
    return known({one.key: _value(one, rng) for one in space}, "a draw")


def _value(one: Dimension, rng: np.random.Generator) -> Any:
    if one.kind == "choice":
        return one.values[int(rng.integers(len(one.values)))]
    low, high = one.values
    if one.kind == "int":
        return int(rng.integers(low, high, endpoint=True))
    if one.kind == "log":
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
        return min(max(value, low), high)
    return float(rng.uniform(low, high))


def ends(space: list[Dimension]) -> list[Settings]:
    """What shows whether a whole space is accepted: each end, and each choice, by itself."""
    return [{one.key: value} for one in space for value in one.values]
