"""Methods that wrap the loss: each against its formula written out example by example, without
effect at strength 0, and the same packed, padded and accumulated."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from small import CLASSES, SIZES, config, init, model, task, varied

from bert_ft.checks import check
from bert_ft.data.batches import BatchPlan
from bert_ft.errors import InputError
from bert_ft.methods.contrastive import contrast
from bert_ft.methods.method import Sums
from bert_ft.methods.registry import METHODS, make_methods
from bert_ft.methods.shifts import norms, projected, random_shift, scaled_to
from bert_ft.models.hf import flatten
from bert_ft.train.step import loss_and_gradient

MODEL, TASK = model(dataclasses.replace(SIZES, num_hidden_layers=1)), task()
KEY = jax.random.key(5)


@functools.cache
def params():
    return init(MODEL)


def batch(packed=True, accumulate=1):
    return BatchPlan(varied(16), 8, 2, 16, seed=1, packed=packed, accumulate=accumulate).batch(1)


def made(use, **knobs):
    """The methods of a config, with knobs such as pgd__steps=2."""
    c = config(methods__use=use)
    for key, value in knobs.items():
        group, _, name = key.partition("__")
        c.methods[group][name] = value
    return make_methods(c)


def gradient(methods, given, rate=0.0, accumulate=1, model=MODEL):
    run = jax.jit(lambda p, b: loss_and_gradient(model, TASK, p, b, KEY, rate, accumulate, methods))
    metrics, found = run(params(), given)
    return metrics, flatten(found)


def assert_same(found, expected, atol=1e-5):
    assert found.keys() == expected.keys()
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=0, atol=atol, err_msg=path)


def singles(given):
    """A padded batch -> one batch an example, stacked along a leading axis."""
    rows = ("tokens", "types", "positions", "segments", "slots", "ordinal", "weight", "label")
    out = {name: jnp.asarray(given[name])[:, None] for name in rows}
    zero = jnp.zeros((len(given["tokens"]), 1), jnp.int32)
    return {**out, "example_slot": zero, "example_start": zero}


def mean_over_examples(of_one):
    """(value, gradient) of the mean of of_one(params, example, its row number)."""
    ones = singles(batch(packed=False))
    numbers = jnp.arange(len(ones["tokens"]))

    def mean(p):
        return jnp.mean(jax.vmap(lambda one, i: of_one(p, one, i))(ones, numbers))

    value, found = jax.jit(jax.value_and_grad(mean))(params())
    return value, flatten(found)


def loss(p, one, shift):
    outputs = MODEL.apply({"params": p}, {**one, "word_shift": shift})
    return -jax.nn.log_softmax(outputs["logits"])[0, one["label"][0]]


def worst(p, one, steps, step, epsilon):
    """All shifts of an ascent of one example: NumPy's norms over all that its row holds."""
    real = (one["segments"] > 0)[..., None]
    shifts = [jnp.zeros((*one["tokens"].shape, SIZES.hidden_size))]
    for _ in range(steps):
        g = jnp.where(real, jax.grad(loss, 2)(p, one, shifts[-1]), 0)
        r = shifts[-1] + step * g / jnp.linalg.norm(g.ravel())
        shifts.append(r * jnp.minimum(1, epsilon / jnp.linalg.norm(r.ravel())))
    return jax.lax.stop_gradient(shifts)


def test_fgm_and_pgd_are_their_formulas_example_by_example():
    def fgm(p, one, _):
        shift = worst(p, one, 1, 0.7, 0.7)[-1]
        return (loss(p, one, 0 * shift) + 3 * loss(p, one, shift)) / 4

    def pgd(p, one, _):
        shift = worst(p, one, 3, 0.5, 0.8)[-1]
        return (loss(p, one, 0 * shift) + 2 * loss(p, one, shift)) / 3

    one_step = made("fgm", fgm__epsilon=0.7, fgm__weight=3.0)
    assert_same(gradient(one_step, batch())[1], mean_over_examples(fgm)[1])
    several = made("pgd", pgd__steps=3, pgd__step=0.5, pgd__epsilon=0.8, pgd__weight=2.0)
    metrics, found = gradient(several, batch())
    assert_same(found, mean_over_examples(pgd)[1])
    assert metrics["adversarial_loss"] > metrics["loss"]


def test_freelb_is_its_algorithm_example_by_example():
    def mean(p, one, _):
        return sum(loss(p, one, r) for r in worst(p, one, 2, 0.5, 0.8)) / 3

    methods = made(
        "freelb", freelb__steps=3, freelb__step=0.5, freelb__epsilon=0.8, freelb__start=0.0
    )
    metrics, found = gradient(methods, batch())
    value, expected = mean_over_examples(mean)
    assert_same(found, expected)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_smart_and_virtual_adversarial_training_example_by_example(symmetric):
    # The random direction is the method's own; its layout is tested by packed = padded below.
    drawn = random_shift(jax.random.fold_in(KEY, 0x534D), MODEL, batch(packed=False))

    def kl(a, b):
        a, b = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
        return jnp.sum(jnp.exp(a) * (a - b))

    def logits(p, one, shift):
        return MODEL.apply({"params": p}, {**one, "word_shift": shift})["logits"][0]

    def smooth(p, one, i):
        d, clean = drawn[i][None], logits(p, one, 0.0)
        still, fixed = jax.lax.stop_gradient((clean, p))
        for _ in range(2):
            d = d / jnp.linalg.norm(d.ravel())
            d = jax.grad(lambda x: kl(still, logits(fixed, one, 0.2 * x)))(d)
        d = jnp.where((one["segments"] > 0)[..., None], d, 0)
        there = logits(p, one, jax.lax.stop_gradient(0.5 * d / jnp.linalg.norm(d.ravel())))
        far = kl(clean, there) + kl(there, clean) if symmetric else kl(still, there)
        return loss(p, one, 0.0) + 4 * far

    knobs = {"start": 0.2, "steps": 2, "epsilon": 0.5, "weight": 4.0, "symmetric": symmetric}
    methods = made("smart", **{f"smart__{k}": v for k, v in knobs.items()})
    # A direction is a quotient of small differences: float32 leaves 4 digits of it.
    assert_same(gradient(methods, batch())[1], mean_over_examples(smooth)[1], atol=1e-4)


def fake(*logits, task=TASK):
    """A run whose outputs are these, one after the other."""
    left = [{"logits": jnp.asarray(x)} for x in logits]

    def run(_, batch, rng):
        outputs = left.pop(0)
        outputs = {**outputs, "pooled": outputs["logits"]}
        total, count, extra = task.loss(outputs, batch)
        return Sums(total, count, extra, outputs)

    return run


RNG = np.random.default_rng(0)
P, Q = RNG.normal(0, 2, (2, 6, CLASSES)).astype(np.float32)
LABEL = np.array([0, 1, 2, 1, 1, 0])
BATCH = {"label": jnp.asarray(LABEL), "weight": jnp.ones(6)}


def applied(use, *logits, **knobs):
    (method,) = made(use, **knobs)
    return method.objective(fake(*logits), TASK, MODEL)(None, BATCH, KEY)


def test_rdrop_is_its_formula():
    p, q = softmax(P, axis=1), softmax(Q, axis=1)
    nll = -np.log(np.stack([p, q])[:, np.arange(6), LABEL]).sum() / 2
    far = (entropy(p, q, axis=1) + entropy(q, p, axis=1)).sum() / 2
    found = applied("rdrop", P, Q, rdrop__alpha=0.7)
    np.testing.assert_allclose(found.total, nll + 0.7 * far, rtol=1e-5)
    np.testing.assert_allclose(found.extra["rdrop_divergence"], far, rtol=1e-5)
    assert found.count == 6


@pytest.mark.parametrize("weight", [0.0, 0.8])
def test_distillation_is_its_formula(weight):
    given = {**BATCH, "teacher/logits": jnp.asarray(Q)}
    (method,) = made("distil", distil__temperature=3.0, distil__weight=weight)
    found = method.objective(fake(P), TASK, MODEL)(None, given, KEY).total
    nll = -log_softmax(P, axis=1)[np.arange(6), LABEL].sum()
    soft = 9 * entropy(softmax(Q / 3, axis=1), softmax(P / 3, axis=1), axis=1).sum()
    np.testing.assert_allclose(found, (1 - weight) * nll + weight * soft, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_its_formula(gamma):
    p = softmax(P, axis=1)[np.arange(6), LABEL]
    found = applied("focal", P, focal__gamma=gamma)
    np.testing.assert_allclose(found.total, -((1 - p) ** gamma * np.log(p)).sum(), rtol=1e-5)


def test_focal_has_a_gradient_where_all_is_right():
    sure = 200.0 * np.eye(CLASSES, dtype=np.float32)[LABEL]
    (method,) = made("focal", focal__gamma=0.5)
    found = jax.grad(lambda x: method.objective(fake(x), TASK, MODEL)(None, BATCH, KEY).total)(sure)
    assert np.isfinite(found).all()


def test_supervised_contrast_is_its_formula():
    z = P / np.linalg.norm(P, axis=1, keepdims=True)
    expected = np.zeros(6)
    for i in range(6):
        others = [k for k in range(6) if k != i]
        same = [j for j in others if LABEL[j] == LABEL[i]]
        below = sum(np.exp(z[i] @ z[k] / 0.3) for k in others)
        terms = [np.log(np.exp(z[i] @ z[j] / 0.3) / below) for j in same]
        expected[i] = -np.mean(terms) if same else 0
    assert expected[2] == 0 and expected.sum() > 1  # label 2 is there once
    there = np.ones(6, bool)
    np.testing.assert_allclose(contrast(P, LABEL, there, 0.3), expected, rtol=1e-4)
    more, labels = np.concatenate([P, P[:2]]), np.concatenate([LABEL, LABEL[:2]])
    found = contrast(more, labels, np.arange(8) < 6, 0.3)  # others, of another task, are not in it
    np.testing.assert_allclose(found[:6], expected, rtol=1e-4)
    slope = jax.grad(lambda x: contrast(x, labels, np.arange(8) < 1, 0.3).sum())(more)
    assert np.isfinite(slope).all(), "one example alone"
    nll = -log_softmax(P, axis=1)[np.arange(6), LABEL].sum()
    found = applied("contrastive", P, contrastive__weight=0.9, contrastive__temperature=0.3)
    np.testing.assert_allclose(found.total, 0.1 * nll + 0.9 * expected.sum(), rtol=1e-5)


def test_mixup_mixes_vectors_and_labels_alike():
    """The head's own layers on mixed vectors, the cross entropy with mixed targets; pairs and share
    are those of the method."""
    given, seen = batch(), {}

    def run(p, b, rng):
        seen.update({k: b[k] for k in ("mixed_with", "mixed_share")})
        outputs = MODEL.apply({"params": p}, b)
        return Sums(*TASK.loss(outputs, b), outputs)

    (method,) = made("mixup", mixup__alpha=1.0)
    mixed = method.beside(given, KEY)
    total = method.objective(run, TASK, MODEL)(params(), mixed, KEY).total
    pooled = MODEL.apply({"params": params()}, given)["pooled"]
    pairs, share = np.asarray(seen["mixed_with"]), float(seen["mixed_share"])
    assert sorted(pairs) == list(range(8)) and (pairs != range(8)).any() and 0 < share < 1
    dense = params()["top"]["classifier"]
    logits = (share * pooled + (1 - share) * pooled[pairs]) @ dense["kernel"] + dense["bias"]
    targets = np.eye(CLASSES)[given["label"]]
    targets = share * targets + (1 - share) * targets[pairs]
    np.testing.assert_allclose(total, -(targets * log_softmax(logits, axis=1)).sum(), rtol=1e-5)


@pytest.mark.parametrize("use", ["smart,mixup", "mixup,smart"])
def test_mixup_leaves_the_weight_of_other_terms(use):
    """L + 2 D of one mixture, whichever stands first."""
    metrics, _ = gradient(made(use, smart__weight=2.0), batch())
    plain, _ = gradient(made("mixup"), batch())
    assert metrics["smart_divergence"] > 0
    expected = plain["loss"] + 2 * metrics["smart_divergence"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


OFF = {
    "smart,focal,rdrop,contrastive,mixup,fgm": {
        "smart__weight": 0.0,
        "rdrop__alpha": 0.0,
        "focal__gamma": 0.0,
        "contrastive__weight": 0.0,
        "mixup__alpha": 0.0,
        "fgm__epsilon": 0.0,
    },
    "pgd": {"pgd__epsilon": 0.0},
    "freelb": {"freelb__epsilon": 0.0},
}


@pytest.mark.parametrize("use", OFF)
def test_strength_0_changes_nothing(use):
    assert_same(gradient(made(use, **OFF[use]), batch())[1], gradient((), batch())[1], 2e-6)


@pytest.mark.parametrize("use", ["focal,rdrop,pgd", "smart,freelb", "contrastive,mixup,fgm"])
def test_packed_padded_and_accumulated_agree(use):
    """With dropout. What is drawn or compared within a batch is another in micro-batches."""
    methods = made(use, smart__steps=1)
    _, packed = gradient(methods, batch(), 0.1)
    _, padded = gradient(methods, batch(packed=False), 0.1)
    # A direction of SMART is a quotient of small differences.
    atol = 1e-4 if "smart" in use else 1e-5
    assert_same(packed, padded, atol)
    if not {"contrastive", "mixup"} & set(use.split(",")):
        _, halves = gradient(methods, batch(accumulate=2), 0.1, 2)
        assert_same(halves, packed, atol)


def test_shifts_are_measured_by_sequence():
    given = batch()
    drawn = np.asarray(random_shift(KEY, MODEL, given))
    scaled, inside = scaled_to(drawn, given, 0.5), projected(drawn, given, 3.0)
    segments = np.asarray(given["segments"])
    assert len(np.unique(segments)) > 8 and (segments == 0).any()
    assert not drawn[segments == 0].any() and -1 <= drawn.min() < -0.9 < 0.9 < drawn.max() < 1
    for k in np.unique(segments[segments > 0]):
        own = np.linalg.norm(drawn[segments == k])
        np.testing.assert_allclose(norms(drawn, given)[segments == k], own, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(scaled[segments == k]), 0.5, rtol=1e-5)
        held = np.linalg.norm(inside[segments == k])
        np.testing.assert_allclose(held, min(own, 3.0), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-24, 1e-19, 1e-10, 1e15])
def test_shifts_of_any_size_end_where_they_shall(size):
    """Squares of entries below 1e-19 are 0 in float32: a sure text has such gradients."""
    given = batch()
    real = np.asarray(given["segments"])[..., None] > 0
    x = jnp.asarray(np.float32(size) * np.asarray(random_shift(KEY, MODEL, given)))
    for held in (scaled_to(x, given, 0.5), projected(x * 0 + scaled_to(x, given, 3.0), given, 0.5)):
        found = np.asarray(norms(held, given))[real]
        np.testing.assert_allclose(found, 0.5, rtol=1e-5)
    within = projected(x, given, size)
    np.testing.assert_allclose(np.asarray(norms(within, given))[real] / size, 1, rtol=1e-5)
    np.testing.assert_array_equal(scaled_to(0 * x, given, 0.5), 0 * x)
    assert np.linalg.norm(scaled_to(x * 1e-12, given, 0.5)) < 8


@pytest.mark.parametrize(
    ("use", "knobs", "words"),
    [
        ("fgm,pgd", {}, "one of fgm, pgd, freelb"),
        ("focal,mixup", {}, "one of focal, mixup"),
        ("rdrop", {"model.dropout": 0.0}, "config.model.dropout is 0.0"),
        ("focal", {"task.label_smoothing": 0.1}, "config.task.label_smoothing is 0.1"),
        ("contrastive", {"train.accumulate": 2}, "config.train.accumulate is 2"),
        ("contrastive", {"task.name": "multilabel"}, "it is for classification"),
        ("smart", {"model.kind": "lstm", "model.pretrained": ""}, "no smart where model.kind"),
        ("distil", {}, "config.methods.distil.teacher is ''; accepted: the workdir"),
        ("", {"model.layers_from": "0,x"}, "config.model.layers_from is '0,x'"),
        ("pgd", {"methods.pgd.steps": 0}, "config.methods.pgd.steps is 0; accepted: 1 or more"),
        ("smart", {"methods.smart.start": 0.0}, "config.methods.smart.start is 0.0"),
    ],
)
def test_refused(use, knobs, words):
    c = config(methods__use=use, data__train="files:a.csv", model__pretrained="dir")
    c.update_from_flattened_dict(knobs)
    with pytest.raises(InputError, match=words):
        check(c, "train")


def test_every_loss_has_checked_knobs():
    c = config()
    assert all(name in c.methods for name in METHODS)
