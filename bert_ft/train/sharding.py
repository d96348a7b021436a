"""The mesh, and ordered regex rules: parameter path -> PartitionSpec."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from bert_ft.data.batches import ROW_ARRAYS, Batch
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
            f"config.mesh.backend is {wanted!r}, but JAX found {devices[0].platform!r} ({devices[0]})"
        )
    sizes = [config.mesh[a] for a in AXES]
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


def batch_shardings(
    batch: Mapping[str, Any], mesh: Mesh, accumulate: int = 1
) -> dict[str, NamedSharding]:
    """Row arrays are split over the data axes, arrays of one entry an example are replicated."""
    lead = (None,) if accumulate > 1 else ()
    rows = len(lead)
    out = {}
    for name, value in batch.items():
        by_row = name in ROW_ARRAYS or (
            value.ndim > rows + 1 and value.shape[rows:][:2] == batch["tokens"].shape[rows:]
        )
        out[name] = NamedSharding(mesh, P(*lead, ROWS) if by_row else P())
    return out


def place(
    make: Callable[[range | None], Batch], rows: int, mesh: Mesh, accumulate: int = 1
) -> dict[str, jax.Array]:
    """A batch on the mesh. `make(range)` gives the batch with only those rows; each process asks for
    the rows of its own devices and no others."""
    probe = NamedSharding(mesh, P(ROWS))
    spans = [
        index[0].indices(rows) for index in probe.addressable_devices_indices_map((rows,)).values()
    ]
    mine = range(min(s[0] for s in spans), max(s[1] for s in spans))
    batch = make(mine if len(mine) < rows else None)
    targets = batch_shardings(batch, mesh, accumulate)
    axis = 1 if accumulate > 1 else 0

    def put(name: str, value: np.ndarray) -> jax.Array:
        shape = list(value.shape)
        if targets[name].spec != P():
            shape[axis] = rows
        return jax.make_array_from_process_local_data(targets[name], value, tuple(shape))

    return {name: put(name, value) for name, value in batch.items()}
