"""Losses of methods where there are several tasks: each part's own, weighed as the part is."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import small
from conftest import read_jsonl
from scipy.special import log_softmax, logsumexp, softmax
from test_multi import JOINT, close, files, flags, gradient, joint, made, multi, plan  # noqa: F401

from bert_ft.checks import check
from bert_ft.errors import InputError
from bert_ft.methods.registry import make_methods, make_weights
from bert_ft.methods.weights import FormedModel
from bert_ft.models import hf
from bert_ft.models.heads import Model

TWO = {"intent": {"data.label": "intent"}, "good": {"data.label": "good"}}  # two classifications
WEIGHTS = {"intent": 0.5, "good": 2.0}


def of(use, **knobs):
    c = small.config(methods__use=use)
    for name, values in knobs.items():
        c.methods[name].update(values)
    return c


@pytest.fixture(scope="module")
def two(files):  # noqa: F811
    """(task, model, params, data) of two parts that classify the same rows."""
    task = multi(TWO, task__weights="0.5,2")
    data = joint(files, task)
    model = Model(hf.read_config(files["model"]), task.head(data.fitted))
    return task, model, small.init(model), data


def said(two, batch):
    """{part: (logits, pooled vectors, labels)} of the plain model."""
    _, model, params, _ = two
    outputs = jax.tree.map(np.asarray, model.apply({"params": params}, batch))
    return {
        part: (outputs[part]["logits"], outputs[part]["pooled"], np.asarray(batch[f"{part}/label"]))
        for part in TWO
    }


def loss_of(two, batch, config):
    task, model, params, _ = two
    return gradient(task, model, params, batch, rate=0.0, methods=make_methods(config))[0]


def test_focal_is_of_each_part(two):
    batch = plan(two[3]).batch(0)
    wanted = 0.0
    for part, (logits, _, labels) in said(two, batch).items():
        log_p = log_softmax(logits, axis=1)[np.arange(8), labels]
        wanted += WEIGHTS[part] * np.mean(-((1 - np.exp(log_p)) ** 1.5) * log_p)
    metrics = loss_of(two, batch, of("focal", focal={"gamma": 1.5}))
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-4)


def test_contrast_is_of_each_part(two):
    batch = plan(two[3]).batch(0)
    wanted = 0.0
    for part, (logits, pooled, labels) in said(two, batch).items():
        cross = -np.mean(log_softmax(logits, axis=1)[np.arange(8), labels])
        z = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        apart = []
        for i in range(8):
            others = [k for k in range(8) if k != i]
            near = z[others] @ z[i] / 0.3
            same = labels[others] == labels[i]
            apart.append(-np.mean((near - logsumexp(near))[same]) if same.any() else 0.0)
        wanted += WEIGHTS[part] * (0.6 * cross + 0.4 * np.mean(apart))
    config = of("contrastive", contrastive={"weight": 0.4, "temperature": 0.3})
    metrics = loss_of(two, batch, config)
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-4)
    assert metrics["intent/contrastive_loss"] > 0


def test_distillation_is_of_each_part(two):
    batch = dict(plan(two[3]).batch(0))
    wanted, rng = 0.0, np.random.default_rng(5)
    for part, (logits, _, labels) in said(two, batch).items():
        teacher = rng.normal(0, 2, logits.shape).astype(np.float32)
        batch[f"{part}/teacher/logits"] = teacher
        cross = -np.mean(log_softmax(logits, axis=1)[np.arange(8), labels])
        p, log_q = softmax(teacher / 3, axis=1), log_softmax(logits / 3, axis=1)
        far = np.mean(np.sum(p * (np.log(p) - log_q), axis=1)) * 9
        wanted += WEIGHTS[part] * (0.3 * cross + 0.7 * far)
    config = of("distil", distil={"weight": 0.7, "temperature": 3.0})
    np.testing.assert_allclose(loss_of(two, batch, config)["loss"], wanted, rtol=1e-4)


@pytest.mark.parametrize("use", ["focal", "contrastive", "distil"])
def test_strength_0_changes_nothing(two, use):
    task, model, params, data = two
    data = told(data, task)
    off = {"focal": {"gamma": 0.0}, "contrastive": {"weight": 0.0}, "distil": {"weight": 0.0}}
    methods = make_methods(of(use, **{use: off[use]}))
    batch = plan(data).batch(0)
    close(
        gradient(task, model, params, batch, methods=methods)[1],
        gradient(task, model, params, batch)[1],
        1e-6,
    )


def told(data, task, layers=2, width=32):
    """The data with what a teacher might say of it, and what its layers might have computed."""
    rng = np.random.default_rng(7)
    fields = dict(data.fields)
    for part, own in task.parts.items():
        if own.name == "classification":
            shape = (len(data), len(data.fitted[part]["labels"]))
        else:
            assert own.name == "regression"
            shape = (len(data), 1)
        fields[f"{part}/teacher/logits"] = rng.normal(0, 1, shape).astype(np.float32)
    shape = (len(data.tokens), layers, width)
    token_fields = dict(data.token_fields)
    for name in ("hidden", "query", "key"):
        token_fields[f"teacher_{name}"] = rng.normal(0, 1, shape).astype(np.float16)
    return dataclasses.replace(data, fields=fields, token_fields=token_fields)


@pytest.mark.parametrize("use", ["focal", "distil,hints", "hints,rdrop", "adalora"])
def test_packed_padded_and_accumulated_agree(two, use):
    task, model, params, data = two
    c = of(use, hints={"width": model.config.hidden_size, "hidden": 0.4, "attention": 0.2})
    c.methods.adalora.orthogonality = 0.5
    data = told(data, task, model.config.num_hidden_layers, model.config.hidden_size)
    weights = make_weights(c)
    trained, frozen = weights.begin(params, 0)
    formed = FormedModel(model, weights, frozen, 0)

    def found(batch, accumulate=1):
        methods = make_methods(c)
        return gradient(task, formed, trained, batch, accumulate, methods=methods)

    metrics, packed = found(plan(data).batch(1))
    _, padded = found(plan(data, packed=False).batch(1))
    again, summed = found(plan(data, accumulate=2).batch(1), 2)
    close(packed, padded)
    close(summed, packed)
    for name in metrics:
        if not name.endswith("gradient_norm"):  # squares of halves are no squares of sums
            np.testing.assert_allclose(again[name], metrics[name], rtol=1e-4, err_msg=name)
    if "hints" in use:
        assert metrics["hints_hidden"] > 0.1 and metrics["hints_attention"] > 0.1
        alone = small.config(methods__use="hints")
        alone.methods.hints.update(c.methods.hints.to_dict())
        own = {k.removeprefix("intent/"): v for k, v in plan(data).batch(1).items()}
        one = task.parts["intent"]
        single = Model(model.config, one.head(data.fitted["intent"]))
        inside = {**trained, "top": trained["top"]["intent"]}
        metrics_one, _ = gradient(
            one, FormedModel(single, make_weights(alone), {}, 0), inside, own,
            rate=0.0, methods=make_methods(alone),
        )  # fmt: skip
        metrics_two, _ = gradient(
            task, formed, trained, plan(data).batch(1), rate=0.0, methods=make_methods(alone)
        )
        for name in ("hints_hidden", "hints_attention"):
            np.testing.assert_allclose(metrics_two[name], metrics_one[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("use", "more", "words"),
    [
        ("focal", {"task__parts": json.dumps(JOINT)}, "'slots': .*no focal where task.name is"),
        ("contrastive", {"task__parts": json.dumps(JOINT)}, "'slots': .*no contrastive where"),
        ("distil", {"task__weighting": "gradnorm"}, "no distil where task.weighting is"),
        ("focal", {"task__weighting": "gradnorm"}, "no focal where task.weighting is"),
    ],
)
def test_refused(use, more, words):
    given = {"task__name": "multi", "data__text": "tokens", "task__parts": json.dumps(TWO), **more}
    c = small.config(**given, methods__use=use)
    c.data.train, c.model.pretrained, c.methods.distil.teacher = "files:x", "y", "z"
    with pytest.raises(InputError, match=words):
        check(c)


def test_a_student_learns_all_parts_from_a_teacher(run_here, files, flags, tmp_path):  # noqa: F811
    """What is kept of the teacher is what it predicts; near it, the student's layers are too."""
    parts = f"--config.task.parts={json.dumps(JOINT)}"
    cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
    words = [*flags, parts, cache, "--config.train.steps=8", "--config.data.max_length=16"]
    read_by_it = f"--config.data.test=files:{files['train']}"
    teacher = run_here(tmp_path / "teacher", *words, read_by_it).ok()
    predicted = read_jsonl(teacher.workdir / "predictions" / "test.jsonl")
    use = [
        "--config.methods.use=distil,hints",
        f"--config.methods.distil.teacher={teacher.workdir}",
        "--config.methods.distil.weight=1.0",
    ]
    student = run_here(tmp_path / "student", *words, *use, "--config.train.steps=24").ok()
    kept = {p.name: np.load(p) for p in (tmp_path / "cache").rglob("taught/*.npy")}
    by_shape = {a.shape: a for a in kept.values() if a.dtype == np.float32}
    [logits] = [a for s, a in by_shape.items() if s[1:] == (2,)]
    probabilities = [[*line["probabilities"]["intent"].values()] for line in predicted]
    # An intent is read off the first window of a row, and the rows are in order.
    first = np.flatnonzero(np.diff(joint(files, multi()).row, prepend=-1))
    np.testing.assert_allclose(softmax(logits[first], axis=1), probabilities, atol=2e-6)
    assert any(len(shape) == 3 for shape in by_shape), "slots are told by word"
    for name in ("intent/distil_divergence", "slots/distil_divergence", "hints_hidden"):
        values = student.values(f"train/{name}")
        assert len(values) == 24 and np.isfinite(list(values.values())).all()
    assert student.values("train/hints_hidden")[24] < student.values("train/hints_hidden")[1]
    other = {**JOINT, "good": {"task.name": "ordinal", "data.label": "good"}}
    refused = run_here(tmp_path / "other", *words, *use, f"--config.task.parts={json.dumps(other)}")
    refused.refused("config.methods.distil.teacher", "its parts are", "'good': 'ordinal'")
