"""What a step must compute and move, and how fast a chip could at best do it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from bert_ft.models.attention import PLAIN
from bert_ft.train.chips import Chip
from bert_ft.train.collectives import Collective


def product_flops(jaxpr: Any) -> int:
    """Operations of all matrix products in a program, a multiplication and an addition counted as
    two: 2 x (elements of the result) x (elements summed for each). A loop's body counts as often as
    it turns, which XLA's own count does not see; of a branch, the dearest counts."""
    total = 0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += (
                2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
            )
        elif name == "cond":
            total += max(product_flops(b.jaxpr) for b in params["branches"])
        else:
            turns = params["length"] if name == "scan" else 1
            total += turns * sum(product_flops(inner) for inner in _inner(params))
    return total


def _inner(params: Mapping[str, Any]) -> list[core.Jaxpr]:
    """The programs within an equation: of a loop, a call, a checkpoint."""
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                found.append(one.jaxpr)
            elif isinstance(one, core.Jaxpr):
                found.append(one)
    return found


def step_flops(model: Any, task: Any, params: Any, batch: Mapping[str, Any], parts: int) -> int:
    """Model operations of one training step on the whole batch, padding included: three times the
    forward pass's, whose each product has two in the backward pass, one a factor (Kaplan et al.
    2020, 2.1). What rematerialisation computes again is not counted. `parts`: micro-batches, which
    are then the arrays' leading axis."""
    model = model.clone(attend=PLAIN)  # what a kernel computes is not in its call
    if parts > 1:
        batch = {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in batch.items()}

    def forward(params: Any, batch: Any) -> Any:
        outputs = model.apply({"params": params}, batch)
        return task.loss(outputs, batch) if hasattr(task, "loss") else outputs

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, dict(batch)))
    return 3 * parts * product_flops(jax.make_jaxpr(forward)(*shapes).jaxpr)


def bound(
    chip: Chip,
    devices: int,
    flops: int,
    moved: int,
    sent: Sequence[Collective],
    examples: int,
) -> dict[str, Any]:
    """A bound of what `devices` chips can do (Williams, Waterman & Patterson 2009), never a
    measurement: no step can be shorter than its longest part, were the parts to overlap entirely.

    compute_ms: flops at the published peak; memory_ms: `moved` bytes, those that each chip reads
    and writes at least, at its memory's rate; network_ms: what each chip sends at the rate of all
    of its links together, and between slices at that of the data-centre network, where published.
    """
    seconds = {
        "compute": flops / (devices * chip.flops),
        "memory": moved / chip.hbm_rate,
        "network": sum(c.sent for c in sent if c.over == "ici") / chip.ici,
    }
    if chip.dcn:
        seconds["network"] += sum(c.sent for c in sent if c.over == "dcn") / chip.dcn
    longest = max(seconds.values())
    return {
        "ms": 1e3 * longest,
        "mfu": seconds["compute"] / longest,
        "examples_per_s": examples / longest,
        "by": max(seconds, key=lambda k: seconds[k]),
        **{f"{name}_ms": 1e3 * s for name, s in seconds.items()},
    }
