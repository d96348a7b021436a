"""A teacher's layers as hints: the loss example by example, what is kept of the teacher, a run."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import write_jsonl
from small import SIZES, config, init, model, task, varied
from test_losses import KEY, assert_same

from bert_ft.checks import check
from bert_ft.config import default
from bert_ft.data.batches import BatchPlan
from bert_ft.errors import InputError
from bert_ft.methods.hints import OWN
from bert_ft.methods.registry import make_methods, make_weights
from bert_ft.methods.weights import FormedModel
from bert_ft.models import peft
from bert_ft.models.hf import flatten
from bert_ft.models.taps import tapped
from bert_ft.preflight import system_for
from bert_ft.tasks.classification import Classification
from bert_ft.train import optim
from bert_ft.train.start import trained_params
from bert_ft.train.step import loss_and_gradient
from bert_ft.train.system import assemble, load_fitted

MODEL, TASK, WIDTH = model(), task(), 24


def told(data, seed=0):
    """The data with what a teacher of another width, but as many heads, might have computed."""
    rng = np.random.default_rng(seed)
    shape = (len(data.tokens), SIZES.num_hidden_layers, WIDTH)
    fields = {
        f"teacher_{name}": rng.normal(0, 1, shape).astype(np.float16)
        for name in ("hidden", "query", "key")
    }
    return dataclasses.replace(data, token_fields=fields)


DATA = told(varied(16))


def batch(packed=True, accumulate=1):
    return BatchPlan(DATA, 8, 2, 16, seed=1, packed=packed, accumulate=accumulate).batch(1)


def knobs(**given):
    c = config(methods__use="hints")
    c.methods.hints.update({"width": WIDTH, "hidden": 0.7, "attention": 0.3, **given})
    return c


def begun(c, model=MODEL):
    weights = make_weights(c)
    params = weights.begin(init(MODEL), 0)[0]
    return FormedModel(model, weights, {}, 0), params, make_methods(c)


def gradient(c, given, accumulate=1, task=TASK, model=MODEL):
    formed, params, methods = begun(c, model)
    metrics, found = jax.jit(
        lambda p, b: loss_and_gradient(formed, task, p, b, KEY, 0.0, accumulate, methods)
    )(params, given)
    return metrics, flatten(found)


def test_hints_are_their_formula_example_by_example():
    c = knobs()
    _, params, _ = begun(c)
    kernels = [np.asarray(params["hints"][f"layer_{i}"]["kernel"]) for i in range(2)]
    hidden = attention = 0.0
    for e in BatchPlan(DATA, 8, 2, 16, seed=1).examples(1):
        first, last = DATA.offsets[e], DATA.offsets[e + 1]
        length = last - first
        one = {
            "tokens": DATA.tokens[None, first:last],
            "types": DATA.types[None, first:last].astype(np.int32),
            "positions": np.arange(length)[None],
            "segments": np.ones((1, length), np.int32),
        }
        _, own = tapped(MODEL, {"params": init(MODEL)}, one, method="encoded")
        fields = {k: v[first:last].astype(np.float32) for k, v in DATA.token_fields.items()}
        for i in range(2):
            asked = slice(None) if i == 0 else slice(0, 1)  # the last layer: the first token only
            h = np.asarray(own["hidden"][i][0])[asked] @ kernels[i]
            hidden += np.mean((h - fields["teacher_hidden"][asked, i]) ** 2) / 2

            def scores(q, k, asked=asked):
                q, k = (x.reshape(len(x), SIZES.num_attention_heads, -1) for x in (q[asked], k))
                return np.einsum("qnd,snd->nqs", q, k) / np.sqrt(q.shape[-1])

            ours = scores(*(np.asarray(own[name][i][0]) for name in ("query", "key")))
            theirs = scores(fields["teacher_query"][:, i], fields["teacher_key"][:, i])
            attention += np.mean((ours - theirs) ** 2) / 2
    metrics, _ = gradient(c, batch())
    np.testing.assert_allclose(metrics["hints_hidden"], hidden / 8, rtol=1e-4)
    np.testing.assert_allclose(metrics["hints_attention"], attention / 8, rtol=1e-4)
    plain = loss_and_gradient(MODEL, TASK, init(MODEL), batch(), None, 0.0, 1)[0]["loss"]
    expected = plain + 0.7 * hidden / 8 + 0.3 * attention / 8
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


def test_packed_padded_and_accumulated_agree():
    metrics, packed = gradient(knobs(), batch())
    _, padded = gradient(knobs(), batch(packed=False))
    _, halves = gradient(knobs(), batch(accumulate=2), 2)
    assert_same(padded, packed)
    assert_same(halves, packed)
    assert float(jnp.abs(packed["hints/layer_1/kernel"]).max()) > 0 and metrics["loss"] > 0


@pytest.mark.parametrize(
    ("remat", "layer_loop"), [("none", "scan"), ("layer", "loop"), ("dots", "scan")]
)
def test_layers_in_a_loop_or_computed_twice_tell_the_same(remat, layer_loop):
    c = knobs()
    other = MODEL.clone(remat=remat, layer_loop=layer_loop)
    metrics, plain = gradient(c, batch())
    found_metrics, found = gradient(c, batch(), model=other)
    for name in ("loss", "hints_hidden", "hints_attention"):
        np.testing.assert_allclose(found_metrics[name], metrics[name], rtol=1e-5)
    assert_same(found, plain)


def test_hints_are_means_over_examples_whatever_a_label_weighs():
    weighed = Classification(config())
    weighed.head({**DATA.fitted, "weights": [10.0, 10.0, 10.0]})
    plain, _ = gradient(knobs(), batch())
    found, _ = gradient(knobs(), batch(), task=weighed)
    for name in ("loss", "hints_hidden", "hints_attention"):
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-5)
    weighed.head({**DATA.fitted, "weights": [1.0, 2.0, 5.0]})  # of halves that weigh unlike
    one, whole = gradient(knobs(), batch(), task=weighed)
    two, halves = gradient(knobs(), batch(accumulate=2), 2, task=weighed)
    np.testing.assert_allclose(two["hints_hidden"], one["hints_hidden"], rtol=1e-5)
    np.testing.assert_allclose(one["hints_hidden"], plain["hints_hidden"], rtol=1e-5)
    assert_same(halves, whole)


def test_strength_0_changes_nothing():
    given = batch()
    _, found = gradient(knobs(hidden=0.0, attention=0.0), given)
    _, plain = loss_and_gradient(MODEL, TASK, init(MODEL), given, None, 0.0, 1)
    assert_same(found, flatten(plain), 1e-6)


def test_a_student_learns_from_a_teachers_layers(run_here, deep, tmp_path, cache, monkeypatch):
    """One of its layers from two; what is kept of the teacher is what it computes; the student is
    exported, without what hints were learnt with."""
    short = ("--config.train.steps=6", "--config.data.test=", "--config.model.dropout=0.0")
    two = f"--config.model.pretrained={deep}"
    teacher = run_here(tmp_path / "teacher", *short, two).ok().workdir
    words = (
        "--config.methods.use=distil,hints",
        f"--config.methods.distil.teacher={teacher}",
        "--config.model.layers_from=0",
        f"--config.model.pretrained={shutil.copytree(deep, tmp_path / 'base')}",
    )
    taught = cache / "bert_ft" / "taught"
    before = {*taught.glob("*.npy")}
    student = run_here(tmp_path / "student", *short, *words).ok()
    far = list(student.values("train/hints_hidden").values())
    assert far[-1] < far[0]
    again = run_here(tmp_path / "again", *short, *words).ok()  # from the cache
    assert again.result["params_sha256"] == student.result["params_sha256"]

    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    c = default()
    c.update_from_flattened_dict(json.loads((teacher / "config.json").read_text()))
    system = assemble(c, lambda _: None, model_dir=teacher / "model", fitted=load_fitted(teacher))
    params, _ = trained_params(system, teacher, optim.make_optimizer(c, 1), lambda _: None)
    data = system.sets["train"]
    first, last = data.offsets[3], data.offsets[4]
    one = {
        "tokens": data.tokens[None, first:last],
        "types": data.types[None, first:last].astype(np.int32),
        "positions": np.arange(last - first)[None],
        "segments": np.ones((1, last - first), np.int32),
    }
    _, own = tapped(system.model, {"params": params}, one, method="encoded")
    kept = [np.load(p) for p in {*taught.glob("*.npy")} - before]
    of_tokens = [k[first:last, 0].astype(np.float32) for k in kept if k.ndim == 3]
    assert len(of_tokens) == 3
    for name in ("hidden", "query", "key"):
        value = np.asarray(own[name][1][0])
        assert min(np.abs(k - value).max() for k in of_tokens) < 5e-3, name

    out = tmp_path / "exported"
    flags = (*short, *words, "--mode=export", f"--config.export.to={out}")
    run_here(student.workdir, *flags).ok()
    assert (out / "model.safetensors").exists()
    run_here(tmp_path / "x", *short, *words, "--config.methods.hints.width=7").refused(
        "config.methods.hints.width is 7; accepted:", "the teacher's"
    )
    run_here(tmp_path / "x", *short, *words, "--config.methods.hints.layers=5").refused(
        "config.methods.hints.layers is '5'; accepted: 1 of the teacher's layers 0 to 1"
    )
    shutil.rmtree(tmp_path / "base")  # nothing was frozen: the checkpoint has all of the student
    new = write_jsonl(tmp_path / "new.jsonl", [{"text": "a great film"}])
    asked = (*short, *words, "--mode=predict", f"--config.predict.input={new}")
    run_here(student.workdir, *asked).ok()


def test_an_adapter_of_peft_leaves_out_what_hints_are_learnt_with(tmp_path):
    c, model = config(methods__use="lora,hints"), init(MODEL)
    trained, places = flatten(make_weights(c).begin(model, 0)[0]), flatten(model)
    assert peft.BESIDE == OWN and any(path.startswith(OWN) for path in trained)
    adapter = peft.Adapter("lora", c.methods.lora.to_dict(), trained)
    peft.save(tmp_path, adapter, places, SIZES, "sequence", "base")
    read = peft.read(tmp_path, places, SIZES, "sequence").tensors
    assert read.keys() == {path for path in trained if not path.startswith(OWN)}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "config.methods.distil.teacher is ''; accepted: the workdir"),
        ({"methods.distil.teacher": "x", "methods.hints.layers": "1;2"}, "hints.layers is '1;2'"),
        ({"methods.distil.teacher": "x", "methods.hints.hidden": -1.0}, "hints.hidden is -1.0"),
        ({"methods.distil.teacher": "x", "task.name": "masked"}, "no hints where task.name"),
    ],
)
def test_refused(values, words):
    c = config(methods__use="hints", data__train="files:a.csv", model__pretrained="dir")
    c.update_from_flattened_dict(values)
    with pytest.raises(InputError, match=words):
        check(c, "train")


def test_preflight_has_no_teacher():
    with pytest.raises(InputError, match="no hints, whose teacher has to run first"):
        system_for(knobs(), (), print)
