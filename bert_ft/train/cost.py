"""What a step must compute, hold and move, and how fast a chip could at best do it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from bert_ft.methods.weights import ALL, FormedModel, Weights
from bert_ft.models.attention import PLAIN
from bert_ft.models.hf import flatten
from bert_ft.train.chips import Chip
from bert_ft.train.collectives import Collective
from bert_ft.train.sharding import held_bytes
from bert_ft.train.step import loss_and_gradient


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


def step_flops(
    model: Any,
    task: Any,
    params: Any,
    batch: Mapping[str, Any],
    parts: int,
    weights: Weights = ALL,
) -> int:
    """Model operations of one training step on the whole batch, padding included: those of the
    forward pass and of the gradient of what is trained. Where that is everything, they are three
    times the forward pass's, whose each product has two in the backward pass, one a factor (Kaplan
    et al. 2020, 2.1); a frozen kernel has none for itself, and below the lowest parameter that is
    trained there is no backward pass. Not counted: what rematerialisation computes again, and what
    a method forms weights by. `params`: the model's own; `parts`: micro-batches, which are then the
    arrays' leading axis."""
    # What a kernel computes is not in its call.
    model = model.clone(attend=PLAIN, remat="none", layer_loop="loop")
    if parts > 1:
        batch = {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in batch.items()}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, dict(batch)))
    trained, frozen = jax.eval_shape(lambda p: weights.begin(p, 0), shapes[0])

    def gradient(trained: Any, frozen: Any, batch: Any) -> Any:
        formed = model if weights.plain else FormedModel(model, weights, frozen, 0)
        return loss_and_gradient(formed, task, trained, batch, jax.random.key(0), 0.0, 1)

    def form(trained: Any, frozen: Any) -> Any:
        return weights.form(frozen, trained, 0)

    forming = product_flops(_needed(form, trained, frozen))
    return parts * (product_flops(_needed(gradient, trained, frozen, shapes[1])) - forming)


def _needed(function: Callable, *shapes: Any) -> core.Jaxpr:
    """A function's program without what bears on no result: the backward pass of `ops.matmul` has
    the gradient of both factors, also of one that is frozen."""
    jaxpr = jax.make_jaxpr(function)(*shapes).jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def compiled(
    make: Callable[[], Any], arguments: Any, others: int
) -> tuple[Any, dict[str, Any], float]:
    """(the program that `make()` compiles, None where the compiler finds that it does not fit; the
    bytes of a device, with the `others` that lie there beside it; the seconds that it took).
    `arguments`: the program's, as shapes with shardings."""
    begun = time.monotonic()
    try:
        program = make()
    except jax.errors.JaxRuntimeError as e:
        used = _wanted(str(e))
        if used is None:
            raise
        sizes = {"arguments": held_bytes(arguments), "outputs": None, "temporaries": None}
        sizes |= {"others": others, "total": used + others}
        return None, sizes, time.monotonic() - begun
    seconds, stats = time.monotonic() - begun, program.memory_analysis()
    sizes = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "others": others,
        "total": others
        + stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        + stats.generated_code_size_in_bytes,
    }
    return program, sizes, seconds


# What libtpu says of a program that does not fit, in versions of before 0.0.42 and since. Both
# numbers are of all that the program holds, its arguments too.
_REFUSALS = (
    r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
    r"total memory required for .*?\(([\d.]+)([KMGT]?)\) exceeds available HBM",
)


def _wanted(message: str) -> int | None:
    """The bytes that a program wants, from libtpu's refusal to compile one that does not fit."""
    found = next(filter(None, (re.search(text, message) for text in _REFUSALS)), None)
    if not found:
        return None
    return int(float(found[1]) * 2 ** (10 * " KMGT".index(found[2] or " ")))


def moved(sizes: Mapping[str, int], frozen: Any, given_back: bool) -> int:
    """Bytes that a chip's memory gives and takes in a step at least: the arguments are read and the
    outputs written, and what stands in the temporaries at the peak was written and is read again.
    Of frozen tables only the rows of the batch's words are read; `given_back`: what is frozen is
    among the outputs, in which it stays as it is."""
    unread = held_bytes([x for path, x in flatten(frozen).items() if path.endswith("/embedding")])
    unwritten = held_bytes(frozen) if given_back else 0
    passed = sizes["arguments"] - unread + sizes["outputs"] - unwritten
    return passed + 2 * sizes["temporaries"]


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
