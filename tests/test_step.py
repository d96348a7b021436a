"""The step: one loss and gradient however a batch is laid out or split; compiled as promised."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import config, init, model, task, varied

from bert_ft.data.batches import BatchPlan
from bert_ft.models.hf import flatten
from bert_ft.train import optim
from bert_ft.train.step import (
    CompileCount,
    Programs,
    TrainState,
    eval_step,
    loss_and_gradient,
    train_step,
)

MODEL, TASK, ROW = model(), task(), 32
STEPS = 50
CONFIG = config(train__learning_rate=1e-3, train__warmup=0.1)


@pytest.fixture(scope="module")
def params():
    return init(MODEL)


def plan(packed=True, accumulate=1, **more):
    """64 examples of 2 to 16 tokens, 8 a step; one program for each plan."""
    return BatchPlan(
        varied(64), 8, STEPS, ROW, seed=1, packed=packed, accumulate=accumulate, at_most=1, **more
    )


def step(rate=0.0, accumulate=1, made=MODEL):
    optimizer, schedule = optim.make_optimizer(CONFIG, STEPS), optim.schedule(CONFIG, STEPS)

    def train(state, batch):
        return train_step(
            state, batch, model=made, task=TASK, optimizer=optimizer, schedule=schedule,
            rate=rate, seed=7, accumulate=accumulate,
        )  # fmt: skip

    return train


def start(params):
    optimizer = optim.make_optimizer(CONFIG, STEPS)
    return TrainState(jnp.int32(0), params, optimizer.init(params))


@functools.cache
def fifty(packed, rate):
    """Metrics of 50 steps, each an array (50,), and the parameters after them."""
    state, batches, run = start(init(MODEL)), plan(packed), jax.jit(step(rate))
    kept = []
    for i in range(STEPS):
        state, metrics = run(state, batches.batch(i))
        kept.append(metrics)
    return {k: np.array([float(m[k]) for m in kept]) for k in kept[0]}, state


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_fifty_steps_packed_and_padded_agree(rate):
    """With dropout too, for its masks are keyed by example and position."""
    (packed, _), (padded, _) = fifty(True, rate), fifty(False, rate)
    assert packed["loss"][-10:].mean() < 0.8 * packed["loss"][:10].mean(), "nothing was learnt"
    np.testing.assert_allclose(packed["loss"], padded["loss"], rtol=0, atol=1e-4)


def test_dropout_was_on():
    assert np.abs(fifty(True, 0.1)[0]["loss"] - fifty(True, 0.0)[0]["loss"]).max() > 0.01


def test_what_a_step_reports():
    metrics, state = fifty(True, 0.0)
    assert set(metrics) == {"loss", "accuracy", "gradient_norm", "learning_rate"}
    assert int(state.step) == STEPS
    schedule = optim.schedule(CONFIG, STEPS)
    expected = [float(schedule(i)) for i in range(STEPS)]
    np.testing.assert_allclose(metrics["learning_rate"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        metrics["accuracy"] * 8, np.round(metrics["accuracy"] * 8), atol=1e-5
    )
    assert (metrics["gradient_norm"] > 0).all()


@functools.cache
def gradient_program(accumulate, made=MODEL):
    def run(params, batch, key, rate):
        return loss_and_gradient(made, TASK, params, batch, key, rate, accumulate)

    return jax.jit(run)


def gradient(params, batches, rate, accumulate=1, made=MODEL):
    key = jax.random.key(5)
    metrics, out = gradient_program(accumulate, made)(params, batches.batch(3), key, rate)
    return metrics, flatten(out)


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_one_steps_gradient_packed_and_padded(rate, params):
    _, packed = gradient(params, plan(), rate)
    _, padded = gradient(params, plan(packed=False), rate)
    for path in packed:
        np.testing.assert_allclose(packed[path], padded[path], rtol=0, atol=1e-5, err_msg=path)
        if not path.endswith("key/bias"):  # softmax does not see what all keys share
            assert np.abs(packed[path]).max() > 1e-3, f"{path} hardly has a gradient to compare"


@pytest.mark.parametrize("rate", [0.0, 0.1])
def test_accumulation_changes_nothing(rate, params):
    one_metrics, one = gradient(params, plan(), rate)
    four_metrics, four = gradient(params, plan(accumulate=4), rate, 4)
    assert one_metrics.keys() == four_metrics.keys()
    for name in one_metrics:
        np.testing.assert_allclose(one_metrics[name], four_metrics[name], rtol=0, atol=1e-5)
    for path in one:
        np.testing.assert_allclose(one[path], four[path], rtol=0, atol=1e-5, err_msg=path)


def test_rows_of_nothing_change_no_gradient(params):
    """Rows are rounded up to a multiple of the shards; the gradient must not notice, or be NaN."""
    batches = plan(multiple=16)
    assert not batches.batch(3)["segments"][-1].any()
    _, more = gradient(params, batches, 0.1)
    _, bare = gradient(params, plan(), 0.1)
    for path in more:
        np.testing.assert_allclose(more[path], bare[path], rtol=0, atol=1e-5, err_msg=path)


def test_filling_examples_have_no_part_in_loss_or_gradient(params):
    batch = plan().batch(3)
    without = {**batch, "weight": batch["weight"] * (np.arange(8) < 5)}
    other = {**without, "label": np.where(np.arange(8) < 5, batch["label"], 2 - batch["label"])}
    run, key = gradient_program(1), jax.random.key(5)
    (a, grad_a), (b, grad_b) = (run(params, x, key, 0.0) for x in (without, other))
    assert float(a["loss"]) == float(b["loss"])
    jax.tree.map(np.testing.assert_array_equal, grad_a, grad_b)
    logits = jax.jit(MODEL.apply)({"params": params}, batch)["logits"]
    nll = -jax.nn.log_softmax(logits)[np.arange(8), batch["label"]]
    np.testing.assert_allclose(a["loss"], nll[:5].mean(), rtol=1e-5)


def test_bfloat16_goes_the_same_way(params):
    """Directions agree though digits do not: 8 bits a product, over two layers and back."""
    half = model(dtype=jnp.bfloat16)
    metrics, ours = gradient(params, plan(), 0.0, made=half)
    exact_metrics, exact = gradient(params, plan(), 0.0)
    assert abs(float(metrics["loss"] - exact_metrics["loss"])) < 0.05
    a, b = (np.concatenate([np.ravel(v) for v in g.values()]) for g in (ours, exact))
    assert a.dtype == np.float32
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.995


def test_programs_take_the_shapes_they_were_compiled_for_and_no_other(params):
    programs = Programs(
        functools.partial(eval_step, model=MODEL, task=TASK), out_shardings=None, donate=False
    )
    packed, padded = plan().batch(0), plan(packed=False).batch(0)
    programs.compile(params, packed)
    assert len(programs) == 1
    p = np.asarray(programs(params, packed)["probabilities"])
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    with pytest.raises(KeyError):
        programs(params, padded)


def test_compilations_are_counted_by_name():
    def counted_function(x):
        return x + 1

    def other(x):
        return x - 1

    with CompileCount("counted_function") as compiles:
        for size in (3, 5, 3):
            jax.jit(counted_function).lower(jnp.ones(size)).compile()
        jax.jit(other)(jnp.ones(7))
    assert compiles.count in (2, 3)  # JAX may keep the third from the first
    before = compiles.count
    jax.jit(counted_function)(jnp.ones(11))
    assert compiles.count == before
