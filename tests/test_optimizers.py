"""Each optimizer against optax's own; the shardings of its state; rates of parts of the model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
from small import config, model

from bert_ft.checks import check
from bert_ft.errors import InputError
from bert_ft.mesh_rules import AXES, PRESETS
from bert_ft.models.hf import flatten, unflatten
from bert_ft.train import optim
from bert_ft.train.knobs import knobs_of
from bert_ft.train.sharding import path_of, shardings
from bert_ft.train.system import example_batch

RATE, DECAY = 0.01, 0.1
OF_OPTAX = {
    "adamw": lambda mask: optax.adamw(RATE, 0.9, 0.999, 1e-8, weight_decay=DECAY, mask=mask),
    "lion": lambda mask: optax.lion(RATE, 0.9, 0.999, weight_decay=DECAY, mask=mask),
    "lamb": lambda mask: optax.lamb(RATE, 0.9, 0.999, 1e-8, weight_decay=DECAY, mask=mask),
    "adafactor": lambda mask: optax.adafactor(
        RATE,
        multiply_by_parameter_scale=False,
        weight_decay_rate=RATE * DECAY,  # optax's own is not times the rate
        weight_decay_mask=mask,
    ),
}


def settings(name, **more):
    flat = {"train__learning_rate": RATE, "train__weight_decay": DECAY, "train__warmup": 0.0}
    flat |= {"train__schedule": "constant", "train__clip_norm": 0.0, "train__optimizer": name}
    return config(**flat, **more)


def trees(count):
    """Parameters, or gradients: one that Adafactor factors, one that it does not, a bias."""
    rng = np.random.default_rng(0)
    shapes = {"up": (128, 130), "down": (6, 5)}
    for _ in range(count):
        made = {k: {"kernel": jnp.asarray(rng.normal(size=s), jnp.float32)}
                for k, s in shapes.items()}  # fmt: skip
        yield {**made, "top": {"bias": jnp.asarray(rng.normal(size=5), jnp.float32)}}


def moved(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return flatten(params)


@pytest.mark.parametrize("name", OF_OPTAX)
def test_two_steps_are_those_of_optax(name):
    start, *gradients = trees(3)
    mask = {"up": {"kernel": True}, "down": {"kernel": True}, "top": {"bias": False}}
    expected = moved(OF_OPTAX[name](mask), start, gradients)
    found = moved(optim.make_optimizer(settings(name), 5), start, gradients)
    for path, value in found.items():
        np.testing.assert_allclose(value, expected[path], rtol=0, atol=1e-6, err_msg=path)
        assert np.abs(value - flatten(start)[path]).max() > RATE / 2, path


@pytest.mark.parametrize("name", OF_OPTAX)
def test_the_numbers_of_a_trial_may_be_arrays(name):
    """A trial's rate, decay and clip as arguments: what they are as constants, to rounding."""
    c = settings(name)
    start, gradient = trees(2)

    @jax.jit
    def step(knobs):
        optimizer = optim.make_optimizer(c, 0, knobs)
        return optimizer.update(gradient, optimizer.init(start), start)[0]

    given = dataclasses.replace(
        knobs_of(c, 5), learning_rate=jnp.float32(RATE), weight_decay=jnp.float32(DECAY)
    )
    optimizer = optim.make_optimizer(c, 5)
    expected = flatten(optimizer.update(gradient, optimizer.init(start), start)[0])
    for path, value in flatten(step(given)).items():
        np.testing.assert_allclose(value, expected[path], rtol=0, atol=1e-7, err_msg=path)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("name", OF_OPTAX)
def test_moments_lie_as_their_parameters_and_what_has_another_shape_is_whole(name, preset):
    mesh = AbstractMesh((1, 1, 2, 2), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    wide = model(dataclasses.replace(model().config, hidden_size=128, intermediate_size=256))
    params = jax.eval_shape(wide.init, jax.random.key(0), example_batch())["params"]
    state = jax.eval_shape(optim.make_optimizer(settings(name), 5).init, params)
    rules = '[["up/kernel$", [null, ["data", "tensor"]]]]'  # more axes than a sum over rows has
    of_params = flatten(jax.tree.map(lambda s: s.spec, shardings(params, mesh, preset, rules)))
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found = jax.tree.leaves(shardings(state, mesh, preset, rules, of=params))
    others = 0
    for (keys, leaf), sharding in zip(leaves, found, strict=True):
        follows = leaf.shape == shapes.get(path_of(keys))
        others += not follows
        assert sharding.spec == (of_params[path_of(keys)] if follows else P()), keys
    assert (others > 10) == (name == "adafactor")


def small():
    """A few of an encoder's parameters, of one shape."""
    paths = ("word/embedding", "norm/scale", "layer_0/up/kernel", "layer_0/norm/scale",
             "layer_1/up/kernel", "layer_1/up/bias")  # fmt: skip
    heads = ("top/pooler/bias", "top/classifier/kernel", "top/classifier/bias")
    rng = np.random.default_rng(0)
    flat = {p: rng.normal(size=(3, 2)) for p in (*(f"encoder/{p}" for p in paths), *heads)}
    return unflatten({p: jnp.asarray(v, jnp.float32) for p, v in flat.items()})


def rated(use, **more):
    c = settings("adamw", **more)
    with c.unlocked():
        c.methods.use = use
    return c


def test_layer_decay_is_a_power_a_layer_of_the_update():
    """Howard & Ruder 2018, 3.2: of two layers the factors are 1, d, d^2 and, of embeddings, d^3."""
    params = small()
    gradient = jax.tree.map(lambda p: p + 1, params)
    c = rated("layer_decay")
    c.methods.layer_decay.decay = 0.5
    plain, decayed = (
        flatten(o.update(gradient, o.init(params), params)[0])
        for o in (optim.make_optimizer(rated(""), 5), optim.make_optimizer(c, 5))
    )
    by_part = {"top": 1, "encoder/layer_1": 0.5, "encoder/layer_0": 0.25}
    by_part |= dict.fromkeys(("encoder/word", "encoder/norm"), 0.125)
    for part, factor in by_part.items():
        paths = [path for path in plain if path.startswith(f"{part}/")]
        assert paths, part
        for path in paths:
            np.testing.assert_array_equal(decayed[path], plain[path] * factor, err_msg=path)
    lines = list(optim.rate_lines(optim.rates_of(c, params), 0.01))
    assert lines == [
        "learning rate x 0.125, 0.00125 at the peak: encoder/norm, encoder/word",
        "learning rate x 0.25, 0.0025 at the peak: encoder/layer_0",
        "learning rate x 0.5, 0.005 at the peak: encoder/layer_1",
        "learning rate x 1, 0.01 at the peak: top",
    ]


def test_rates_by_regex_multiply_with_layer_decay():
    params = small()
    c = rated("layer_decay,rates")
    c.methods.layer_decay.decay = 0.5
    c.methods.rates.rules = '[["^top/.*bias$", 3.0], ["^top/", 10], ["layer_1/up/k", 0]]'
    rates = optim.rates_of(c, params)
    assert rates["top/classifier/bias"] == 3 and rates["top/classifier/kernel"] == 10
    assert rates["encoder/layer_1/up/kernel"] == 0 and rates["encoder/layer_1/up/bias"] == 0.5
    optimizer = optim.make_optimizer(c, 5)
    updates = flatten(optimizer.update(params, optimizer.init(params), params)[0])
    assert not updates["encoder/layer_1/up/kernel"].any()
    lines = list(optim.rate_lines(rates, 1.0))
    assert "learning rate x 3, 3 at the peak: top/classifier/bias, top/pooler" in lines


@pytest.mark.parametrize("use", ["layer_decay", "rates"])
def test_factors_of_one_change_nothing(use):
    params = small()
    c = rated(use)
    c.methods.layer_decay.decay = 1.0
    c.methods.rates.rules = '[["^top/", 1.0]]'
    plain, same = (
        jax.tree.leaves(o.update(params, o.init(params), params)[0])
        for o in (optim.make_optimizer(rated(""), 5), optim.make_optimizer(c, 5))
    )
    for a, b in zip(plain, same, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_regex_that_matches_nothing_is_an_error():
    c = rated("rates")
    c.methods.rates.rules = '[["^top/", 2.0], ["^topic/", 10.0]]'
    with pytest.raises(InputError, match=r"rates\.rules: '\^topic/' matches none of the trained"):
        jax.eval_shape(optim.make_optimizer(c, 5).init, small())


def test_layer_decay_without_layers_is_an_error():
    with pytest.raises(InputError, match="no layer of the encoder is trained"):
        optim.make_optimizer(rated("layer_decay"), 5).init({"top": {"kernel": jnp.zeros((2, 2))}})


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("train.optimizer", "sgd", "config.train.optimizer is 'sgd'; accepted: 'adamw' or 'lion'"),
        ("methods.layer_decay.decay", 0.0, "decay is 0.0; accepted: more than 0, at most 1"),
        (
            "methods.rates.rules",
            "",
            "rates.rules is ''; accepted: .* where methods.use names rates",
        ),
        ("methods.rates.rules", "[[", "config.methods.rates.rules is no JSON"),
        ("methods.rates.rules", '{"top": 1}', "accepted: .*REGEX"),
        ("methods.rates.rules", '[["top", -1]]', "factors of 0 or more"),
        ("methods.rates.rules", '[["(", 1]]', "accepted: a regex"),
    ],
)
def test_refused(key, value, words):
    c = rated("rates", model__tokenizer="x", data__train="files:x.csv")
    c.methods.rates.rules = '[["top", 2]]'
    check(c)
    c.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=words):
        check(c)
