"""AdaLoRA: its algorithm, its budget, its penalty, what is reported of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import init, model
from test_weight_methods import methods

from bert_ft.methods import adalora
from bert_ft.methods.method import Sums, Wrapped
from bert_ft.methods.registry import make_methods, make_weights
from bert_ft.models.hf import flatten, unflatten


def numpy_adalora(values, gradients, steps, first, last, begin, end, beta):
    """Algorithm 1 of the paper, triplets masked at each step, with SGD of rate 0.1 on e alone."""
    mean = {k: np.zeros_like(v) for k, v in values.items()}
    spread = {k: np.zeros_like(v) for k, v in values.items()}
    counts = []
    for t in range(steps):
        g = gradients[t]
        if t < end:
            for k in values:
                i = np.abs(values[k] * g[k])
                mean[k] = beta * mean[k] + (1 - beta) * i
                spread[k] = beta * spread[k] + (1 - beta) * np.abs(i - mean[k])
        layers = sorted(k[:-6] for k in values if k.endswith("/ada_e"))
        score = []
        for layer in layers:
            s = {n: mean[f"{layer}/ada_{n}"] * spread[f"{layer}/ada_{n}"] for n in "aeb"}
            score.append(s["e"] + s["a"].mean(axis=0) + s["b"].mean(axis=1))
        part = 1.0 if t < begin else max(1 - (t - begin) / (end - begin), 0.0)
        b = last + int((first - last) * part**3 + 1e-9)
        order = np.argsort(-np.concatenate(score), kind="stable")
        keep = np.isin(np.arange(first), order[:b]).reshape(len(layers), -1)
        for layer, mask in zip(layers, keep, strict=True):
            e = values[f"{layer}/ada_e"] - 0.1 * g[f"{layer}/ada_e"]
            values[f"{layer}/ada_e"] = np.where(mask, e, 0)
        counts.append(int(keep.sum()))
    return values, counts


def test_it_follows_the_papers_algorithm():
    knobs = {"rank": 4, "target_rank": 1, "begin": 3, "end": 9}
    c = methods("adalora", **{f"adalora__{k}": v for k, v in knobs.items()})
    inner = optax.sgd(0.1)
    optimizer, rng = make_methods(c)[0].update(inner, 12), np.random.default_rng(0)
    shapes = {"ada_a": (5, 4), "ada_e": (4,), "ada_b": (4, 6)}
    flat = {f"{x}/{k}": rng.normal(size=s) for x in "uv" for k, s in shapes.items()}
    gradients = [{k: rng.normal(size=v.shape) for k, v in flat.items()} for _ in range(12)]
    for g in gradients:  # P and Q stay, so that only one rule is by hand
        g.update({k: 0.01 * v for k, v in g.items() if not k.endswith("ada_e")})

    def tree(flat):
        return unflatten({k: jnp.asarray(v, jnp.float32) for k, v in flat.items()})

    params, step, found = tree(flat), jax.jit(optimizer.update), []
    state = optimizer.init(params)
    for g in gradients:
        updates, state = step(tree(g), state, params)
        moved = flatten(optax.apply_updates(params, updates))
        still = flatten(params)
        params = unflatten({k: v if k.endswith("e") else still[k] for k, v in moved.items()})
        e = np.concatenate([np.asarray(v) for k, v in flatten(params).items() if k[-1] == "e"])
        found.append(int((e != 0).sum()))
    right, counts = numpy_adalora(flat, gradients, 12, 8, 2, 3, 9, 0.85)
    assert found == counts and counts[:4] == [8] * 4 and counts[-3:] == [2] * 3
    assert len(set(counts)) > 3
    for k, v in flatten(params).items():
        np.testing.assert_allclose(v, right[k], atol=1e-5, err_msg=k)
    assert isinstance(state, Wrapped)


def test_an_average_of_triplets_is_reported_within_the_budget():
    """The average of e is what it is where e is kept, and 0 where a step has just dropped it."""
    knobs = {"rank": 4, "target_rank": 1, "begin": 1, "end": 4}
    c = methods("adalora,ema", ema__decay=0.9, **{f"adalora__{k}": v for k, v in knobs.items()})
    weights, optimizer = make_weights(c), optax.sgd(0.1)
    for method in weights.methods:
        optimizer = method.update(optimizer, 6)
    rng = np.random.default_rng(0)
    shapes = {"ada_a": (5, 4), "ada_e": (4,), "ada_b": (4, 6)}
    flat = {f"{x}/{k}": jnp.asarray(rng.normal(size=s)) for x in "uv" for k, s in shapes.items()}
    params, step = unflatten(flat), jax.jit(optimizer.update)
    state = optimizer.init(params)
    for _ in range(6):
        g = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
        updates, state = step(g, state, params)
        params = optax.apply_updates(params, updates)
        now, average = flatten(params), flatten(state.own[1])
        told = flatten(weights.reported(params, state))
        for path, value in told.items():
            right = np.where(now[path], average[path], 0) if path[-1] == "e" else average[path]
            np.testing.assert_array_equal(value, right, err_msg=path)
    assert sum(np.count_nonzero(told[f"{x}/ada_e"]) for x in "uv") == 2
    assert sum(np.count_nonzero(average[f"{x}/ada_e"]) for x in "uv") == 8


def test_the_penalty_is_equation_4_in_the_loss_and_none_without_its_weight():
    trained = make_weights(methods("adalora", adalora__rank=8)).begin(init(model()), 0)[0]

    def clean(params, batch, rng):
        return Sums(jnp.float32(6.0), jnp.float32(12), {}, None)

    def mean_loss(weight):
        method = make_methods(methods("adalora", adalora__orthogonality=weight))[0]
        made = method.objective(clean, None, None)(trained, {}, None)
        return float(made.total / made.count), float(made.extra["orthogonality"] / made.count)

    found = []
    for path, value in flatten(trained).items():
        if path.endswith(("ada_a", "ada_b")):
            q = np.asarray(value.T if path.endswith("ada_a") else value)
            found.append(np.linalg.norm(q @ q.T - np.eye(8)) ** 2)
    assert len(found) == 8
    assert mean_loss(0.0)[0] == 0.5
    loss, seen = mean_loss(0.25)
    assert seen == pytest.approx(np.mean(found), rel=1e-5)
    assert loss == pytest.approx(0.5 + 0.25 * np.mean(found), rel=1e-5)


def test_budget_agrees_with_peft_step_by_step():
    layer = pytest.importorskip("peft.tuners.adalora.layer")
    allocator = object.__new__(layer.RankAllocator)
    allocator.init_bgt, allocator.target_bgt = 24, 7
    settings = {"tinit": 4, "tfinal": 10, "total_step": 40, "deltaT": 1}
    allocator.peft_config = type("Config", (), settings)
    steps = jnp.arange(40)
    ours = adalora.budget(steps, 24, 7, 4, 30)
    assert ours.tolist() == [allocator.budget_schedule(int(i))[0] for i in steps]
