"""AdaLoRA (Zhang et al. 2023): h = W x + (alpha / rank) P diag(e) Q x (section 3.1), the rank of
each layer given by how much its triplets (a column of P, an entry of e, a row of Q) matter to the
loss.

`ada_a` (in, rank) is Q transposed, `ada_e` (rank,), `ada_b` (rank, out) P transposed; the model is
given `lora_a`, `lora_b` and `lora_scale`, as of LoRA. Steps count from 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bert_ft.methods.lora import dense_layers, layers_with, low_rank_merged
from bert_ft.methods.method import Flat, Method, Params, Run, Sums, Wrapped
from bert_ft.models.bert import Batch
from bert_ft.models.hf import flatten, unflatten

STD = 0.02  # of P and Q at the start, as in the authors' code; e is 0
Scores = dict[str, jax.Array]


def budget(step: jax.Array, first: int, last: int, begin: int, end: int) -> jax.Array:
    """int32: triplets kept at a step (section 3.3, the cubic schedule): `first` until `begin`, the
    paper's t_i, then falling to `last`, from `end`, its T - t_f, on."""
    left = 1 - jnp.clip((step - begin) / (end - begin), 0.0, 1.0)
    return last + jnp.floor((first - last) * left**3).astype(jnp.int32)


def triplet_scores(of_weights: Scores) -> Scores:
    """{layer: float32 (rank,)} of scores of single weights by path: of each triplet the score of
    its entry of e and the mean scores of its column and row (section 3.2, S_k,i)."""
    layers = [p.removesuffix("/ada_e") for p in of_weights if p.endswith("/ada_e")]
    return {
        layer: of_weights[f"{layer}/ada_e"]
        + jnp.mean(of_weights[f"{layer}/ada_a"], axis=0)
        + jnp.mean(of_weights[f"{layer}/ada_b"], axis=1)
        for layer in layers
    }


def kept(scores: Scores, count: jax.Array) -> Scores:
    """{layer: bool (rank,)}: whether a triplet is among the `count` best of all layers; of equal
    ones the earlier are."""
    place = jnp.argsort(jnp.argsort(-jnp.concatenate(list(scores.values())), stable=True))
    out, at = {}, 0
    for layer, values in scores.items():
        out[layer] = place[at : at + len(values)] < count
        at += len(values)
    return out


def orthogonality(params: Flat) -> jax.Array:
    """The mean over all P and Q of |P' P - I|^2 or |Q Q' - I|^2 (eq. 4, where it is their sum: so
    its weight means the same for any number of layers)."""
    found = []
    for path, value in params.items():
        if path.endswith(("/ada_a", "/ada_b")):
            rows = value.T if path.endswith("/ada_a") else value
            found.append(jnp.sum(jnp.square(rows @ rows.T - jnp.eye(len(rows)))))
    return sum(found, jnp.float32(0)) / max(len(found), 1)


class AdaLora(Method):
    """A triplet's e is set to 0 after each step that leaves it out of the budget; it may come back
    by its gradient, as in the paper's algorithm 1. Scores rest from `end` on, so by then the choice
    is made."""

    name = "adalora"
    freezes = True
    factors = True
    wraps_update = True

    def new(self, model: Flat, rng: jax.Array) -> dict[str, jax.Array]:
        made, rank = {}, self.knobs.rank
        for path in dense_layers(model, "adalora.targets", self.knobs.targets):
            rng, first, second = jax.random.split(rng, 3)
            into, out = model[f"{path}/kernel"].shape
            made[f"{path}/ada_a"] = STD * jax.random.normal(first, (into, rank))
            made[f"{path}/ada_e"] = jnp.zeros(rank)
            made[f"{path}/ada_b"] = STD * jax.random.normal(second, (rank, out))
        return made

    def form(self, params: dict[str, Any], step: jax.Array) -> dict[str, Any]:
        given = {p: v for p, v in params.items() if not p.rpartition("/")[2].startswith("ada_")}
        for path in layers_with("ada_a", params):
            given[f"{path}/lora_a"] = params[f"{path}/ada_a"]
            given[f"{path}/lora_b"] = params[f"{path}/ada_e"][:, None] * params[f"{path}/ada_b"]
            given[f"{path}/lora_scale"] = jnp.float32(self.knobs.alpha / self.knobs.rank)
        return given

    def merged(self, params: dict[str, Any]) -> dict[str, Any]:
        return low_rank_merged(params)

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        def penalised(params: Params, batch: Batch, rng: jax.Array | None) -> Sums:
            done = run(params, batch, rng)
            found = orthogonality(flatten(params)) * done.count
            extra = {**done.extra, "orthogonality": found}
            total = done.total + self.knobs.orthogonality * found
            return dataclasses.replace(done, total=total, extra=extra)

        return penalised

    def update(
        self, inner: optax.GradientTransformation, steps: Any
    ) -> optax.GradientTransformation:
        k = self.knobs

        def init(params: Params) -> Wrapped:
            zeros = [unflatten(jax.tree.map(jnp.zeros_like, _own(params))) for _ in "ab"]
            return Wrapped(inner.init(params), (jnp.int32(0), *zeros))

        def update(gradient: Params, state: Wrapped, params: Params) -> tuple[Params, Wrapped]:
            updates, wrapped = inner.update(gradient, state.inner, params)
            step, mean, spread = state.own
            mean, spread, by, now = (_own(t) for t in (mean, spread, gradient, params))
            learns = step < k.end
            for path in now:  # sensitivity, its average and its uncertainty: section 3.2
                sensitivity = jnp.abs(now[path] * by[path])
                m = k.beta1 * mean[path] + (1 - k.beta1) * sensitivity
                u = k.beta2 * spread[path] + (1 - k.beta2) * jnp.abs(sensitivity - m)
                mean[path] = jnp.where(learns, m, mean[path])
                spread[path] = jnp.where(learns, u, spread[path])
            own = (step + 1, unflatten(mean), unflatten(spread))
            flat = flatten(updates)
            for path, keep in self._kept(own).items():
                flat[path] = jnp.where(keep, flat[path], -now[path])
            return unflatten(flat), Wrapped(wrapped, own)

        return optax.GradientTransformation(init, update)  # type: ignore[arg-type]

    def _kept(self, own: tuple[jax.Array, Params, Params]) -> Scores:
        """{path of e: bool (rank,)}: the triplets within the budget of the last step that `own`,
        this method's part of the optimizer's state, has seen."""
        k, (done, mean, spread) = self.knobs, own
        scores = triplet_scores(jax.tree.map(jnp.multiply, flatten(mean), flatten(spread)))
        first, last = k.rank * len(scores), k.target_rank * len(scores)
        keep = kept(scores, budget(done - 1, first, last, k.begin, k.end))
        return {f"{layer}/ada_e": mask for layer, mask in keep.items()}

    def reported(self, params: Params, state: Wrapped | None) -> Params:
        """An average of e is not 0 where e has been dropped of late: here it is."""
        assert state is not None
        flat = flatten(params)
        flat |= {p: jnp.where(keep, flat[p], 0) for p, keep in self._kept(state.own).items()}
        return unflatten(flat)


def _own(tree: Params) -> Scores:
    return {p: v for p, v in flatten(tree).items() if "/ada_" in p}
