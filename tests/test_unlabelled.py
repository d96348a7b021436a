"""Texts without labels: where they stand in the stream and in a batch, the two methods against
their formulas, runs with them."""

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import remove, reviews, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import entropy
from small import CLASSES, config, varied
from test_losses import KEY, MODEL, TASK, assert_same, fake, gradient, made

from bert_ft.checks import check
from bert_ft.data.batches import BatchPlan
from bert_ft.data.epochs import Epochs
from bert_ft.data.unlabelled import Beside, joined
from bert_ft.errors import InputError
from bert_ft.methods.registry import make_methods, make_weights
from bert_ft.models.heads import SequenceHead
from bert_ft.tasks.multilabel import MultiLabel
from bert_ft.tasks.ordinal import Ordinal


@st.composite
def orders(draw):
    count, rows = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    versions = draw(st.integers(0, 3))
    free = draw(st.integers(1, 3)) * (2 if versions else 1)
    return Beside(Epochs((count,)), count, rows, versions, free + draw(st.integers(1, 4)), free)


@settings(max_examples=100, deadline=None)
@given(orders(), st.data())
def test_any_stretch_is_that_of_the_whole(order, data):
    total = 7 * order.micro
    whole = order.stream(3, 0, total)
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start, total))
    np.testing.assert_array_equal(order.stream(3, start, stop), whole[start:stop])


@settings(max_examples=100, deadline=None)
@given(orders())
def test_each_batch_has_its_share_and_nobody_is_left_out(order):
    own, per = order.micro - order.free, 2 if order.versions else 1
    epochs = 2 * max(order.versions, 1)
    batches = max(-(-epochs * order.rows * per // order.free), -(-order.count // own))
    drawn = order.stream(0, 0, batches * order.micro).reshape(batches, order.micro)
    labelled, free = drawn[:, :own].reshape(-1), drawn[:, own:].reshape(-1, per) - order.count
    np.testing.assert_array_equal(labelled, order.labelled.stream(0, 0, len(labelled)))
    assert np.mean(order.sizes) == pytest.approx(order.count * order.micro / own)
    texts = free[: epochs * order.rows, 0].reshape(epochs, order.rows)
    for epoch, of in enumerate(texts):
        assert sorted(of) == list(range(order.rows))
        if order.versions:
            version = free[epoch * order.rows : (epoch + 1) * order.rows, 1] - of
            assert set(version) == {order.rows * (1 + epoch % order.versions)}


RNG = np.random.default_rng(1)
LOGITS = RNG.normal(0, 2, (6, CLASSES)).astype(np.float32)
LABEL = np.array([0, 1, 0, 0, 0, 0])
GIVEN = {
    "label": jnp.asarray(LABEL),
    "weight": jnp.asarray([1.0, 1, 0, 0, 0, 0]),
    "labelled": jnp.asarray([1.0, 1, 0, 0, 0, 0]),
}
NLL = -np.log(softmax(LOGITS, axis=1)[np.arange(6), LABEL])


@pytest.mark.parametrize(("step", "rise"), [(0, 0.0), (10, 0.0), (15, 0.25), (30, 1.0), (90, 1.0)])
def test_pseudo_labels_are_their_formula(step, rise):
    """Means over labelled and other examples, when divided by the labelled ones' number."""
    (method,) = made("pseudo", pseudo__threshold=0.55, pseudo__weight=0.5, pseudo__begin=10,
                     pseudo__end=30)  # fmt: skip
    found = method.objective(fake(LOGITS), TASK, MODEL)(
        None, {**GIVEN, "step": jnp.asarray(step)}, KEY
    )
    p = softmax(LOGITS[2:], axis=1).max(axis=1)
    assert 0 < (p >= 0.55).sum() < 4
    mean = NLL[:2].mean() + 0.5 * rise * (-np.log(p) * (p >= 0.55)).mean()
    np.testing.assert_allclose(found.total / found.count, mean, rtol=1e-5)
    np.testing.assert_allclose(found.extra["pseudo_share"] / found.count, (p >= 0.55).mean())


SIDES = expit(np.abs(LOGITS))  # of each label, there or not; of each rank, above or not
OTHERS = {"multilabel": (MultiLabel, np.mean), "ordinal": (Ordinal, np.sum)}


def other_task(name):
    kind, over = OTHERS[name]
    there = LABEL if name == "ordinal" else np.eye(CLASSES, dtype=np.float32)[LABEL]
    target = LABEL[:, None] > np.arange(CLASSES) if name == "ordinal" else there
    nll = over(-np.log(np.where(target, expit(LOGITS), expit(-LOGITS))), axis=1)
    return kind(config(task__name=name)), over, {**GIVEN, "label": jnp.asarray(there)}, nll


@pytest.mark.parametrize("name", OTHERS)
def test_each_decision_is_a_pseudo_label_of_its_own(name):
    task, over, batch, nll = other_task(name)
    (method,) = made("pseudo", pseudo__threshold=0.8, pseudo__weight=0.5, pseudo__end=1)
    run = fake(LOGITS, task=task)
    found = method.objective(run, task, MODEL)(None, {**batch, "step": jnp.asarray(9)}, KEY)
    p = SIDES[2:]
    assert 0 < (p >= 0.8).sum() < p.size
    mean = nll[:2].mean() + 0.5 * over(-np.log(p) * (p >= 0.8), axis=1).mean()
    np.testing.assert_allclose(found.total / found.count, mean, rtol=1e-5)
    np.testing.assert_allclose(found.extra["pseudo_share"] / found.count, (p >= 0.8).mean())


@pytest.mark.parametrize("name", OTHERS)
def test_consistency_of_several_decisions(name):
    task, over, batch, nll = other_task(name)
    least = SIDES.min(axis=1)[[2, 4]]
    (method,) = uda(weight=0.7, temperature=0.4, threshold=float(least.mean()))
    found = method.objective(fake(LOGITS, task=task), task, MODEL)(None, batch, KEY)
    p, q = expit(LOGITS[[2, 4]] / 0.4), expit(LOGITS[[3, 5]])
    far = over(entropy(np.stack([p, 1 - p]), np.stack([q, 1 - q]), axis=0), axis=1)
    mean = nll[:2].mean() + 0.7 * (far * (least >= least.mean())).mean()
    np.testing.assert_allclose(found.total / found.count, mean, rtol=1e-5)


def uda(**knobs):
    c = config(methods__use="uda", train__batch_size=6, data__unlabelled_share=2 / 3)
    c.methods.uda.update(knobs)
    return make_methods(c)


def test_consistency_is_its_formula():
    (method,) = uda(weight=0.7, temperature=0.4, threshold=0.55)
    found = method.objective(fake(LOGITS), TASK, MODEL)(None, GIVEN, KEY)
    p, q = LOGITS[[2, 4]], LOGITS[[3, 5]]
    sure = softmax(p, axis=1).max(axis=1) >= 0.55
    assert sure.tolist() == [True, False] or sure.tolist() == [False, True]
    far = entropy(softmax(p / 0.4, axis=1), softmax(q, axis=1), axis=1)
    mean = NLL[:2].mean() + 0.7 * (far * sure).mean()
    np.testing.assert_allclose(found.total / found.count, mean, rtol=1e-5)


def test_a_run_of_other_batches_may_go_on_from_one_with_consistency():
    """config.resume makes the old run's methods again, beside this one's batch size and share."""
    c = config(methods__use="uda", train__batch_size=7)
    assert make_weights(c).plain
    with pytest.raises(InputError, match="data.unlabelled_share is 0.5"):
        make_methods(c)[0].objective(fake(LOGITS), TASK, MODEL)


def semi(accumulate=1, packed=True, number=1):
    """A batch of a set of 10 labelled examples and 8 texts in two versions."""
    micro = 12 // accumulate
    data = joined(varied(10), [varied(8, seed=2), varied(16, seed=3)], micro, micro * 2 // 3)
    plan = BatchPlan(data, 12, 2, 16, seed=1, packed=packed, accumulate=accumulate,
                     mixture=data.order)  # fmt: skip
    return plan.batch(number)


def with_step(batch, accumulate=1):
    step = jnp.full((accumulate,), 7) if accumulate > 1 else jnp.asarray(7)
    return {**batch, "step": step}


def both(batch_size, **knobs):
    c = config(methods__use="pseudo,uda", train__batch_size=batch_size)
    c.data.unlabelled_share = 2 / 3
    c.methods.pseudo.update({"threshold": 0.3, "end": 10, **knobs.get("pseudo", {})})
    c.methods.uda.update({"threshold": 0.3, **knobs.get("uda", {})})
    return make_methods(c)


def test_strength_0_is_training_on_the_labelled_rows():
    batch = semi()
    assert batch["weight"].tolist() == [1] * 4 + [0] * 8
    off = both(12, pseudo={"weight": 0.0}, uda={"weight": 0.0})
    metrics, found = gradient(off, with_step(batch))
    plain, expected = gradient((), batch)
    assert_same(found, expected, 2e-6)
    assert metrics["loss"] == pytest.approx(float(plain["loss"]), rel=1e-6)
    _, on = gradient(both(12), with_step(batch))
    assert max(np.abs(on[k] - found[k]).max() for k in on) > 1e-3


def test_packed_and_padded_agree():
    metrics, packed = gradient(both(12), with_step(semi()))
    other, padded = gradient(both(12), with_step(semi(packed=False)))
    assert_same(packed, padded)
    assert metrics["uda_share"] > 0 and other["loss"] == pytest.approx(float(metrics["loss"]))


def test_micro_batches_are_batches_of_the_same_share():
    """Two micro-batches give the mean of what each gives alone."""
    halves = semi(accumulate=2)
    found = gradient(both(6), with_step(halves, 2), accumulate=2)[1]
    alone = [
        gradient(both(6), with_step({k: v[a] for k, v in halves.items()}))[1] for a in range(2)
    ]
    assert_same(found, {k: (alone[0][k] + alone[1][k]) / 2 for k in found})


def test_micro_batches_with_class_weights_are_the_whole_batch():
    """Their labelled examples weigh more or less; the texts without labels count alike."""
    weights = (0.1, 5.0, 2.0)
    heavy = dataclasses.replace(MODEL, head=partial(SequenceHead, CLASSES, class_weights=weights))
    halves = semi(accumulate=2, number=0)
    weight = np.array(weights)[halves["label"]] * halves["weight"]
    assert weight.sum(axis=1)[0] != weight.sum(axis=1)[1]
    metrics, found = gradient(both(6), with_step(halves, 2), accumulate=2, model=heavy)
    whole, expected = gradient(both(12), with_step(semi(number=0)), model=heavy)
    assert_same(found, expected)
    for name in ("loss", "pseudo_loss", "pseudo_share", "uda_divergence", "uda_share"):
        assert metrics[name] == pytest.approx(float(whole[name]), rel=1e-5)
    assert metrics["uda_share"] > 0 and metrics["pseudo_share"] > 0


STEPS = ("--config.train.steps=4", "--config.data.row_counts=1", "--config.eval.report=False",
         "--config.data.test=", "--config.checkpoint.every_steps=1",
         "--config.checkpoint.keep=9")  # fmt: skip
USE = ("--config.methods.use=pseudo,uda", "--config.methods.pseudo.threshold=0.4",
       "--config.methods.uda.threshold=0.4", "--config.data.augment=swap:0.5",
       "--config.data.augment_share=1.0")  # fmt: skip


def test_a_run_with_unlabelled_texts_goes_on_exactly(run_here, tmp_path):
    """Their labels are not looked at: one that no training row has is no error."""
    pool = [{"text": r["text"] + " again", "label": "?"} for r in reviews(30, 7)]
    unlabelled = f"--config.data.unlabelled=files:{write_jsonl(tmp_path / 'pool.jsonl', pool)}"
    done = run_here(tmp_path / "run", *STEPS, *USE, unlabelled).ok()
    assert "unlabelled: 30 texts of files:" in done.err
    shares = list(done.values("train/pseudo_share").values())
    assert len(shares) == 4 and all(0 <= s <= 1 for s in shares) and any(shares)
    remove(tmp_path / "run", "checkpoints/3", "checkpoints/4", "best", "result.json")
    again = run_here(tmp_path / "run", *STEPS, *USE, unlabelled).ok()
    assert "own checkpoint of step 2" in again.err
    assert again.result["params_sha256"] == done.result["params_sha256"]
    other = write_jsonl(tmp_path / "other.jsonl", pool[:20])
    refused = run_here(tmp_path / "run", *STEPS, *USE, f"--config.data.unlabelled=files:{other}")
    refused.refused("data.unlabelled")


@pytest.mark.parametrize(
    ("use", "knobs", "words"),
    [
        ("pseudo", {"data.unlabelled": ""}, "config.data.unlabelled is ''; accepted: a data URI"),
        ("", {}, "config.data.unlabelled is 'files:b.csv'; accepted: '' where methods.use has"),
        ("uda", {}, "config.data.augment is ''; accepted: KIND:STRENGTH"),
        (
            "uda",
            {"data.augment": "swap:0,typos:0.0"},
            "config.data.augment is 'swap:0,typos:0.0'; accepted: .* of more than 0 with uda",
        ),
        (
            "uda",
            {"data.augment": "swap:0.1", "data.augment_share": 0.0},
            "config.data.augment_share is 0.0; accepted: 1 with uda",
        ),
        ("pseudo", {"data.unlabelled_share": 0.3}, "unlabelled_share is 0.3; .* the 32 examples"),
        ("pseudo", {"data.unlabelled_share": 1.0}, "unlabelled_share is 1.0"),
        (
            "uda",
            {
                "data.augment": "swap:0.1",
                "data.augment_share": 1.0,
                "data.unlabelled_share": 3 / 32,
            },
            "an even number of the 32",
        ),
        ("pseudo", {"methods.pseudo.threshold": 1.5}, "config.methods.pseudo.threshold is 1.5"),
        ("pseudo", {"methods.pseudo.end": -1}, "config.methods.pseudo.end is -1"),
        ("pseudo,mixup", {}, "one of pseudo, mixup"),
        ("pseudo", {"task.name": "regression"}, "it is for classification, multilabel, ordinal"),
    ],
)
def test_refused(use, knobs, words):
    c = config(methods__use=use, data__train="files:a.csv", model__pretrained="dir")
    c.data.unlabelled = "files:b.csv"
    c.update_from_flattened_dict(knobs)
    with pytest.raises(InputError, match=words):
        check(c, "train")


def test_a_set_keeps_its_own_rows():
    own = varied(10)
    data = joined(own, [varied(8, seed=2)], 12, 4)
    assert isinstance(data.order, Beside) and data.of_an_epoch == 15
    assert data.row.tolist() == [*range(10), *[-1] * 8]
    assert (data.offsets[:11] == own.offsets).all() and len(data.tokens) == data.offsets[-1]
    assert data.fields["labelled"].sum() == 10
