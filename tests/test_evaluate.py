"""Evaluation: every example once, in order, on any number of devices; scores as scikit-learn's."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn import metrics as sk
from small import CLASSES, config, encoded, init, model, task

from bert_ft.data.batches import EvalPlan
from bert_ft.evals import metrics
from bert_ft.train import sharding
from bert_ft.train.evaluate import predictions
from bert_ft.train.step import Programs, eval_step

COUNT, BATCH, ROW = 45, 8, 16  # the last batches are not full


def data():
    return encoded(np.random.default_rng(2).integers(2, ROW + 1, COUNT), seed=2)


@functools.cache
def parts():
    made = model()
    return made, init(made)


class WithOrder:
    """The task, and what its batches hold beside: each example's label comes back with it."""

    def predict(self, outputs, batch):
        return {**task().predict(outputs, batch), "label": batch["label"]}


def evaluate(packed=True, batch_size=BATCH):
    mesh = sharding.make_mesh(config())
    made, params = parts()
    step = functools.partial(eval_step, model=made, task=WithOrder())
    programs = Programs(step, sharding.replicated(mesh), donate=False)
    params = jax.device_put(params, sharding.replicated(mesh))
    plan = EvalPlan(data(), batch_size, ROW, packed, sharding.row_shards(mesh))
    assert packed or batch_size > COUNT or plan.steps * plan.shape.examples > COUNT
    return predictions(programs, params, plan, mesh)


@functools.cache
def here(packed=True, batch_size=BATCH):
    return evaluate(packed, batch_size)


@functools.cache
def one_by_one():
    """Probabilities of each example alone in a row: no plan, no order to go wrong."""
    made, params = parts()
    run = jax.jit(lambda batch: eval_step(params, batch, model=made, task=task()))
    whole = data()
    out = []
    for i in range(COUNT):
        length = int(whole.lengths[i, 0])
        span = slice(whole.offsets[i], whole.offsets[i] + length)
        row = np.arange(ROW) < length
        batch = {k: np.zeros((1, ROW), np.int32) for k in ("tokens", "types", "positions")}
        batch["tokens"][0, :length], batch["types"][0, :length] = (
            whole.tokens[span],
            whole.types[span],
        )
        batch["positions"][0, :length] = np.arange(length)
        batch |= {"segments": row[None].astype(np.int32), "slots": np.zeros((1, 4), np.int32)}
        zero, one = np.zeros(1, np.int32), np.ones(1, np.int32)
        batch |= {"example_slot": zero, "example_start": zero, "ordinal": one}
        out.append(run(batch)["probabilities"][0])
    return np.stack(out)


def test_predictions_are_in_the_order_of_the_data():
    out = here()
    np.testing.assert_array_equal(out["label"], data().fields["label"])
    assert np.ptp(one_by_one(), axis=0).min() > 0.1, "the model says the same of everything"
    np.testing.assert_allclose(out["probabilities"], one_by_one(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("packed, batch_size", [(False, BATCH), (True, 7), (True, 1000)])
def test_batches_do_not_matter(packed, batch_size):
    ours = here(packed, batch_size)
    np.testing.assert_array_equal(ours["label"], data().fields["label"])
    np.testing.assert_allclose(ours["probabilities"], one_by_one(), rtol=0, atol=1e-5)


def main():
    assert len(jax.devices()) == 8
    print(json.dumps({k: np.asarray(v).tolist() for k, v in evaluate().items()}))


def test_eight_devices_see_every_example_once_and_in_order():
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", "import test_evaluate; test_evaluate.main()"],
        cwd=tests,
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    out = json.loads(done.stdout.strip().splitlines()[-1])
    assert out["label"] == data().fields["label"].tolist()
    np.testing.assert_allclose(out["probabilities"], one_by_one(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("fault", ["missed", "twice"])
def test_an_example_missed_or_seen_twice_is_noticed(fault):
    mesh = sharding.make_mesh(config())
    made, params = parts()
    plan = EvalPlan(data(), BATCH, ROW, multiple=sharding.row_shards(mesh))
    order = plan.order
    order[0, 0] = -1 if fault == "missed" else order[1, 0]
    programs = Programs(
        functools.partial(eval_step, model=made, task=task()), sharding.replicated(mesh), False
    )
    params = jax.device_put(params, sharding.replicated(mesh))
    with pytest.raises(AssertionError, match="not evaluated exactly once"):
        predictions(programs, params, plan, mesh)


def test_scores_are_those_of_scikit_learn():
    predicted = {"probabilities": here()["probabilities"]}
    label, p = data().fields["label"], predicted["probabilities"]
    guess, normalised = p.argmax(axis=1), p / p.astype(np.float64).sum(axis=1, keepdims=True)
    ours = task().score(predicted, data())
    expected = {
        "accuracy": sk.accuracy_score(label, guess),
        "f1_macro": sk.f1_score(label, guess, average="macro"),
        "mcc": sk.matthews_corrcoef(label, guess),
        "loss": sk.log_loss(label, normalised, labels=range(CLASSES)),
    }
    assert 0.1 < expected["accuracy"] < 0.9
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name
    np.testing.assert_array_equal(
        metrics.confusion_matrix(label, guess, CLASSES), sk.confusion_matrix(label, guess)
    )
    assert "f1" not in ours
