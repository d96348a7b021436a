"""Trials: runs of one compiled program that differ in their knobs, many at once over the mesh.

K trials are kept in waves. The trials of a wave are stacked along a leading axis, which the mesh
splits over its axis 'trial' and each device computes with `vmap`; waves follow each other. A wave
of one trial is not stacked: its program is that of a run alone, with its numbers as arguments, so
one after the other a trial computes bit for bit what it computes alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
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
            f"config.mesh.trial is {axis} for {trials} trials at once; accepted: a divisor of the "
            "trials of each program, or of trial.at_once"
        )


def stack(trials: Iterable[Any], size: int, mesh: Mesh) -> Any:
    """`size` trials, or what each of them has, -> a wave on the mesh, the leading axis over
    'trial'; one alone stays as it is. Each is asked for when those before are in their places, so
    no device holds more than its share of the wave and one trial."""
    each = iter(trials)
    one = next(each)
    if size == 1:
        return one

    def place(x: Any) -> NamedSharding:
        return NamedSharding(mesh, P("trial", *getattr(x.sharding, "spec", P())))

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), one)
    empty = functools.partial(jax.tree.map, lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    wave = jax.jit(empty, out_shardings=jax.tree.map(place, one))()
    for k in range(size):
        wave = put(wave, k, one, size)
        one = None  # while the next one is made
        one = next(each, None)
    return wave


def abstract_wave(tree: Any, size: int, mesh: Mesh) -> Any:
    """What `stack`, or `place_wave`, makes of `size` trials, or batches, of these shapes."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        place = NamedSharding(mesh, P("trial", *x.sharding.spec))
        return jax.ShapeDtypeStruct((size, *x.shape), x.dtype, sharding=place)

    return tree if size == 1 else jax.tree.map(one, tree)


def put(wave: Any, k: int, one: Any, size: int) -> Any:
    """The wave, which is given away, with another trial in place k."""
    return one if size == 1 else _moving(_put, *_places(wave, lambda x: x.sharding))(wave, k, one)


def take(wave: Any, k: int, size: int) -> Any:
    """The trial in place k of a wave."""
    if size == 1:
        return wave

    def place(x: Any) -> NamedSharding:
        return NamedSharding(x.sharding.mesh, P(*x.sharding.spec[1:]))

    return _moving(_take, *_places(wave, place))(wave, k)


# By masks: indices would have the partitioner gather the whole axis on each device.
def _put(wave: Any, k: jax.Array, one: Any) -> Any:
    return jax.tree.map(lambda w, x: jnp.where(_at(w, k), x, w), wave, one)


def _take(wave: Any, k: jax.Array) -> Any:
    return jax.tree.map(lambda w: _sole(w, k), wave)


def _places(wave: Any, of: Callable[[Any], NamedSharding]) -> tuple[Any, tuple[NamedSharding, ...]]:
    leaves, treedef = jax.tree.flatten(wave)
    return treedef, tuple(map(of, leaves))


@functools.cache
def _moving(
    move: Callable[..., Any], treedef: Any, places: tuple[NamedSharding, ...]
) -> Callable[..., Any]:
    """`move` compiled for results in these places; a wave that changes is given away."""
    donated = 0 if move is _put else ()
    out = jax.tree.unflatten(treedef, places)
    return jax.jit(move, out_shardings=out, donate_argnums=donated)


def _at(wave: jax.Array, k: jax.Array) -> jax.Array:
    """bool (W, 1, …): where the first axis is at k."""
    return jnp.arange(len(wave)).reshape(-1, *[1] * (wave.ndim - 1)) == k


def _sole(wave: jax.Array, k: jax.Array) -> jax.Array:
    """wave[k], as a sum in which all else is 0; of bits, for -0.0 + 0.0 is 0.0."""
    whole = jnp.issubdtype(wave.dtype, jnp.integer)
    bits = wave if whole else jax.lax.bitcast_convert_type(wave, f"uint{8 * wave.dtype.itemsize}")
    found = jnp.where(_at(bits, k), bits, 0).sum(0, dtype=bits.dtype)
    return found if whole else jax.lax.bitcast_convert_type(found, wave.dtype)


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
