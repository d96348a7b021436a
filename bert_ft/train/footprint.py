"""What of a run lies on each device: bytes by group, and what no rule has split."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bert_ft.mesh_rules import axes_of, rules_of, user_rules
from bert_ft.models.hf import flatten
from bert_ft.train.sharding import describe, held_bytes, split

# The first whose pattern is found in a parameter's path.
_GROUPS = (
    ("head", r"^top/"),
    ("norms", r"(^|/)norm/"),
    ("attention", r"/attention/"),
    ("feed-forward", r"/(up|down)/"),
    ("embeddings", r"^encoder/(word|position|type|project)/"),
    ("other", r""),
)
GROUPS = ("embeddings", "attention", "feed-forward", "norms", "head", "other")


def group_of(path: str) -> str:
    return next(name for name, pattern in _GROUPS if re.search(pattern, path))


def _bytes(leaf: Any) -> np.ndarray:
    """[of the whole array, of a device's part of it]."""
    size = np.dtype(leaf.dtype).itemsize
    return size * np.array(
        [math.prod(leaf.shape), math.prod(leaf.sharding.shard_shape(leaf.shape))]
    )


def device_bytes(state: Any) -> dict[str, tuple[int, int]]:
    """{group: (bytes of the whole, bytes on a device)} of a TrainState of arrays, or of shapes with
    shardings; the groups that there are, then 'optimizer moments'."""
    out = {name: np.zeros(2, np.int64) for name in GROUPS}
    for path, leaf in {**flatten(state.frozen), **flatten(state.params)}.items():
        out[group_of(path)] += _bytes(leaf)
    moments = sum((_bytes(x) for x in jax.tree.leaves(state.opt_state)), np.zeros(2, np.int64))
    found = {**{k: v for k, v in out.items() if v[0]}, "optimizer moments": moments}
    return {name: (int(whole), int(part)) for name, (whole, part) in found.items()}


def lines(state: Any, mesh: Any, config: ConfigDict) -> list[str]:
    """What the log has of it before the first step."""
    return [
        *table(state, mesh.size),
        *unsplit({**flatten(state.frozen), **flatten(state.params)}, mesh, config),
    ]


def table(state: Any, devices: int) -> list[str]:
    """The lines of `device_bytes`, in megabytes (10^6), with their sum."""
    rows = device_bytes(state)
    parameters = [sum(v[i] for k, v in rows.items() if k != "optimizer moments") for i in (0, 1)]
    moments = rows["optimizer moments"]
    rows["total"] = parameters[0] + moments[0], parameters[1] + moments[1]
    made = [f"{'memory, MB':<18}{'whole':>11}{f'on each of {devices}':>15}"]
    for name, (whole, part) in rows.items():
        made.append(f"{name:<18}{whole / 1e6:>11,.2f}{part / 1e6:>15,.2f}")
    made[-1] += f", and {held_bytes(state.params) / 1e6:,.2f} of gradient within a step"
    return made


def unsplit(shapes: Mapping[str, Any], mesh: Any, config: ConfigDict) -> Iterator[str]:
    """What the rules ask for in vain, a line each: an axis of the mesh that divides nothing of some
    parameters of a group, one that splits no parameter at all, a rule of the user's that matches
    none. `shapes`: parameters by path."""
    m = config.mesh
    rules = rules_of(m.preset, m.rules)
    vain: dict[tuple[str, str], dict[str, str]] = {}  # (group, axis) -> {shape: path}
    used: set[str] = set()
    for path, leaf in shapes.items():
        spec, left = split(path, leaf.shape, mesh, rules)
        used |= {axis for entry in spec for axis in axes_of(entry)}
        for axis in left:
            vain.setdefault((group_of(path), axis), {}).setdefault(describe(leaf.shape), path)
    for (group, axis), found in vain.items():
        what = "; ".join(f"{path} ({shape})" for shape, path in found.items())
        yield f"sharding: {axis} {mesh.shape[axis]} divides nothing of {group}: {what} stays whole"
    for axis in ("fsdp", "tensor"):
        if mesh.shape[axis] > 1 and axis not in used:
            rest = "splits the batch alone" if axis == "fsdp" else "only repeats the computation"
            by = f"preset {m.preset!r}" + (" and config.mesh.rules" if m.rules else "")
            yield f"sharding: {by} put no parameter on {axis} {mesh.shape[axis]}, which {rest}"
    for rule in user_rules(m.rules):
        if not any(re.search(rule.pattern, path) for path in shapes):
            yield f"sharding: config.mesh.rules: {rule.pattern!r} matches no parameter"
