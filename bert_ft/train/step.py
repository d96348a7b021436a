"""TrainState; pure train_step and eval_step; compiled once for each shape of batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from bert_ft.methods.method import (
    STEP,
    Method,
    Params,
    Run,
    Sums,
    Whole,
    sloped,
    summed,
    with_beside,
)
from bert_ft.methods.weights import ALL, FormedModel, Weights
from bert_ft.models.bert import Batch
from bert_ft.models.heads import Model
from bert_ft.models.taps import applied


@flax.struct.dataclass
class TrainState:
    """All that changes in a step, and `frozen`, what of the model does not ({} where all of it is
    trained). step int32 (): steps done; the next batch is plan.batch(step)."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    frozen: Params = flax.struct.field(default_factory=dict)


def loss_and_gradient(
    model: Any,
    task: Any,
    params: Params,
    batch: Batch,
    rng: jax.Array | None,
    rate: jax.Array | float,
    accumulate: int,
    methods: Sequence[Method] = (),
) -> tuple[dict[str, jax.Array], Params]:
    """({'loss': mean, …}, gradient) of the whole batch: sums over examples, divided once by their
    number, so that splitting a batch over devices or micro-batches changes nothing. A task with
    several losses has a `loss_and_gradient` of its own."""
    if hasattr(task, "loss_and_gradient"):
        return task.loss_and_gradient(model, params, batch, rng, rate, accumulate, methods)

    tapping = any(m.taps for m in methods)

    def sums(params: Params, batch: Batch, rng: jax.Array | None) -> Sums:
        outputs = applied(tapping, model, {"params": params}, batch, rng, rate)
        total, count, extra = task.loss(outputs, batch)
        if whole is None:
            return Sums(total, count, extra, outputs, ratio(count, batch))
        return Sums(total, count, extra, outputs, *whole)

    def ratio(count: jax.Array, batch: Batch) -> jax.Array:
        """Of words, or weighed examples, there are more or fewer than of examples."""
        return jnp.sum(count) / jnp.maximum(jnp.sum(batch["weight"]), 1.0)

    whole: tuple[jax.Array, jax.Array] | None = None  # the last two of Sums, where they are asked
    if accumulate > 1 and any(m.taps or m.counts for m in methods):
        each = jax.lax.map(lambda b: sums(params, b, rng).count, batch)
        whole = ratio(each, batch), jnp.mean(each)
    run: Run = sums
    for method in methods:
        run = method.objective(run, task, model)
    read = run

    def given(params: Params, batch: Batch, rng: jax.Array | None) -> Sums:
        return read(params, with_beside(methods, batch, rng), rng)

    # Dividing the loss, not the gradient, saves a pass over memory as large as the model.
    slope = sloped(given, divided=accumulate == 1)
    for method in methods:
        slope = method.gradient(slope, task, model)
    if accumulate == 1:
        done = slope(params, batch, rng)
        return {"loss": done.total, **done.extra}, done.gradient
    done = summed(slope, params, batch, rng)
    metrics = {
        "loss": done.total / done.count,
        **{k: v / done.count for k, v in done.extra.items()},
    }
    return metrics, jax.tree.map(lambda g: g / done.count, done.gradient)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: Model,
    task: Any,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    rate: jax.Array | float,
    seed: jax.Array | int,
    accumulate: int,
    weights: Weights = ALL,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step on one global batch. Randomness is fold_in(seed, step) and nothing else."""
    methods = weights.methods
    # A trial's own rate is an array; `draws`: what the model draws beside dropout.
    draws = isinstance(rate, jax.Array) or rate or getattr(task, "draws", False)
    draws = draws or any(m.draws for m in methods)
    rng = jax.random.fold_in(jax.random.key(seed), state.step) if draws else None
    if any(m.timed for m in methods):
        micro = (accumulate,) if accumulate > 1 else ()
        batch = {**batch, STEP: jnp.broadcast_to(state.step, micro)}
    formed = model if weights.plain else FormedModel(model, weights, state.frozen, state.step)

    def alone(params: Params) -> tuple[dict[str, jax.Array], Params]:
        return loss_and_gradient(formed, task, params, batch, rng, rate, accumulate, methods)

    whole: Whole = alone
    for method in methods:
        whole = method.whole(whole)
    metrics, gradient = whole(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    metrics, opt_state = weights.observed(metrics, opt_state)
    metrics["gradient_norm"] = optax.global_norm(gradient)
    metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state, state.frozen), metrics


def eval_step(params: Params, batch: Batch, *, model: Model, task: Any) -> dict[str, jax.Array]:
    """What the task predicts for each example of a batch, (B, …)."""
    return task.predict(model.apply({"params": params}, batch), batch)


class Programs:
    """A step compiled ahead of time, once for each shape of batch. A compiled program takes no
    other shape, so nothing can recompile behind one's back."""

    def __init__(self, step: Callable, out_shardings: Any, donate: bool):
        """`step(state, batch, …)`; `donate` gives the state's memory to the result, and of what
        else it takes nothing."""
        places = jax.tree.leaves(out_shardings)
        self._mesh = places[0].mesh if places else None
        self._jit = jax.jit(
            step, out_shardings=out_shardings, donate_argnums=(0,) if donate else ()
        )
        self._compiled: dict[tuple, Any] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def text(self) -> str:
        """The optimised HLO of all programs, for those who look at it."""
        return "\n".join(c.as_text() for c in self._compiled.values())

    def compile(
        self,
        state: Any,
        batch: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        beside: tuple = (),
    ) -> Any:
        """The program for arrays, or shapes with shardings, like these; compiled unless that has
        been done, with these `options` of XLA's compiler."""
        if _shapes(batch) not in self._compiled:
            # The model asks for the mesh (ops.by_rows).
            with jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext():
                lowered = self._jit.lower(state, dict(batch), *beside)
            self._compiled[_shapes(batch)] = lowered.compile(dict(options or {}))
        return self._compiled[_shapes(batch)]

    def __call__(self, state: Any, batch: Mapping[str, jax.Array], *beside: Any) -> Any:
        return self._compiled[_shapes(batch)](state, dict(batch), *beside)


def _shapes(batch: Mapping[str, Any]) -> tuple:
    return tuple((name, tuple(batch[name].shape)) for name in sorted(batch))


class CompileCount:
    """Counts XLA compilations of functions whose name holds `name`, while entered."""

    def __init__(self, name: str):
        self.name, self.count = name, 0

    def _heard(self, event: str, duration_secs: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and self.name in str(
            about.get("fun_name")
        ):
            self.count += 1

    def __enter__(self) -> CompileCount:
        jax.monitoring.register_event_duration_secs_listener(self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._heard)
