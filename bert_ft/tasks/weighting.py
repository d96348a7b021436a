"""The loss of several parts, L = sum_k w_k L_k, and its gradient; w fixed or learnt.

'uncertainty' (Kendall, Gal & Cipolla 2018, eq. 7 and 10): w_k = f_k exp(-s_k), and s_k / 2 is added
to the loss, s_k = log sigma_k^2 being learnt; f_k is 1/2 for a squared error and 1 for a
likelihood.

'gradnorm' (Chen et al. 2018, eq. 1 and 2, algorithm 1): w = K softmax(s), so that it is positive
and adds up to K; s is moved to bring each part's gradient norm G_k = |grad (w_k L_k)| to
mean(G) r_k^a, where r_k is how slowly L_k / L_k(0) falls beside the others'. The norm is that of
the gradient at the encoder's output, not at its last weights: it costs nothing more than the
backward pass. L_k(0) is the loss of a guess at chance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bert_ft.errors import InputError
from bert_ft.methods.method import Method, Pass, Run, Slope, Sums, sloped, summed, with_beside
from bert_ft.models.bert import Batch
from bert_ft.models.taps import applied

Terms = dict[str, jax.Array]
PERTURBED = "perturbations"  # flax's name of them
LEARNT = {"fixed": "", "uncertainty": "log_variance", "gradnorm": "task_weight"}  # parameters


def fixed_weights(config: ConfigDict, parts: Sequence[str]) -> list[float]:
    """task.weights or task.alpha -> a weight a part."""
    t = config.task
    if t.alpha >= 0:
        if len(parts) != 2 or t.weights:
            raise InputError(
                f"config.task.alpha is {t.alpha}; accepted: -1 where there are {len(parts)} parts "
                f"({', '.join(parts)}) and task.weights is {t.weights!r}"
            )
        return [t.alpha, 1 - t.alpha]
    weights = [float(w) for w in t.weights.split(",")] if t.weights else [1.0] * len(parts)
    if len(weights) != len(parts):
        raise InputError(
            f"config.task.weights gives {len(weights)} weights for {len(parts)} parts: "
            f"{', '.join(parts)}"
        )
    return weights


def chance_loss(task: Any, part: str, fitted: Mapping[str, Any]) -> float:
    """The loss of a guess at chance, GradNorm's L(0) (Chen et al. 2018, 3.2); NaN if unknown."""
    if task.name in ("classification", "tagging"):
        return math.log(len(fitted["labels"]))
    if task.name == "multilabel":
        heavier = zip(fitted["weights"], fitted.get("positives", ()), strict=True)
        more = sum((w - 1) * share for w, share in heavier)  # the weights are of positives alone
        return math.log(2) * (1 + more / len(fitted["labels"]))
    if task.name == "ordinal":
        return (len(fitted["ranks"]) - 1) * math.log(2)
    if task.name == "regression" and task.scaling == "standard":
        return 1.0
    return math.nan


def weights_of(task: Any, learnt: jax.Array | None) -> jax.Array:
    """float32 (parts,)."""
    if task.weighting == "uncertainty":
        assert learnt is not None
        return jnp.asarray(task.factors) * jnp.exp(-learnt)
    if task.weighting == "gradnorm":
        assert learnt is not None
        return len(task.parts) * jax.nn.softmax(learnt)
    return jnp.asarray(task.weights)


def _of_parts(task: Any, outputs: Any, values: Terms) -> jax.Array:
    """sum_k w_k value_k."""
    w = weights_of(task, outputs[""].get("learnt"))
    if task.weighting == "gradnorm":
        w = jax.lax.stop_gradient(w)
    return jnp.dot(w, jnp.stack([values[k] for k in task.parts]))


def divergence(task: Any, p: Any, q: Any, own: Mapping[str, Batch]) -> jax.Array:
    """How far two outputs of a run of `loss_and_gradient` are apart: sum_k w_k D_k, each part's
    divergence divided and weighed as its loss is. `own`: the batch as each part sees it."""
    share = q[""]["share"]
    far = {k: t.divergence(p[k], q[k], own[k]) * share[k] for k, t in task.parts.items()}
    return _of_parts(task, q, far)


def loss_and_gradient(
    task: Any,
    model: Any,
    params: Any,
    batch: Batch,
    rng: Any,
    rate: float,
    accumulate: int,
    methods: Sequence[Method] = (),
) -> tuple[dict[str, jax.Array], Any]:
    """({'loss': L, 'PART/loss': L_k, 'PART/gradient_norm': |grad w_k L_k| at the encoder's output,
    'PART/weight': w_k where learnt, …}, gradient) of the whole batch. L_k is a sum over the
    examples, or words, of the global batch divided once by their number; a part with none has the
    loss 0. Of the `methods` those bear on it that wrap the loss as a whole or the gradient."""
    names = list(task.parts)
    tapping = any(m.taps for m in methods)

    def read(
        both: Any, batch: Batch, rng: Any, whole: Terms | None
    ) -> tuple[Any, Terms, Terms, dict]:
        """`both`: parameters, and under PERTURBED what is added at the encoder's output of each
        part. Of numbers '' is that of examples; `whole` are those of the whole batch."""
        params = {k: v for k, v in both.items() if k != PERTURBED}
        variables = {"params": params, PERTURBED: both[PERTURBED]}
        batch = with_beside(methods, batch, rng)
        outputs = applied(tapping, model, variables, batch, rng, rate)
        usual = whole and {k: whole[k] / accumulate for k in names}
        found = task.sums(outputs, batch, methods, model, usual)
        total, count, extra = (
            {k: getattr(sums, what) for k, sums in found.items()}
            for what in ("total", "count", "extra")
        )
        return outputs, total, {**count, "": jnp.sum(batch["weight"])}, extra

    def no_taps(batch: Batch) -> Any:
        shapes = jax.eval_shape(model.init, jax.random.key(0), batch)[PERTURBED]
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def slope_of(counts: Terms | None) -> Pass:
        """Its total is L, or a micro-batch's part of it where `counts` are of the whole batch."""

        def weighed(both: Any, batch: Batch, rng: Any) -> Sums:
            outputs, totals, own, extra = read(both, batch, rng, counts)
            number = own if counts is None else counts
            share = {k: jnp.where(n > 0, 1 / jnp.maximum(n, 1e-6), 0.0) for k, n in number.items()}
            means = {k: totals[k] * share[k] for k in names}
            learnt = outputs[""].get("learnt")
            outputs = {**outputs, "": {**outputs[""], "share": share}}
            loss = _of_parts(task, outputs, means)
            if task.weighting == "uncertainty":
                assert learnt is not None
                there = jnp.stack([number[k] > 0 for k in names])
                loss += jnp.sum(jnp.where(there, learnt, 0.0)) / 2 / accumulate
            parts: dict[str, Any] = {"means": means}
            parts["parts"] = {k: {m: v * share[k] for m, v in extra[k].items()} for k in names}
            parts |= {"counts": own} if counts is None else {}
            return Sums(loss, jnp.float32(1 / accumulate), parts, outputs, share[""])

        run: Run = weighed
        for method in (m for m in methods if not m.of_part):
            run = method.objective(run, task, model)
        of_both = sloped(run, divided=False)

        def slope(params: Any, batch: Batch, rng: Any) -> Slope:
            made = of_both({**params, PERTURBED: no_taps(batch)}, batch, rng)
            gradient = dict(made.gradient)
            by_taps = gradient.pop(PERTURBED)
            squares = {k: jnp.sum(jnp.square(by_taps["top"][f"{k}-tap"])) for k in names}
            return dataclasses.replace(
                made, gradient=gradient, extra={**made.extra, "squares": squares}
            )

        made: Pass = slope
        for method in methods:
            made = method.gradient(made, task, model)
        return made

    counts: Any = None
    if accumulate == 1:
        done = slope_of(None)(params, batch, rng)
        counts = done.extra["counts"]
    else:
        each = jax.lax.map(
            lambda b: read({**params, PERTURBED: no_taps(b)}, b, rng, None)[2], batch
        )
        counts = jax.tree.map(jnp.sum, each)
        done = summed(slope_of(counts), params, batch, rng)
    found: dict[str, Any] = done.extra
    gradient = done.gradient
    norms = {k: jnp.sqrt(found["squares"][k]) for k in names}
    own = {k: v for k, v in found.items() if k not in ("means", "parts", "squares", "counts")}
    metrics = {"loss": done.total, **own}
    for k in names:
        metrics |= {f"{k}/loss": found["means"][k], f"{k}/gradient_norm": norms[k]}
        metrics |= {f"{k}/{name}": value for name, value in found["parts"][k].items()}
    if task.weighting != "fixed":
        metrics |= _learnt(task, model, params, gradient, metrics, counts)
    return metrics, gradient


def _learnt(
    task: Any, model: Any, params: Any, gradient: Any, metrics: Terms, counts: Terms
) -> Terms:
    """{'PART/weight': w_k}; under GradNorm the gradient of its parameter is put in its place."""
    names, name = list(task.parts), LEARNT[task.weighting]
    value = params["top"][name] * task.weight_rate
    w, pull = jax.vjp(lambda s: weights_of(task, s), value)
    if task.weighting == "gradnorm":
        norm = jnp.stack([metrics[f"{k}/gradient_norm"] for k in names])
        there = jnp.stack([counts[k] > 0 for k in names]).astype(jnp.float32)
        number = jnp.maximum(jnp.sum(there), 1.0)
        pace = jnp.stack([metrics[f"{k}/loss"] for k in names]) / jnp.asarray(task.chance)
        mean_pace = jnp.sum(pace * there) / number
        slow = pace / jnp.maximum(mean_pace, 1e-12)
        mean_norm = jnp.maximum(jnp.sum(norm * there) / number, 1e-12)
        wanted = mean_norm * slow**task.asymmetry
        # d|G_k - wanted| / dw_k, in units of the mean norm, for a gradient of about 1.
        slope = jnp.sign(norm - wanted) * norm / w / mean_norm * there
        gradient["top"][name] = pull(slope)[0]
    return {f"{k}/weight": w[i] for i, k in enumerate(names)}
