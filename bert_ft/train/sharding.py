"""The mesh, and ordered regex rules: parameter path -> PartitionSpec."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from bert_ft.data.batches import Batch, Shape
from bert_ft.errors import InputError

AXES = ("trial", "data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # a batch's rows are split over both

# First match wins. 'largest' puts fsdp on the largest axis that it divides.
_TENSOR = (
    (r"attention/(query|key|value)/kernel$", P(None, "tensor")),
    (r"attention/(query|key|value)/bias$", P("tensor")),
    (r"attention/output/kernel$", P("tensor", None)),
    (r"/up/kernel$", P(None, "tensor")),
    (r"/up/bias$", P("tensor")),
    (r"/down/kernel$", P("tensor", None)),
    (r".*", P()),
)
RULES: dict[str, tuple[tuple[str, Any], ...]] = {
    "replicate": ((r".*", P()),),
    "fsdp": ((r"/(kernel|embedding)$", "largest"), (r".*", P())),
    "tensor": _TENSOR,
}


def make_mesh(config: ConfigDict) -> Mesh:
    """All devices, in the shape of config.mesh. Raises InputError where it doesn't divide them."""
    devices = jax.devices()
    wanted = config.mesh.backend
    if wanted and devices[0].platform != wanted:
        raise InputError(
            f"config.mesh.backend is {wanted!r}, but JAX found "
            f"{devices[0].platform!r} ({devices[0]})"
        )
    wanted_sizes = {a: config.mesh[a] for a in AXES}
    if config.mesh.preset == "fsdp" and (config.mesh.data, config.mesh.fsdp) == (-1, 1):
        wanted_sizes |= {"data": 1, "fsdp": -1}  # an axis of 1 would shard nothing
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
        array = jax.make_mesh(sizes, AXES).devices  # neighbours on the chip's own network
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def check_sizes(mesh: Mesh, preset: str, heads: int, intermediate: int) -> None:
    """Raises InputError where the tensor axis can't split a layer's heads and feed-forward."""
    size = mesh.shape["tensor"] if preset == "tensor" else 1
    for what, count in (("attention heads", heads), ("feed-forward units", intermediate)):
        if count % size:
            raise InputError(
                f"config.mesh.tensor is {size}; accepted: a divisor of the model's {count} {what}"
            )


def row_shards(mesh: Mesh) -> int:
    """How many parts a batch's rows are split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh, preset: str) -> P:
    """The PartitionSpec of a parameter. Raises KeyError for a path that no rule matches."""
    for pattern, spec in RULES[preset]:
        if not re.search(pattern, path):
            continue
        if spec == "largest":
            size = mesh.shape["fsdp"]
            fits = [i for i in np.argsort(shape)[::-1] if shape[i] % size == 0]
            return P(*("fsdp" if fits and i == fits[0] else None for i in range(len(shape))))
        return spec
    raise KeyError(path)


def _path(keys: tuple) -> str:
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def shardings(tree: Any, mesh: Mesh, preset: str) -> Any:
    """NamedShardings for a tree of shapes. Optimizer moments end in their parameter's path, so they
    follow it; scalars are replicated."""

    def one(keys: tuple, leaf: Any) -> NamedSharding:
        spec = spec_for(_path(keys), leaf.shape, mesh, preset) if leaf.ndim else P()
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(one, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def place(
    make: Callable[[range | None], Batch], shape: Shape, mesh: Mesh, accumulate: int = 1
) -> dict[str, jax.Array]:
    """A batch on the mesh: row arrays are split over the data axes, the others, of one entry an
    example, are on every device. `make(range)` gives the batch with only those rows; each process
    asks for the rows of its own devices and no others."""
    lead = (None,) if accumulate > 1 else ()
    split, whole = NamedSharding(mesh, P(*lead, ROWS)), replicated(mesh)
    spans = NamedSharding(mesh, P(ROWS)).addressable_devices_indices_map((shape.rows,)).values()
    bounds = [index[0].indices(shape.rows) for index in spans if index]
    mine = range(min(b[0] for b in bounds), max(b[1] for b in bounds))

    def put(name: str, value: np.ndarray) -> jax.Array:
        if name not in shape.row_arrays:
            return jax.make_array_from_process_local_data(whole, value)
        full = (*value.shape[: len(lead)], shape.rows, *value.shape[len(lead) + 1 :])
        return jax.make_array_from_process_local_data(split, value, full)

    return {k: put(k, v) for k, v in make(mine if len(mine) < shape.rows else None).items()}
