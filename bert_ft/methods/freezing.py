"""Which of the model's own parameters are trained: biases alone (BitFit), all but some, some only
from a step on."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_ft.method_checks import unfreeze_rules
from bert_ft.methods.method import STEP, Flat, Method, Params, Pass, Slope, Wrapped, matched
from bert_ft.models.bert import Batch
from bert_ft.models.hf import flatten, unflatten


class _OfTargets(Method):
    def new(self, model: Flat, rng: jax.Array) -> dict[str, jax.Array]:
        matched(f"{self.name}.targets", self.knobs.targets, list(model), "model's parameters")
        return {}


class BitFit(_OfTargets):
    """The encoder's bias terms, those of LayerNorm with them (Ben Zaken, Goldberg & Ravfogel 2022,
    section 3)."""

    name = "bitfit"
    freezes = True

    def trains(self, path: str) -> bool:
        return bool(re.search(self.knobs.targets, path))


class Freeze(_OfTargets):
    """What a regex finds is not trained, whatever else would train it; all else is, but for what
    other methods freeze."""

    name = "freeze"

    def keeps(self, path: str) -> bool:
        return bool(re.search(self.knobs.targets, path))


class Unfreeze(Method):
    """Gradual unfreezing (Howard & Ruder 2018, section 3.3): parameters that a regex finds are
    trained from its step on, counted from 0; before, their gradient and their update are 0.

    Their moments begin at 0 at that step, while Adam's count of steps t does not: its correction of
    the bias would make their first updates 3 times too large. So AdamW's are multiplied by what
    sets it right for t' steps, (1 - b1^t) / (1 - b1^t') sqrt((1 - b2^t') / (1 - b2^t)) (Kingma & Ba
    2015, algorithm 1); the decay of weights is within the update, and is less for those steps.
    Lion has no such correction, LAMB divides it out by the update's norm, Adafactor clips it.
    """

    name = "unfreeze"
    timed = True
    wraps_update = True

    def __init__(self, config: Any):
        super().__init__(config)
        self.rules = unfreeze_rules(self.knobs.schedule)
        self.betas = config.train.beta1, config.train.beta2
        self.corrected = config.train.optimizer == "adamw"

    def first_step(self, path: str) -> int:
        """The step from which a parameter is trained, by the first regex that finds it."""
        return next((step for pattern, step in self.rules if re.search(pattern, path)), 0)

    def gradient(self, slope: Pass, task: Any, model: Any) -> Pass:
        def early(params: Params, batch: Batch, rng: jax.Array | None) -> Slope:
            found = slope(params, batch, rng)
            flat = flatten(found.gradient)
            late = {p: first for p in flat if (first := self.first_step(p))}
            flat |= {p: jnp.where(batch[STEP] < late[p], 0.0, flat[p]) for p in late}
            return dataclasses.replace(found, gradient=unflatten(flat))

        return early

    def update(
        self, inner: optax.GradientTransformation, steps: Any
    ) -> optax.GradientTransformation:
        def init(params: Params) -> Wrapped:
            for pattern, _ in self.rules:
                matched("unfreeze.schedule", pattern, list(flatten(params)), "trained parameters")
            return Wrapped(inner.init(params), jnp.int32(0))

        def share(step: jax.Array, first: int) -> jax.Array:
            done, own = step + 1.0, jnp.maximum(step + 1.0 - first, 1.0)
            b1, b2 = self.betas
            right = (1 - b1**done) / (1 - b1**own) * jnp.sqrt((1 - b2**own) / (1 - b2**done))
            return jnp.where(step < first, 0.0, right if self.corrected else 1.0)

        def update(gradient: Params, state: Wrapped, params: Params) -> tuple[Params, Wrapped]:
            step = state.own
            updates, wrapped = inner.update(gradient, state.inner, params)
            flat = flatten(updates)
            flat |= {p: share(step, first) * flat[p] for p in flat if (first := self.first_step(p))}
            return unflatten(flat), Wrapped(wrapped, step + 1)

        return optax.GradientTransformation(init, update)  # type: ignore[arg-type]
