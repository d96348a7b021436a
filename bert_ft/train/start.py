"""Where parameters come from: the run's own checkpoint, config.resume, pretrained, scratch."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.config import cache_dir, fixed, flat
from bert_ft.errors import InputError
from bert_ft.models import hf
from bert_ft.models.stored_heads import Scale, rescaled
from bert_ft.train import optim, phases
from bert_ft.train.adapted import adapted
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.checksum import params_sha256
from bert_ft.train.initial import initial_params
from bert_ft.train.meaning import UNIT, WHICH, differing
from bert_ft.train.refuse import otherwise, require_same_rates
from bert_ft.train.sharding import abstract, replicated
from bert_ft.train.step import TrainState
from bert_ft.train.system import System, load_fitted

# Keys by which a run's weights are formed, and from what.
OF_WEIGHTS = (
    "methods.",
    "resume",
    "model.pretrained",
    "model.layers_from",
    "train.seed",
    "train.optimizer",
)


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


def base_params(system: System, say: Callable[[str], None]) -> Any:
    """The model's parameters before any training: config.resume's, pretrained, or new."""
    config = system.config
    if config.resume:
        params, step = _resumed(system, say)
        say(f"start: parameters of {config.resume}, step {step}")
        return params
    return initial_params(at_base(system) if config.model.pretrained else system, say)


def at_base(system: System) -> System:
    """With the directory of config.model.pretrained: a finished run's own has no weights."""
    at = hf.directory(system.config.model.pretrained, cache_dir(system.config))
    return dataclasses.replace(system, pretrained=at)


def _resumed(system: System, say: Callable[[str], None]) -> tuple[Any, int]:
    """(the parameters of the run in config.resume, its step): formed as that run formed them and
    merged, so that this one may train another part of the model."""
    workdir = paths.at(system.config.resume)
    path = workdir / "config.json"
    own = json.loads(path.read_text()) if path.is_file() else {}
    config = system.config.copy_and_resolve_references()
    config.resume, config.methods.use = "", ""
    for key, value in own.items():
        if key.startswith(OF_WEIGHTS) and key in flat(config):
            config.update_from_flattened_dict({key: value})
    _require_same_meaning(system, workdir)
    its = dataclasses.replace(system, config=config)
    optimizer = optim.make_optimizer(config, 1)
    trained, step, digest = trained_at(its, workdir, optimizer, say)
    frozen = frozen_again(its, optimizer, digest, say)
    params = full(its, trained, frozen, step)
    theirs = load_fitted(workdir)
    if its.weights.plain:
        return _in_own_unit(system, params, theirs), step
    # On the host and in float64: what is frozen of it is known by its digest, whatever machine the
    # run goes on with.
    whole = jax.device_get(jax.device_put(params, replicated(system.mesh)))
    try:
        merged = its.weights.merged(jax.tree.map(lambda x: x.astype(np.float64), whole))
    except InputError as e:
        raise InputError(f"config.resume: {workdir}: {e}") from None

    def placed(value: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
        value = value.astype(like.dtype)
        return jax.make_array_from_callback(value.shape, like.sharding, value.__getitem__)

    merged = _in_own_unit(system, merged, theirs)
    return jax.tree.map(placed, merged, system.abstract_params), step


def _in_own_unit(system: System, params: Any, theirs: Mapping[str, Any]) -> Any:
    """With the last layer of each rating, which gives label = output * scale + mean, in the unit of
    this run's training rows instead of that of `theirs`, what the other run learnt from its own."""
    flat = hf.flatten(params)
    for part in getattr(system.task, "parts", [""]):
        own, its = (f.get(part, {}) if part else f for f in (system.fitted, theirs))
        if not set(UNIT) <= own.keys() & its.keys() or all(own[k] == its[k] for k in UNIT):
            continue
        prefix = f"top/{part}/" if part else "top/"
        scales = [Scale(f["mean"], f["scale"]) for f in (its, own)]
        for path in [p for p in flat if p.startswith(prefix)]:
            flat[path] = rescaled(f"top/{path.removeprefix(prefix)}", flat[path], *scales)
    return hf.unflatten(flat)


def _require_same_meaning(system: System, workdir: Path) -> None:
    """Raises InputError where the run in config.resume means other things by its outputs, or by the
    rows of its tables, than this one."""
    if not (workdir / "model" / "task.json").is_file():
        return  # nor is there a checkpoint, which is said below
    theirs = load_fitted(workdir)
    # One of another task has other keys, and a head that is refused by its name.
    for what, _, _ in differing(system.task, system.fitted, theirs, WHICH, missing=False):
        raise InputError(
            f"config.resume: {workdir} has other {what} than this run's training set; accepted: "
            "the same ones, or its export as model.pretrained with model.head=new"
        )


def abstract_state(system: System, optimizer: optax.GradientTransformation) -> TrainState:
    """The state's tree of shapes with its shardings."""
    m, weights = system.config.mesh, system.weights
    begun = jax.eval_shape(lambda p: weights.begin(p, 0), system.abstract_params)
    params, frozen = (abstract(part, system.mesh, m.preset, m.rules) for part in begun)
    opt = jax.eval_shape(optimizer.init, params)
    opt = abstract(opt, system.mesh, m.preset, m.rules, of=params)
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(system.mesh))
    return TrainState(step, params, opt, frozen)  # type: ignore[arg-type]


def fresh_state(
    system: System,
    optimizer: optax.GradientTransformation,
    say: Callable[[str], None],
) -> TrainState:
    """The state of step 0."""
    like = abstract_state(system, optimizer)
    params, frozen = _begun(system, base_params(system, say), like)
    if system.config.model.adapter:
        params = adapted(system, params, frozen_digest(frozen), say)
    places = jax.tree.map(lambda s: s.sharding, like.opt_state)
    opt_state = jax.jit(optimizer.init, out_shardings=places)(params)
    step = jax.device_put(jnp.int32(0), like.step.sharding)
    return TrainState(step, params, opt_state, frozen)


def _begun(system: System, model: Any, like: TrainState) -> tuple[Any, Any]:
    """(what is trained, what is not) of the model's parameters."""
    if system.weights.plain:
        return model, {}
    places = jax.tree.map(lambda s: s.sharding, (like.params, like.frozen))
    begin = functools.partial(system.weights.begin, seed=system.config.train.seed)
    return jax.jit(begin, out_shardings=places, donate_argnums=0)(model)


def frozen_digest(frozen: Any) -> str:
    """SHA-256 of what is not trained, '' where everything is: a checkpoint does not hold it."""
    return params_sha256(frozen) if frozen else ""


def frozen_again(
    system: System,
    optimizer: optax.GradientTransformation,
    digest: str,
    say: Callable[[str], None],
) -> Any:
    """What the parameters of a checkpoint stand beside, made anew from where the run had it.
    Raises InputError where its digest is another now."""
    if system.weights.plain:
        return {}
    like = abstract_state(system, optimizer)
    if not digest and not like.frozen:  # a method that adds to what is trained and freezes nothing
        return {}
    frozen = _begun(system, base_params(system, say), like)[1]
    now = frozen_digest(frozen)
    if now != digest:
        raise InputError(
            f"the frozen weights have sha256 {now[:16]}, the checkpoint's had {digest[:16]}; give "
            "the model that the run was started with (config.model.pretrained, config.resume)"
        )
    return frozen


def saved_part(state: TrainState) -> TrainState:
    """What a checkpoint holds of a state."""
    return dataclasses.replace(state, frozen={})


def full(system: System, trained: Any, frozen: Any, step: Any) -> Any:
    """The parameters that the model is given."""
    return trained if system.weights.plain else system.form(frozen, trained, step)


def reported(system: System, state: TrainState) -> Any:
    """What is kept of a state as its result: of what is trained, as the last method has it."""
    return system.weights.reported(state.params, state.opt_state)


def scored(system: System, state: TrainState) -> Any:
    """The parameters that a state's scores are of."""
    return full(system, reported(system, state), state.frozen, state.step)


def initial_state(
    system: System,
    optimizer: optax.GradientTransformation,
    saved: Checkpoints,
    say: Callable[[str], None],
) -> tuple[TrainState, bool]:
    """(the state to go on from, in the order above, saying which it was; whether the evaluation
    that may be due at its step was made before it was saved)."""
    restored = saved.restore(saved_part(abstract_state(system, optimizer)), meta(system))
    if restored is None:
        saved.forget_best()
        return fresh_state(system, optimizer, say), True
    say(f"start: own checkpoint of step {restored[1]}")
    phases.add(restored[2].get("seconds", {}))
    frozen = frozen_again(system, optimizer, restored[2].get("frozen", ""), say)
    return dataclasses.replace(restored[0], frozen=frozen), restored[2].get("assessed", True)


def trained_at(
    system: System,
    workdir: Path,
    optimizer: optax.GradientTransformation,
    say: Callable[[str], None],
) -> tuple[Any, int, str]:
    """(what a run reported of what it trains, its step, the digest of what stands beside it), or
    those of its latest checkpoint where it has not finished. Raises InputError where there are
    none."""
    require_same_rates(system.config, workdir)
    like = abstract_state(system, optimizer)
    with checkpoints(system.config, workdir, say, read_only=True) as saved:
        found = saved.restore_best(like.params, {})
        if found is None:
            latest = saved.restore(saved_part(like), {})
            if latest is None:
                below = workdir / "trials"
                what = f"give one of {below}" if below.is_dir() else "run with --mode=train first"
                raise InputError(f"{workdir}: no checkpoint there; {what}")
            found = (reported(system, latest[0]), *latest[1:])
    return found[0], found[1], found[2].get("frozen", "")


def fitted_for(config: ConfigDict, workdir: Path, say: Callable[[str], None]) -> Mapping[str, Any]:
    """What training learnt from the data (load_fitted). Says where the config is not the run's,
    before anything is read by it that may not be there."""
    if note := otherwise(config, workdir):
        say(note)
    return load_fitted(workdir)


def trained_parts(
    system: System,
    workdir: Path,
    optimizer: optax.GradientTransformation,
    say: Callable[[str], None],
) -> tuple[Any, Any, int]:
    """(what is trained, what is not, the step) of `trained_at`."""
    trained, step, digest = trained_at(system, workdir, optimizer, say)
    return trained, frozen_again(system, optimizer, digest, say), step


def trained_params(
    system: System,
    workdir: Path,
    optimizer: optax.GradientTransformation,
    say: Callable[[str], None],
) -> tuple[Any, int]:
    """(the parameters that the model is given, their step) of `trained_at`."""
    trained, frozen, step = trained_parts(system, workdir, optimizer, say)
    return full(system, trained, frozen, step), step
