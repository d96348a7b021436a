"""Averages, sharpness and noise against their formulas, on losses whose gradient is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config

from bert_ft.checks import check
from bert_ft.errors import InputError
from bert_ft.methods.registry import make_weights
from bert_ft.train import optim
from bert_ft.train.knobs import as_arrays, knobs_of
from bert_ft.train.step import TrainState, train_step

WIDTH = 5


class Linear:
    """x w, of a batch of x (n, WIDTH), y (n,) and a weight (n,) that is 0 where there is none."""

    def apply(self, variables, batch, rng, rate):
        return batch["x"] @ variables["params"]["top"]["kernel"]


class Slopes:
    """The loss x w: each example's gradient is its x, wherever w is."""

    def loss(self, outputs, batch):
        return jnp.sum(outputs * batch["weight"]), jnp.sum(batch["weight"]), {}


class Squares:
    def loss(self, outputs, batch):
        errors = (outputs - batch["y"]) * batch["weight"]
        return jnp.sum(errors**2) / 2, jnp.sum(batch["weight"]), {}


def settings(use="", accumulate=1, **knobs):
    c = config(train__learning_rate=0.1, train__warmup=0.0, train__accumulate=accumulate)
    c.methods.use = use
    c.methods.update_from_flattened_dict(knobs)
    return c


def batches(count, sizes, seed=0):
    """`count` batches whose micro-batches hold so many examples; x about (1, 0, 0, 0, -0.5) with
    standard deviations of 1, 2, 1, 0.5, 1."""
    rng = np.random.default_rng(seed)
    shape = (count, len(sizes), max(sizes))
    x = rng.normal((1, 0, 0, 0, -0.5), (1, 2, 1, 0.5, 1), (*shape, WIDTH))
    real = np.broadcast_to(np.arange(max(sizes)) < np.array(sizes)[:, None], shape)
    made = {"x": x, "y": rng.normal(size=shape), "weight": real}
    made = {name: value.astype(np.float32) for name, value in made.items()}
    return made if len(sizes) > 1 else {k: v[:, 0] for k, v in made.items()}


def run(c, task, given, knobs=None, model=None, start=None):
    """(metrics of each step, the parameters after each, those that are reported after each)."""
    model = model or Linear()
    steps, weights = len(given["x"]), make_weights(c)
    optimizer, schedule = optim.make_optimizer(c, steps, knobs), optim.schedule(c, steps, knobs)
    step = functools.partial(
        train_step, model=model, task=task, optimizer=optimizer, schedule=schedule, rate=0.0,
        seed=0, accumulate=c.train.accumulate, weights=weights,
    )  # fmt: skip
    start = start or {"top": {"kernel": jnp.arange(WIDTH, dtype=jnp.float32)}}
    trained, frozen = weights.begin(start, 0)

    def one(state, batch):
        state, metrics = step(state, batch)
        kept = weights.reported(state.params, state.opt_state)
        return state, (metrics, state.params["top"]["kernel"], kept["top"]["kernel"])

    first = TrainState(jnp.int32(0), trained, optimizer.init(trained), frozen)
    metrics, *both = jax.jit(lambda b: jax.lax.scan(one, first, b)[1])(given)
    return {k: np.array(v) for k, v in metrics.items()}, *map(np.array, both)


def test_the_average_is_its_recursion():
    """a_t = d_t a_t-1 + (1 - d_t) theta_t in float64; the run itself goes on as without."""
    given = batches(20, (4,))
    _, params, kept = run(settings("ema", **{"ema.decay": 0.6}), Squares(), given)
    _, plain, _ = run(settings(), Squares(), given)
    np.testing.assert_array_equal(params, plain)
    average = np.arange(WIDTH, dtype=np.float64)
    for t, theta in enumerate(params):
        d = min(0.6, (1 + t) / (10 + t))
        average = d * average + (1 - d) * theta
        np.testing.assert_allclose(kept[t], average, rtol=0, atol=1e-6, err_msg=str(t))
    assert np.abs(kept - params).max() > 0.01


@pytest.mark.parametrize("traced", [False, True])
def test_the_equal_average_is_that_of_the_steps_that_count(traced):
    """Of 9 steps from the 4th (0.4 x 9, rounded) on, every second: 4, 6, 8; before, the last."""
    given = batches(9, (4,))
    c = settings("swa", **{"swa.start": 0.4, "swa.every": 2})
    knobs = as_arrays(knobs_of(c, 9)) if traced else None
    _, params, kept = run(c, Squares(), given, knobs)
    for done in range(1, 10):
        counted = [s for s in (4, 6, 8) if s <= done] or [done]
        expected = np.mean([params[s - 1] for s in counted], axis=0, dtype=np.float64)
        np.testing.assert_allclose(kept[done - 1], expected, rtol=0, atol=1e-6, err_msg=str(done))


@pytest.mark.parametrize("use, knobs", [("ema", {"ema.decay": 0.0}), ("swa", {"swa.start": 1.0})])
def test_averages_of_the_last_step_alone_change_nothing(use, knobs):
    given = batches(6, (4,))
    _, params, kept = run(settings(use, **knobs), Squares(), given)
    np.testing.assert_array_equal(kept[-1], params[-1])
    np.testing.assert_array_equal(params, run(settings(), Squares(), given)[1])


def slope(w, x, y):
    """The mean of (x w - y)^2 / 2 and its gradient, in float64."""
    errors = x @ w - y
    return np.mean(errors**2) / 2, errors @ x / len(x)


@pytest.mark.parametrize("sizes", [(6,), (4, 2, 3)])
def test_sharpness_takes_the_gradient_at_the_worst_point_near_by(sizes):
    """Foret et al. 2021, eq. 2 and 3. On a gradient's way the loss rises fastest, so e has the
    norm rho and no other step of this norm has a larger product with the gradient."""
    given, rho = batches(1, sizes), 0.7
    c = settings("sam", len(sizes), **{"sam.rho": rho})
    metrics, _, _ = run(c, Squares(), given)
    real = given["weight"].reshape(-1) > 0
    x, y = given["x"].reshape(-1, WIDTH)[real], given["y"].reshape(-1)[real]
    w = np.arange(WIDTH, dtype=np.float64)
    loss, g = slope(w, x, y)
    away = w + rho * g / np.sqrt(g @ g)
    others = np.random.default_rng(1).normal(size=(99, WIDTH))
    others *= rho / np.linalg.norm(others, axis=1, keepdims=True)
    assert (others @ g < (away - w) @ g).all()
    sharp, at_away = slope(away, x, y)
    assert metrics["loss"][0] == pytest.approx(loss, rel=1e-5)
    assert metrics["sharp_loss"][0] == pytest.approx(sharp, rel=1e-5)
    assert metrics["gradient_norm"][0] == pytest.approx(np.linalg.norm(at_away), rel=1e-5)
    assert abs(np.linalg.norm(at_away) - np.linalg.norm(g)) > 0.1


class Late:
    """x w + x u, of a parameter u beside w."""

    def apply(self, variables, batch, rng, rate):
        params = variables["params"]
        return batch["x"] @ (params["top"]["kernel"] + params["late"]["kernel"])


def test_what_is_not_yet_trained_has_no_part_in_the_worst_point_nor_in_a_norm():
    """Until its step as if it were frozen."""
    start = {k: {"kernel": jnp.arange(WIDTH, dtype=jnp.float32)} for k in ("top", "late")}
    c = settings("unfreeze,sam", **{"unfreeze.schedule": '[["^late/", 2]]', "sam.rho": 0.7})
    found, *_ = run(c, Squares(), batches(3, (6,)), model=Late(), start=start)
    c = settings("freeze,sam", **{"freeze.targets": "^late/", "sam.rho": 0.7})
    frozen, *_ = run(c, Squares(), batches(3, (6,)), model=Late(), start=start)
    for name in ("sharp_loss", "gradient_norm"):
        np.testing.assert_allclose(found[name][:2], frozen[name][:2], rtol=1e-5)
        assert abs(found[name][2] - frozen[name][2]) > 0.1


@pytest.mark.parametrize("sizes", [(6,), (3, 3)])
def test_no_step_to_a_worse_point_changes_nothing(sizes):
    given = batches(5, sizes)
    plain = run(settings("", len(sizes)), Squares(), given)
    same = run(settings("sam", len(sizes), **{"sam.rho": 0.0}), Squares(), given)
    np.testing.assert_array_equal(same[1], plain[1])
    assert same[0].keys() == plain[0].keys()


@pytest.mark.parametrize("sizes", [(4, 4), (2, 7, 3)])
def test_noise_and_signal_are_unbiased(sizes):
    """Of known ones: S = 1 + 4 + 1 + 0.25 + 1, |G|^2 = 1.25, within 4 standard errors."""
    steps = 3000
    c = settings("noise_scale", len(sizes), **{"noise_scale.decay": 0.998})
    metrics, params, _ = run(c, Slopes(), batches(steps, sizes))
    for name, true in (("gradient_noise", 7.25), ("gradient_signal", 1.25)):
        error = metrics[name].std() / steps**0.5
        assert abs(metrics[name].mean() - true) < 4 * error, name
        assert 4 * error < 0.15 * true, "too few steps to say"
    assert metrics["noise_scale"][-1] == pytest.approx(5.8, rel=0.15)
    plain = run(settings("", len(sizes)), Slopes(), batches(steps, sizes))[1]
    np.testing.assert_array_equal(params, plain)


def test_noise_and_signal_of_equal_parts_are_the_papers():
    """McCandlish et al. 2018, A.1, in float64, and the average of each before their ratio."""
    given = batches(4, (3, 3))
    c = settings("noise_scale", 2, **{"noise_scale.decay": 0.5})
    metrics, _, _ = run(c, Slopes(), given)
    x = given["x"].astype(np.float64)
    small = np.square(x.mean(axis=2)).sum(axis=-1).mean(axis=1)
    big = np.square(x.mean(axis=(1, 2))).sum(axis=-1)
    signal, noise = (6 * big - 3 * small) / (6 - 3), (small - big) / (1 / 3 - 1 / 6)
    np.testing.assert_allclose(metrics["gradient_signal"], signal, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["gradient_noise"], noise, rtol=1e-4)
    shares = 0.5 ** np.arange(4, 0, -1)
    expected = (shares @ noise) / (shares @ signal)
    assert metrics["noise_scale"][-1] == pytest.approx(expected, rel=1e-3)


def test_signal_and_noise_of_examples_that_weigh_little():
    """Weights, as of classes, that add up to less than 1 in a micro-batch."""
    given, c = batches(4, (3, 3)), settings("noise_scale", 2)
    plain, _, _ = run(c, Slopes(), given)
    light, _, _ = run(c, Slopes(), {**given, "weight": given["weight"] / 10})
    np.testing.assert_allclose(light["gradient_signal"], plain["gradient_signal"], rtol=1e-4)
    np.testing.assert_allclose(light["gradient_noise"], plain["gradient_noise"] / 10, rtol=1e-4)


def test_methods_compose():
    """The noise of micro-batches is that of w, whatever wraps it, and the average goes on."""
    given, knobs = batches(3, (4, 4)), {"sam.rho": 0.5, "ema.decay": 0.5}
    alone, _, _ = run(settings("noise_scale", 2), Squares(), given)
    metrics, params, kept = run(settings("noise_scale,sam,ema", 2, **knobs), Squares(), given)
    assert metrics["gradient_noise"][0] == pytest.approx(alone["gradient_noise"][0], rel=1e-5)
    assert np.abs(params - kept).max() > 1e-3 and "sharp_loss" in metrics


@pytest.mark.parametrize(
    "use, knobs, words",
    [
        ("ema,swa", {}, "one of ema, swa"),
        ("swa", {"methods.swa.start": 1.5}, "config.methods.swa.start is 1.5; accepted: 0 to 1"),
        ("swa", {"methods.swa.every": 0}, "config.methods.swa.every is 0; accepted: 1 or more"),
        ("ema", {"methods.ema.decay": 1.0}, "config.methods.ema.decay is 1.0"),
        ("sam", {"methods.sam.rho": -1.0}, "config.methods.sam.rho is -1.0; accepted: 0 or more"),
        ("noise_scale", {}, "config.train.accumulate is 1; accepted: 2 or more"),
        ("sam,noise_scale", {"train.accumulate": 2}, "noise_scale before sam"),
    ],
)
def test_refused(use, knobs, words):
    c = config(model__tokenizer="x", data__train="files:x.csv")
    check(c)
    c.methods.use = use
    c.update_from_flattened_dict(knobs)
    with pytest.raises(InputError, match=words):
        check(c)
