"""The mesh; what the rules of mesh_rules.py make of a parameter on it; batches on its devices."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import DictKey
from ml_collections import ConfigDict

from bert_ft import mesh_rules
from bert_ft.data.batches import Batch, Shape
from bert_ft.errors import InputError
from bert_ft.mesh_rules import AXES, Rule, axes_of, rules_of
from bert_ft.models.ops import ROW_AXES

ROWS = ROW_AXES  # a batch's rows are split over both


def make_mesh(config: ConfigDict, devices: Sequence[Any] = ()) -> Mesh:
    """All devices, those that JAX finds if none are given, in the shape of config.mesh. Slices of
    TPUs, which only a slower network joins, are parts of the data axis. Raises InputError where the
    shape doesn't divide the devices."""
    devices = list(devices) or jax.devices()
    wanted = config.mesh.backend
    if wanted and devices[0].platform != wanted:
        raise InputError(
            f"config.mesh.backend is {wanted!r}, but JAX found "
            f"{devices[0].platform!r} ({devices[0]})"
        )
    slices = len({getattr(d, "slice_index", None) or 0 for d in devices})
    wanted_sizes = {a: config.mesh[a] for a in AXES}
    unsaid = (config.mesh.data, config.mesh.fsdp) == (-1, 1)
    if mesh_rules.has(config.mesh.preset, "fsdp") and unsaid:
        wanted_sizes |= {"data": slices, "fsdp": -1}  # an axis of 1 would shard nothing
    sizes = list(wanted_sizes.values())
    fixed = math.prod(s for s in sizes if s > 0)
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    if math.prod(sizes) != len(devices):
        shape = " x ".join(f"{a} {config.mesh[a]}" for a in AXES)
        raise InputError(
            f"config.mesh ({shape}) does not divide the {len(devices)} devices there are"
        )
    array = np.asarray(devices).reshape(sizes)
    if devices[0].platform == "tpu":
        array = _neighbours(dict(zip(AXES, sizes, strict=True)), devices, slices)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _neighbours(sizes: dict[str, int], devices: Sequence[Any], slices: int) -> np.ndarray:
    """TPUs in an order in which an axis joins neighbours on the chips' own network. An axis may
    have a part of one of the network's, which jax.make_mesh lets it have on a v5e alone."""
    if slices == 1:
        shape = tuple(sizes.values())
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if sizes["data"] % slices:
        raise InputError(
            f"config.mesh.data is {sizes['data']}; accepted: a multiple of the {slices} slices"
        )
    inner = {**sizes, "data": sizes["data"] // slices}
    outer = {**dict.fromkeys(AXES, 1), "data": slices}
    return mesh_utils.create_hybrid_device_mesh(
        *(tuple(inner.values()), tuple(outer.values()), devices), allow_split_physical_axes=True
    )


def check_sizes(mesh: Mesh, preset: str, heads: int, intermediate: int) -> None:
    """Raises InputError where the tensor axis can't split a layer's heads and feed-forward."""
    size = mesh.shape["tensor"] if mesh_rules.has(preset, "tensor") else 1
    for what, count in (("attention heads", heads), ("feed-forward units", intermediate)):
        if count % size:
            raise InputError(
                f"config.mesh.tensor is {size}; accepted: a divisor of the model's {count} {what}"
            )


def row_shards(mesh: Mesh) -> int:
    """How many parts a batch's rows are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def spec_for(
    path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, preset: str, rules: str = ""
) -> P:
    """The PartitionSpec of a parameter under a preset, behind the user's own `rules` (JSON, as in
    config.mesh.rules). Raises InputError where a rule has more axes than the parameter."""
    return split(path, shape, mesh, rules_of(preset, rules))[0]


def split(
    path: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh, rules: Sequence[Rule]
) -> tuple[P, list[str]]:
    """(the PartitionSpec by the first rule that matches, the mesh axes that it asked for and that
    divide nothing of the parameter). Raises KeyError for a path that no rule matches."""
    rule = next((r for r in rules if re.search(r.pattern, path)), None)
    if rule is None:
        raise KeyError(path)
    if len(rule.spec) > len(shape):
        raise InputError(
            f"config.mesh.rules: {rule.pattern!r} splits {len(rule.spec)} axes; {path}, which it "
            f"matches, has {len(shape)}: {describe(shape)}"
        )
    entries: list[Any] = [*rule.spec, *[None] * (len(shape) - len(rule.spec))]
    left: list[str] = []
    for i, entry in enumerate(rule.spec):
        axes = axes_of(entry)
        if shape[i] % math.prod(mesh.shape[a] for a in axes):
            entries[i] = None
            left += axes
    for axis in rule.largest:
        size = mesh.shape[axis]
        fits = [i for i in np.argsort(shape)[::-1] if not entries[i] and shape[i] % size == 0]
        if fits:
            entries[fits[0]] = axis
        else:
            left.append(axis)
    if path.endswith("/embedding") and any("tensor" in axes_of(e) for e in entries[1:]):
        # Measured with jax 0.10.2 on data x fsdp x tensor: the loss was another one, by 1 to 10 %.
        raise InputError(
            f"config.mesh.rules: {rule.pattern!r} puts tensor on the features of {path} "
            f"({describe(shape)}), which XLA computes wrongly; accepted: its rows, the first axis"
        )
    while entries and not entries[-1]:
        entries.pop()
    return P(*entries), left


def describe(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"


def path_of(keys: tuple) -> str:
    """'encoder/norm/scale'. Parameters are nested dicts, and so are their moments, behind the
    optimizer's own tuples: the last run of dict keys is the parameter's path in either."""
    names: list[str] = []
    for key in keys:
        names = [*names, str(key.key)] if isinstance(key, DictKey) else []
    return "/".join(names)


def shardings(tree: Any, mesh: Mesh, preset: str, rules: str = "", of: Any = None) -> Any:
    """NamedShardings for a tree of shapes: parameters, an optimizer's state, or both. Moments
    follow their parameters; scalars are replicated, and so is what has another shape than its
    parameter in `of`, such as Adafactor's sums over rows and columns."""
    shapes = {path_of(k): x.shape for k, x in jax.tree_util.tree_leaves_with_path(of)}

    def one(keys: tuple, leaf: Any) -> NamedSharding:
        path = path_of(keys)
        follows = leaf.ndim and leaf.shape == shapes.get(path, leaf.shape)
        spec = spec_for(path, leaf.shape, mesh, preset, rules) if follows else P()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, tree)


def abstract(tree: Any, mesh: Mesh, preset: str, rules: str = "", of: Any = None) -> Any:
    """A tree of shapes with its `shardings`."""
    places = shardings(tree, mesh, preset, rules, of)
    return jax.tree.map(
        lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), tree, places
    )


def held_bytes(tree: Any) -> int:
    """Bytes a device holds of arrays, or of shapes with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def place(
    make: Callable[[range | None], Batch], shape: Shape, mesh: Mesh, accumulate: int = 1
) -> dict[str, jax.Array]:
    """A batch on the mesh: row arrays are split over the data axes, the others, of one entry an
    example, are on every device. `make(range)` gives the batch with only those rows; each process
    asks for the rows of its own devices and no others, once for each run of rows: a mesh of TPUs
    follows the chips' network, on which hosts take turns."""
    lead = (None,) if accumulate > 1 else ()
    split, whole = NamedSharding(mesh, P(*lead, ROWS)), replicated(mesh)
    spans = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((shape.rows,)).values()
    mine = ranges({index[0].indices(shape.rows)[:2] for index in spans if index})
    parts = {rows: make(rows if len(rows) < shape.rows else None) for rows in mine}

    def put(name: str, value: np.ndarray) -> jax.Array:
        if name not in shape.row_arrays:
            return jax.make_array_from_process_local_data(whole, value)

        def of_device(index: Any) -> np.ndarray:
            *before, own = index[: len(lead) + 1]
            start, stop, _ = own.indices(shape.rows)
            rows = next(r for r in parts if start in r)
            return parts[rows][name][(*before, slice(start - rows.start, stop - rows.start))]

        full = (*value.shape[: len(lead)], shape.rows, *value.shape[len(lead) + 1 :])
        return jax.make_array_from_callback(full, split, of_device)

    return {name: put(name, value) for name, value in parts[mine[0]].items()}


def ranges(spans: Iterable[tuple[int, int]]) -> list[range]:
    """Spans (first, last + 1) of rows, of which none overlap -> the ranges that they make up, in
    order."""
    joined: list[range] = []
    for start, stop in sorted(spans):
        if joined and joined[-1].stop == start:
            start = joined.pop().start
        joined.append(range(start, stop))
    return joined


def abstract_batch(
    batch: Mapping[str, np.ndarray], shape: Shape, mesh: Mesh, accumulate: int = 1
) -> dict[str, jax.ShapeDtypeStruct]:
    """What `place` makes of a batch, as shapes with shardings. `batch` may hold only some rows."""
    lead = (None,) if accumulate > 1 else ()
    split, whole = NamedSharding(mesh, P(*lead, ROWS)), replicated(mesh)

    def one(name: str, value: np.ndarray) -> jax.ShapeDtypeStruct:
        by_row, full = name in shape.row_arrays, value.shape
        if by_row:
            full = (*full[: len(lead)], shape.rows, *full[len(lead) + 1 :])
        dtype = jax.dtypes.canonicalize_dtype(value.dtype)
        return jax.ShapeDtypeStruct(full, dtype, sharding=split if by_row else whole)

    return {name: one(name, value) for name, value in batch.items()}
