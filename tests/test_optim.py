"""AdamW against its formula in float64, schedules by value, and what is not decayed, by name."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import SIZES, config, init, model

from bert_ft.models.bert import EncoderConfig
from bert_ft.models.heads import Model, TokenHead
from bert_ft.models.hf import flatten
from bert_ft.train import optim
from bert_ft.train.system import example_batch

PEAK = 1e-3


def rates(steps, warmup=0.0, kind="linear"):
    c = config(train__learning_rate=PEAK, train__warmup=warmup, train__schedule=kind)
    made = optim.schedule(c, steps)
    return np.array([float(made(i)) for i in range(steps)])


def test_linear_warmup_and_decay():
    expected = PEAK * np.array([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    np.testing.assert_allclose(rates(10, 0.2), expected, rtol=1e-5)


def test_linear_without_warmup_would_reach_zero_one_step_later():
    np.testing.assert_allclose(rates(4), PEAK * np.array([1, 0.75, 0.5, 0.25]), rtol=1e-5)


def test_cosine():
    i = np.arange(8)
    expected = np.r_[0.5, 1.0, 0.5 * (1 + np.cos(np.pi * i / 8))] * PEAK
    np.testing.assert_allclose(rates(10, 0.2, "cosine"), expected, rtol=1e-5)


def test_constant():
    np.testing.assert_allclose(rates(5, 0.2, "constant"), PEAK, rtol=1e-6)


@pytest.mark.parametrize("steps, warmup", [(1, 0.0), (1, 0.9), (3, 0.99)])
def test_short_runs_have_finite_positive_rates(steps, warmup):
    values = rates(steps, warmup)
    assert np.isfinite(values).all() and (values > 0).all() and values.max() <= PEAK * 1.0001


def adamw(params, gradients, c, steps, decay_of):
    """Loshchilov & Hutter 2019, algorithm 2, in float64, behind the clip; one dict a step."""
    t = c.train
    m = {k: np.zeros_like(v) for k, v in params.items()}
    v = {k: np.zeros_like(p) for k, p in params.items()}
    rate = optim.schedule(c, steps)
    for i, gradient in enumerate(gradients):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        scale = min(1.0, t.clip_norm / norm) if t.clip_norm else 1.0
        for k in params:
            g = gradient[k] * scale
            m[k] = t.beta1 * m[k] + (1 - t.beta1) * g
            v[k] = t.beta2 * v[k] + (1 - t.beta2) * g**2
            hat_m, hat_v = m[k] / (1 - t.beta1 ** (i + 1)), v[k] / (1 - t.beta2 ** (i + 1))
            update = hat_m / (np.sqrt(hat_v) + t.epsilon) + decay_of(k) * params[k]
            params[k] = params[k] - float(rate(i)) * update
    return params


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_adamw_is_its_formula(clip):
    """Five steps; the gradients' norm lies on both sides of the clip."""
    c = config(train__learning_rate=0.01, train__weight_decay=0.1, train__clip_norm=clip)
    rng = np.random.default_rng(0)
    shapes = {"top/kernel": (3, 4), "top/bias": (4,), "norm/scale": (4,)}
    start = {k: rng.normal(size=s) for k, s in shapes.items()}
    scales = (0.01, 0.3, 1.0, 2.0, 0.05)
    gradients = [{k: s * rng.normal(size=shape) for k, shape in shapes.items()} for s in scales]
    expected = adamw(dict(start), gradients, c, 5, lambda k: 0.1 if k == "top/kernel" else 0.0)

    def tree(flat):
        return {
            "top": {n: jnp.asarray(flat[f"top/{n}"], jnp.float32) for n in ("kernel", "bias")},
            "norm": {"scale": jnp.asarray(flat["norm/scale"], jnp.float32)},
        }

    params, optimizer = tree(start), optim.make_optimizer(c, 5)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(tree(gradient), state, params)
        params = optax.apply_updates(params, updates)
    for k, value in flatten(params).items():
        np.testing.assert_allclose(value, expected[k], rtol=0, atol=2e-6, err_msg=k)


MINILM = EncoderConfig(
    hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
)


def minilm_shapes():
    return jax.eval_shape(model(MINILM).init, jax.random.key(0), example_batch())["params"]


def test_what_is_not_decayed_in_minilm_is_its_biases_and_layer_norms():
    layer = "encoder/layer_*/"
    dense = (
        "attention/query",
        "attention/key",
        "attention/value",
        "attention/output",
        "up",
        "down",
    )
    norms = ("attention/norm", "norm")
    expected = [f"{layer}{d}/bias" for d in dense]
    expected += [
        f"{p}/{x}" for p in (*(layer + n for n in norms), "encoder/norm") for x in ("bias", "scale")
    ]
    expected += ["top/pooler/bias", "top/classifier/bias"]
    assert optim.undecayed_paths(minilm_shapes()) == sorted(expected)


def test_the_mask_says_what_the_list_says():
    """By rank as well: what is decayed is every matrix and table, and no vector."""
    shapes = minilm_shapes()
    mask = flatten(optim.decayed(shapes))
    for path, leaf in flatten(shapes).items():
        assert mask[path] == (leaf.ndim == 2), path
    assert sum(not m for m in mask.values()) == 6 * 10 + 2 + 2


def test_of_a_chain_its_steps_alone_are_decayed():
    made = Model(SIZES, partial(TokenHead, 3, 100.0))
    shapes = jax.eval_shape(made.init, jax.random.key(0), example_batch())["params"]
    own = {path: leaf for path, leaf in flatten(shapes).items() if "crf_" in path}
    mask = flatten(optim.decayed(shapes))
    assert {path: mask[path] for path in own} == {
        "top/crf_start": False, "top/crf_steps": True, "top/crf_end": False,
    }  # fmt: skip


def test_only_decayed_parameters_shrink_without_a_gradient():
    params = init(model())
    c = config(train__learning_rate=0.1, train__weight_decay=0.5, train__warmup=0.0)
    optimizer = optim.make_optimizer(c, 10)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    for path, update in flatten(updates).items():
        value = flatten(params)[path]
        expected = -0.05 * value if value.ndim == 2 else np.zeros(value.shape)
        np.testing.assert_allclose(update, expected, atol=1e-7, err_msg=path)
