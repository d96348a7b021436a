"""Trials: runs of one compiled program that differ in their knobs, many at once over the mesh.

K trials are kept in waves. The trials of a wave are stacked along a leading axis, which the mesh
splits over its axis 'trial' and each device computes with `vmap`; waves follow each other. A wave
of one trial is not stacked: its program is that of a run alone, with its numbers as arguments, so
one after the other a trial computes bit for bit what it computes alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from bert_ft.data.batches import Batch, Shape
from bert_ft.errors import InputError
from bert_ft.methods.method import Params
from bert_ft.methods.registry import make_weights
from bert_ft.train import optim
from bert_ft.train.knobs import Knobs, as_arrays, with_knobs
from bert_ft.train.sharding import ROWS
from bert_ft.train.step import Programs, TrainState, train_step


@flax.struct.dataclass
class Trial:
    """A trial, or a wave of W with a leading axis (W, …) on every leaf. The knobs are a part of it,
    so that a checkpoint holds them and a trial can be replaced by another one. What is frozen
    stands beside it in a step: trials that share it have it once, and no step gives it away."""

    knobs: Knobs
    state: TrainState


def trial_step(
    trial: Trial,
    batch: Mapping[str, Any],
    frozen: Params,
    *,
    model: Any,
    task: Any,
    config: ConfigDict,
    noisy: bool,
) -> tuple[Trial, dict[str, jax.Array]]:
    """One step of one trial with its own numbers; a trial that has done its steps stays as it is.
    `noisy`: whether any trial of the program has dropout."""
    knobs, state = trial.knobs, trial.state
    new, metrics = train_step(
        dataclasses.replace(state, frozen=frozen),
        batch,
        model=model,
        task=with_knobs(task, knobs),
        optimizer=optim.make_optimizer(config, 0, knobs),
        schedule=optim.schedule(config, 0, knobs),
        rate=knobs.dropout if noisy else 0.0,
        seed=knobs.seed,
        accumulate=config.train.accumulate,
        weights=make_weights(config),
    )
    live = state.step < knobs.steps
    new = dataclasses.replace(new, frozen={})
    kept = jax.tree.map(lambda a, b: jnp.where(live, a, b), new, state)
    return Trial(knobs, kept), metrics


def waves(trials: int, mesh: Mesh, width: int) -> list[range]:
    """The trials of each wave; `width` of them on a device at a time.

    Raises InputError where the trials don't fill the mesh's axis.
    """
    axis = mesh.shape["trial"]
    require_full(trials, axis)
    most = trials // axis
    width = max(w for w in range(1, min(width, most) + 1) if most % w == 0)
    size = axis * width
    return [range(k, k + size) for k in range(0, trials, size)]


def require_full(trials: int, axis: int) -> None:
    """Raises InputError where trials don't fill the mesh's axis."""
    if trials % axis:
        raise InputError(
            f"config.mesh.trial is {axis} for {trials} trials; accepted: a divisor of their number"
        )


def stack(trials: Sequence[Any], mesh: Mesh) -> Any:
    """Trials, or what each of them has, -> a wave on the mesh, the leading axis over 'trial'; one
    alone stays as it is."""
    if len(trials) == 1:
        return trials[0]

    def place(x: Any) -> NamedSharding:
        return NamedSharding(mesh, P("trial", *getattr(x.sharding, "spec", P())))

    def together(*trials: Any) -> Any:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trials)

    return jax.jit(together, out_shardings=jax.tree.map(place, trials[0]))(*trials)


def abstract_wave(tree: Any, size: int, mesh: Mesh) -> Any:
    """What `stack`, or `place_wave`, makes of `size` trials, or batches, of these shapes."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, P("trial", *x.sharding.spec))
        return jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=place)

    return tree if size == 1 else jax.tree.map(one, tree)


def unstack(wave: Trial, size: int) -> list[Trial]:
    """A wave -> its trials."""
    if size == 1:
        return [wave]

    def place(x: Any) -> NamedSharding:
        return NamedSharding(x.sharding.mesh, P(*x.sharding.spec[1:]))

    def one(wave: Trial, k: jax.Array) -> Trial:
        return jax.tree.map(lambda x: x[k], wave)

    take = jax.jit(one, out_shardings=jax.tree.map(place, wave))
    return [take(wave, k) for k in range(size)]


def wave_programs(
    wave: Trial,
    size: int,
    step: Callable[[Trial, Any, Any], Any],
    mesh: Mesh,
    shared: bool,
    alike: bool = True,
) -> Programs:
    """The step of a wave of `size` trials, compiled when a shape of batch is first asked for.
    `shared`: all trials see one batch, which has no leading axis; `alike`: and stand beside the
    same frozen parameters, which have none."""
    places = jax.tree.map(lambda x: x.sharding, wave)
    metrics = NamedSharding(mesh, P())  # a process reads those of other processes' trials, too
    run = step
    if size > 1:
        axes = (0, None if shared else 0, None if alike else 0)
        run = jax.vmap(step, in_axes=axes, spmd_axis_name="trial")
    named = functools.wraps(step)(
        lambda state, batch, *beside: run(state, batch, *(beside or ({},)))
    )
    named.__name__ = "train_step"
    return Programs(named, (places, metrics), donate=True)


def make_trial(state: TrainState, knobs: Knobs, mesh: Mesh) -> Trial:
    return Trial(jax.device_put(as_arrays(knobs), NamedSharding(mesh, P())), state)


def place_wave(
    makes: Sequence[Callable[[range | None], Batch]], shape: Shape, mesh: Mesh, accumulate: int = 1
) -> dict[str, jax.Array]:
    """The batches of a wave's trials, stacked along a leading axis over 'trial'. Each process makes
    those of the trials on its own devices."""
    lead = (None,) if accumulate > 1 else ()
    count = len(makes)
    spans = NamedSharding(mesh, P("trial")).addressable_devices_indices_map((count,)).values()
    mine = {k for index in spans if index for k in range(*index[0].indices(count))}
    parts = {k: makes[k](None) for k in sorted(mine)}

    def array(name: str, like: np.ndarray) -> jax.Array:
        def values(index: Any) -> np.ndarray:
            which = range(*index[0].indices(count))
            return np.stack([parts[k][name][index[1:]] for k in which])

        spec = P("trial", *lead, ROWS) if name in shape.row_arrays else P("trial")
        place = NamedSharding(mesh, spec)
        return jax.make_array_from_callback((count, *like.shape), place, values)

    return {name: array(name, like) for name, like in parts[min(mine)].items()}
