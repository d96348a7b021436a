"""The numbers of a run that its compiled step may take as arguments, so that trials can differ in
them and share one program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

Number = Any  # a Python number, or a scalar array of a trial


@flax.struct.dataclass
class Knobs:
    """seed an int32; steps and warmup in steps; clip_norm is inf where nothing is clipped; dropout
    a rate; task: what the task names in its `knobs`, {config key: numbers}."""

    seed: Number
    learning_rate: Number
    warmup: Number
    steps: Number
    weight_decay: Number
    clip_norm: Number
    dropout: Number
    task: Mapping[str, Number]


def knobs_of(config: ConfigDict, steps: int, task: Any = None) -> Knobs:
    """A config's own, as Python numbers: a program that closes over them has them as constants."""
    t = config.train
    named = getattr(task, "knobs", {})
    return Knobs(
        seed=t.seed,
        learning_rate=t.learning_rate,
        warmup=int(round(t.warmup * steps)),
        steps=steps,
        weight_decay=t.weight_decay,
        clip_norm=t.clip_norm or math.inf,
        dropout=config.model.dropout,
        task={key: getattr(task, attribute) for key, attribute in named.items()},
    )


def as_arrays(knobs: Knobs) -> Knobs:
    """Python numbers -> arrays: int32 for seed and steps, float32 for the others."""
    whole = {name: jnp.asarray(getattr(knobs, name), jnp.int32) for name in ("seed", "steps")}
    floats = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), knobs)
    return floats.replace(**whole)


def with_knobs(task: Any, knobs: Knobs) -> Any:
    """The task with its own numbers replaced by those of `knobs`."""
    if not knobs.task:
        return task
    changed = object.__new__(type(task))
    changed.__dict__.update(task.__dict__)
    for key, value in knobs.task.items():
        setattr(changed, task.knobs[key], value)
    return changed
