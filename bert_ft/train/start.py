"""Where parameters come from: the run's own checkpoint, config.resume, pretrained, scratch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.config import fixed
from bert_ft.errors import InputError
from bert_ft.models import hf
from bert_ft.models.multi import kinds_of
from bert_ft.train import phases
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.sharding import abstract, replicated
from bert_ft.train.step import TrainState
from bert_ft.train.system import System, example_batch


def checkpoints(
    config: ConfigDict, workdir: Path, say: Callable[[str], None], read_only: bool = False
) -> Checkpoints:
    c = config.checkpoint
    return Checkpoints(
        workdir / "checkpoints",
        keep=c.keep,
        every_steps=c.every_steps,
        every_seconds=c.every_seconds,
        say=say,
        read_only=read_only,
    )


def meta(system: System) -> dict[str, Any]:
    """What a checkpoint must agree with: the config's lasting keys and the data."""
    return {"config": fixed(system.config), "data": system.data_fingerprint}


def initial_params(system: System, say: Callable[[str], None]) -> Any:
    """Pretrained parameters where there are some, else (and for a new head) the initialisers'."""
    wanted = hf.flatten(system.abstract_params)
    found: dict[str, np.ndarray] = {}
    if system.pretrained and system.config.model.pretrained:
        found, new = hf.load(
            system.pretrained,
            system.abstract_params,
            kinds_of(system.model.head),
            hf.label_names(system.fitted),
            system.config.model.head == "new",
            say,
        )
        count = sum(v.size for v in found.values())
        say(
            f"start: {count:,} pretrained parameters from {system.config.model.pretrained}; "
            f"new: {', '.join(new) or '-'}"
        )
    else:
        count = sum(int(np.prod(w.shape)) for w in wanted.values())
        say(f"start: from scratch, {count:,} parameters")
    missing = [path for path in wanted if path not in found]

    def initialise(key: jax.Array) -> dict[str, jax.Array]:
        made = hf.flatten(system.model.init(key, example_batch())["params"])
        return {path: made[path] for path in missing}

    places = {path: wanted[path].sharding for path in missing}
    made = jax.jit(initialise, out_shardings=places)(jax.random.key(system.config.train.seed))
    loaded = {
        path: jax.make_array_from_callback(a.shape, wanted[path].sharding, a.__getitem__)
        for path, a in found.items()
    }
    return hf.unflatten({**made, **loaded})


def abstract_state(system: System, optimizer: optax.GradientTransformation) -> TrainState:
    """The state's tree of shapes with its shardings."""
    params = system.abstract_params
    opt = jax.eval_shape(optimizer.init, params)
    m = system.config.mesh
    opt = abstract(opt, system.mesh, m.preset, m.rules)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(system.mesh))
    return TrainState(step, params, opt)  # type: ignore[arg-type]


def initial_state(
    system: System,
    optimizer: optax.GradientTransformation,
    saved: Checkpoints,
    say: Callable[[str], None],
) -> tuple[TrainState, bool]:
    """(the state to go on from, in the order above, saying which it was; whether the evaluation
    that may be due at its step was made before it was saved)."""
    abstract = abstract_state(system, optimizer)
    restored = saved.restore(abstract, meta(system))
    if restored is not None:
        say(f"start: own checkpoint of step {restored[1]}")
        phases.add(restored[2].get("seconds", {}))
        return restored[0], restored[2].get("assessed", True)
    return fresh_state(system, optimizer, say), True


def fresh_state(
    system: System, optimizer: optax.GradientTransformation, say: Callable[[str], None]
) -> TrainState:
    """The state before the first step: parameters of config.resume, else as `initial_params`."""
    abstract = abstract_state(system, optimizer)
    if system.config.resume:
        params, step = trained_params(system, paths.at(system.config.resume), optimizer, say)
        say(f"start: parameters of {system.config.resume}, step {step}")
    else:
        params = initial_params(system, say)
    places = jax.tree.map(lambda s: s.sharding, abstract.opt_state)
    opt_state = jax.jit(optimizer.init, out_shardings=places)(params)
    step = jax.device_put(jnp.int32(0), abstract.step.sharding)
    return TrainState(step, params, opt_state)


def trained_params(
    system: System,
    workdir: Path,
    optimizer: optax.GradientTransformation,
    say: Callable[[str], None],
) -> tuple[Any, int]:
    """(the parameters that a run reported, their step), or those of its latest checkpoint where it
    has not finished. Raises InputError where there are none."""
    with checkpoints(system.config, workdir, say, read_only=True) as saved:
        found = saved.restore_best(system.abstract_params, {})
        if found is not None:
            return found[0], found[1]
        found = saved.restore(abstract_state(system, optimizer), {})
    if found is None:
        raise InputError(f"{workdir}: no checkpoint there; run with --mode=train first")
    return found[0].params, found[1]
