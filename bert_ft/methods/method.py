"""What a method is: pure functions of three kinds, each of which changes nothing by default.

A method is a class in a file of its own, named in methods/registry.py, whose knobs are
config.methods.NAME.*. config.methods.use lists the methods of a run; each wraps what those before
it have made, so the last one named is the outermost. Orders in which that is not what a method
means are refused (method_tables.BEFORE).

How weights are formed (`reparam`):
    freezes, trains,
    keeps               which of the model's parameters are trained
    new                 parameters of its own, beside the model's
    form                what the model is given: pruned, rounded, averaged …
    merged              plain weights of the model's own architecture
How the loss is formed (`objective`):
    objective           wraps `Run`: parameters, batch -> sums over the examples
    beside              what it puts into a batch before the model reads it
    gradient            wraps `Pass`: the same with its gradient, where that is a part of the method
How the gradient is used (`update`):
    whole               wraps the gradient of the whole batch, once a step
    rates               factors of the learning rate of parts of the model
    update              wraps the optimizer
    observe             what it measures of a step, with a memory of the steps before
    reported            the parameters that are scored, kept and exported

Trees of parameters are flat here: {'encoder/layer_0/up/kernel': array}.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bert_ft.errors import InputError
from bert_ft.models.bert import Batch

Params = Any
Flat = Mapping[str, Any]
SHIFT = "word_shift"  # of a batch: float32 (R, S, width), added to the word vectors
STEP = "step"  # of a batch, where a method is `timed`: int32 (), the steps done


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Of the examples, or tokens, of a (micro-)batch: the sum of their losses, their number, sums
    of further metrics; and the model's outputs. `each`: what a term of an example's own counts in
    these sums, so that its mean is over examples. Of several tasks the total is of means already:
    the number is then the share that the micro-batch is of the batch, and `each` one by the number
    of the batch's examples. `usual`: the mean of the micro-batches' numbers, where it is
    known; else this one's is taken for it."""

    total: jax.Array
    count: jax.Array
    extra: dict[str, Any]
    outputs: Any
    each: jax.Array | float = 1.0
    usual: jax.Array | None = None

    def of_free(self, free: jax.Array | int) -> jax.Array:
        """What a term of a text without a label counts in these sums, so that its mean is over
        those of the whole batch, `free` in each micro-batch."""
        return (self.count if self.usual is None else self.usual) / free


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slope:
    """Sums without the outputs, and the gradient of their total with respect to the trained
    parameters and, where the batch has a word_shift, to that. In a step of one micro-batch the
    total is the mean and the count 1."""

    total: jax.Array
    count: jax.Array
    extra: dict[str, Any]
    gradient: Params
    by_shift: jax.Array | None


Run = Callable[[Params, Batch, jax.Array | None], Sums]
Pass = Callable[[Params, Batch, jax.Array | None], Slope]
Whole = Callable[[Params], tuple[dict[str, jax.Array], Params]]


def summed(slope: Pass, params: Params, batch: Batch, rng: jax.Array | None) -> Slope:
    """The sum over the micro-batches along the batch's first axis, one after the other."""
    first = jax.tree.map(lambda x: x[0], batch)
    shapes = jax.eval_shape(slope, params, first, rng)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(
        lambda sofar, b: (jax.tree.map(jnp.add, sofar, slope(params, b, rng)), None), zero, batch
    )[0]


def sloped(run: Run, divided: bool) -> Pass:
    """`run` with its gradient; `divided`: by the number of examples."""

    def total(
        params: Params, shift: jax.Array | None, batch: Batch, rng: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, dict]]:
        made = run(params, batch if shift is None else {**batch, SHIFT: shift}, rng)
        if not divided:
            return made.total, (made.count, made.extra)
        extra = {k: v / made.count for k, v in made.extra.items()}
        return made.total / made.count, (jnp.ones_like(made.count), extra)

    def slope(params: Params, batch: Batch, rng: jax.Array | None) -> Slope:
        shift = batch.get(SHIFT)
        by = (0,) if shift is None else (0, 1)
        (value, (count, extra)), found = jax.value_and_grad(total, by, has_aux=True)(
            params, shift, batch, rng
        )
        return Slope(value, count, extra, found[0], found[1] if len(found) > 1 else None)

    return slope


def with_beside(methods: Sequence[Method], batch: Batch, rng: jax.Array | None) -> Batch:
    """The (micro-)batch as the model reads it."""
    for method in methods:
        batch = method.beside(batch, rng)
    return batch


class Wrapped(NamedTuple):
    """The optimizer's state under a method that wraps it: `inner` is what it wraps, `own` its own.
    Trees of parameters within `own` lie on the mesh as the parameters do."""

    inner: Any
    own: Any


def matched(key: str, pattern: str, paths: Sequence[str], what: str) -> list[str]:
    """The paths, of `what`, that a regex of config.methods is found in. Raises InputError where it
    is in none: a method that does nothing would look like one that does not help."""
    found = [path for path in paths if re.search(pattern, path)]
    if not found:
        raise InputError(
            f"config.methods.{key}: {pattern!r} matches none of the {what}; accepted: a regex that "
            f"does, as of {', '.join(paths[:3])}"
        )
    return found


class Method:
    name = ""
    freezes = False  # the model is not trained but for what `trains` says and methods.also_train
    draws = False  # it needs randomness of the model, or its own, though there be no dropout
    timed = False  # its loss, or gradient, depends on the step
    taps = False  # its loss reads what the layers compute (models/taps.py)
    counts = False  # its loss reads Sums.usual
    merges = True  # `merged` has an answer
    factors = False  # a mean of its parameters is not that of the weights that they stand for
    of_part = False  # of several tasks it changes the loss of each, before they are weighed
    wraps_update = False  # whether `update` adds a Wrapped to the optimizer's state

    def __init__(self, config: Any):
        """`config`: the whole one; its own knobs are config.methods[name]."""
        self.knobs = config.methods[self.name]

    def trains(self, path: str) -> bool:
        """Whether a parameter of the model is trained, where a method freezes the model."""
        return False

    def keeps(self, path: str) -> bool:
        """Whether a parameter of the model is not trained, whatever other methods say of it."""
        return False

    def new(self, model: Flat, rng: jax.Array) -> dict[str, jax.Array]:
        """Its own parameters at the start, by their paths. `model`: arrays, or shapes."""
        return {}

    def form(self, params: dict[str, Any], step: jax.Array) -> dict[str, Any]:
        """What the model is given, of all parameters as those before it have formed them."""
        return params

    def merged(self, params: dict[str, Any]) -> dict[str, Any]:
        """As `form`, with its own parameters worked into the model's and gone. Raises InputError
        where they have no such form."""
        return params

    def beside(self, batch: Batch, rng: jax.Array | None) -> Batch:
        return batch

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        return run

    def gradient(self, slope: Pass, task: Any, model: Any) -> Pass:
        return slope

    def whole(self, gradient: Whole) -> Whole:
        return gradient

    def rates(self, paths: Sequence[str]) -> dict[str, float]:
        """Factors of the learning rate of those of the trained parameters that have one; factors of
        several methods multiply. Raises InputError where they fit no parameter."""
        return {}

    def update(
        self, inner: optax.GradientTransformation, steps: Any
    ) -> optax.GradientTransformation:
        """`steps`: those of the run, a number that may be traced."""
        return inner

    def observe(self, metrics: dict[str, jax.Array], own: Any) -> tuple[dict[str, jax.Array], Any]:
        """(metrics, its own part of the optimizer's state) after a step; of methods with a part."""
        return metrics, own

    def reported(self, params: Params, state: Wrapped | None) -> Params:
        """`params`: what is trained, nested; `state`: its own of the optimizer's."""
        return params
