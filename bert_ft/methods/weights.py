"""What of a model's parameters is trained, what is kept as it is, and what of both the model is
given."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bert_ft.errors import InputError
from bert_ft.method_knobs import ALSO_TRAIN
from bert_ft.methods.method import Method, Params, Wrapped, matched
from bert_ft.models.hf import flatten, unflatten

# What weighs the losses of several parts (tasks/weighting.py) is beside the model in its tree.
_OF_LOSS = re.compile(r"^top/(log_variance|task_weight)$")


@dataclasses.dataclass(frozen=True)
class Weights:
    """`also_train`: config.methods.also_train. Without a method that bears on weights, all of the
    model is trained and given as it is."""

    methods: Sequence[Method] = ()
    also_train: str = ""

    @property
    def plain(self) -> bool:
        """Whether what is trained is what the model is given."""
        return not any(
            m.freezes or type(m).new is not Method.new or type(m).form is not Method.form
            for m in self.methods
        )

    @property
    def factors(self) -> bool:
        """Whether means are those of merged weights, not of what is trained."""
        return any(m.factors for m in self.methods)

    def trains(self, path: str) -> bool:
        """Whether a parameter of the model is trained: what a method keeps is not, whatever else
        would train it."""
        if _OF_LOSS.search(path):
            return True
        if any(m.keeps(path) for m in self.methods):
            return False
        if not any(m.freezes for m in self.methods):
            return True
        also = bool(self.also_train) and re.search(self.also_train, path)
        return bool(also) or any(m.trains(path) for m in self.methods)

    def begin(self, model: Params, seed: Any) -> tuple[Params, Params]:
        """(what is trained, what is not) of a model's parameters, or of their shapes."""
        if self.plain:
            return model, {}
        flat = flatten(model)
        if self.also_train not in ("", ALSO_TRAIN) and any(m.freezes for m in self.methods):
            matched("also_train", self.also_train, list(flat), "model's parameters")
        rngs = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), len(self.methods))
        trained = {path: leaf for path, leaf in flat.items() if self.trains(path)}
        frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
        for method, rng in zip(self.methods, rngs, strict=True):
            trained |= method.new(flat, rng)
        if all(_OF_LOSS.search(path) for path in trained):
            used = ",".join(method.name for method in self.methods)
            raise InputError(
                f"config.methods.use is {used!r}, with which no parameter is trained; accepted: "
                "targets that leave some, or config.methods.also_train with a regex of some"
            )
        return unflatten(trained), unflatten(frozen)

    def form(self, frozen: Params, trained: Params, step: Any) -> Params:
        """The parameters that the model is given at a step."""
        if self.plain:
            return trained
        params = {**flatten(frozen), **flatten(trained)}
        for method in self.methods:
            params = method.form(params, step)
        return unflatten(params)

    def merged(self, params: Params) -> Params:
        """Plain weights of the model's own architecture, of those it is given."""
        flat = flatten(params)
        for method in reversed(self.methods):
            flat = method.merged(flat)
        return unflatten(flat)

    def observed(self, metrics: dict[str, Any], opt_state: Any) -> tuple[dict[str, Any], Any]:
        """(metrics, the optimizer's state) of a step, with what methods measure of it."""
        parts = []
        for method in reversed(self.methods):
            if method.wraps_update:
                parts.append((method, opt_state.own))
                opt_state = opt_state.inner
        for method, own in reversed(parts):
            metrics, own = method.observe(metrics, own)
            opt_state = Wrapped(opt_state, own)
        return metrics, opt_state

    def reported(self, trained: Params, opt_state: Any) -> Params:
        """What of a state is scored, kept and exported."""
        for method in reversed(self.methods):
            own: Wrapped | None = None
            if method.wraps_update:
                own, opt_state = opt_state, opt_state.inner
            trained = method.reported(trained, own)
        return trained


ALL = Weights()  # of a run without methods


@dataclasses.dataclass(frozen=True)
class FormedModel:
    """A model as a function of what is trained."""

    model: Any
    weights: Weights
    frozen: Params
    step: Any

    @property
    def config(self) -> Any:
        return self.model.config

    def apply(self, variables: Mapping[str, Any], *args: Any, **more: Any) -> Any:
        params = self.weights.form(self.frozen, variables["params"], self.step)
        return self.model.apply({**variables, "params": params}, *args, **more)

    def init(self, *args: Any) -> Any:
        return self.model.init(*args)
