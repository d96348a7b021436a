"""Adapters of the peft library: what it made answers here as there, what is written here it reads.

tests/parity/peft_* are made by experiments/parity/make_adapters.py, logits included; their base is
that of tests/parity/two_layers.npz. 1e-4 as in test_parity.py.
"""

import dataclasses
import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import read_jsonl, reviews, write_jsonl
from safetensors.numpy import load_file, save_file
from small import config
from test_parity import padded_batch
from test_tagging import opinions

from bert_ft.errors import InputError
from bert_ft.methods.registry import make_weights
from bert_ft.models import hf, peft
from bert_ft.models.heads import Model, SequenceHead
from bert_ft.train.meaning import MARK, require_same
from bert_ft.train.system import example_batch

HERE = Path(__file__).parent / "parity"
NAMES = ("lora", "dora", "adalora", "prefix", "all_linear")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(directory, model, its parameters by path, the texts' arrays)."""
    stored = dict(np.load(HERE / "two_layers.npz"))
    path = tmp_path_factory.mktemp("base")
    weights = {k[7:]: v.astype(np.float32) for k, v in stored.items() if k.startswith("weight.")}
    sizes = {k[7:]: v.item() for k, v in stored.items() if k.startswith("config.")}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    about = {"model_type": "bert", "id2label": {str(i): f"LABEL_{i}" for i in range(3)}}
    (path / "config.json").write_text(json.dumps({**about, **sizes}))
    model = Model(hf.read_config(path), functools.partial(SequenceHead, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    flat = {k: jnp.asarray(v) for k, v in hf.load(path, shapes)[0].items()}
    names = ("input_ids", "attention_mask", "token_type_ids")
    return path, model, flat, [stored[n].astype(np.int32) for n in names]


def config_of(adapter):
    c = config(methods__use=adapter.use)
    c.methods[adapter.use].update(adapter.knobs)
    if adapter.use != "prefix":
        c.methods[adapter.use].targets = r"attention/(query|value|output)$"
    if "top/pooler/lora_a" in adapter.tensors:
        c.methods.lora.targets, c.methods.also_train = "^encoder/|pooler", "^top/classifier/"
    return c


def answers(name, adapter, base):
    """Logits of the stored texts, and the right ones."""
    _, model, flat, given = base
    right = np.load(HERE / f"peft_{name}" / "logits.npy")
    if name == "prefix":  # so many positions less
        given = [x[:, :-5] for x in given]
    weights = make_weights(config_of(adapter))
    trained, frozen = weights.begin(hf.unflatten(flat), 0)
    whole = {**hf.flatten(trained), **adapter.tensors}
    assert whole.keys() == hf.flatten(trained).keys()
    params = weights.form(frozen, hf.unflatten(whole), 0)
    return np.asarray(model.apply({"params": params}, padded_batch(*given))["logits"]), right


@pytest.mark.parametrize("name", NAMES)
def test_theirs_answers_as_there_and_is_written_as_it_was_read(name, base, tmp_path):
    path, model, flat, _ = base
    adapter = peft.read(HERE / f"peft_{name}", flat, model.config, "sequence")
    ours, right = answers(name, adapter, base)
    np.testing.assert_allclose(ours, right, atol=TOLERANCE, rtol=0)
    assert np.abs(right - np.load(HERE / "two_layers.npz")["logits"]).max() > 0.1

    c = config_of(adapter)
    full = peft.Adapter(adapter.use, c.methods[adapter.use].to_dict(), adapter.tensors)
    peft.save(tmp_path, full, flat, model.config, "sequence", str(path))
    theirs = load_file(HERE / f"peft_{name}" / peft.TENSORS)
    written = load_file(tmp_path / peft.TENSORS)
    assert written.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)


def answers_behind(model, given):
    """A peft model's logits behind its prefix: peft 0.21 finds no past_key_values in transformers
    5.24, which calls it cache."""
    import torch
    from transformers.cache_utils import DynamicCache

    found, mask = model.get_prompt(len(given["input_ids"])), given["attention_mask"]
    cache = found if hasattr(found, "get_seq_length") else DynamicCache(found)
    seen = torch.cat([mask.new_ones(len(mask), cache.get_seq_length()), mask], dim=1)
    hidden = model.base_model.bert(**{**given, "attention_mask": seen}, past_key_values=cache)
    return model.base_model.classifier(hidden.pooler_output)


@pytest.mark.parametrize("name", NAMES)
def test_peft_reads_what_is_written(name, base, tmp_path):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("peft")
    from transformers import BertForSequenceClassification

    path, model, flat, given = base
    adapter = peft.read(HERE / f"peft_{name}", flat, model.config, "sequence")
    # Other numbers than it has itself, so that none can be left where it was.
    moved = {k: v + 0.1 for k, v in adapter.tensors.items()}
    c = config_of(adapter)
    adapter = peft.Adapter(adapter.use, c.methods[adapter.use].to_dict(), moved)
    peft.save(tmp_path, adapter, flat, model.config, "sequence", str(path))
    ours, _ = answers(name, peft.read(tmp_path, flat, model.config, "sequence"), base)
    below = BertForSequenceClassification.from_pretrained(path, attn_implementation="eager")
    theirs = library.PeftModel.from_pretrained(below, tmp_path).eval()
    cut = -5 if name == "prefix" else None  # so many positions less
    names = ("input_ids", "attention_mask", "token_type_ids")
    given = {
        n: torch.tensor(x[:, :cut].astype(np.int64)) for n, x in zip(names, given, strict=True)
    }
    with torch.no_grad():
        right = answers_behind(theirs, given) if name == "prefix" else theirs(**given).logits
    np.testing.assert_allclose(ours, right.numpy(), atol=TOLERANCE, rtol=0)


def test_triplets_that_peft_has_left_out(base, tmp_path):
    """peft divides by the number of those that are there."""
    _, model, flat, _ = base
    shutil.copytree(HERE / "peft_adalora", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / peft.TENSORS)
    whole = peft.read(tmp_path, flat, model.config, "sequence").tensors
    layer = "base_model.model.bert.encoder.layer.0.attention.self.query"
    for end, cut in (("A", np.s_[:3]), ("E", np.s_[:3]), ("B", np.s_[:, :3])):
        tensors[f"{layer}.lora_{end}"] = np.ascontiguousarray(tensors[f"{layer}.lora_{end}"][cut])
    save_file(tensors, tmp_path / peft.TENSORS)
    read = peft.read(tmp_path, flat, model.config, "sequence").tensors
    at = "encoder/layer_0/attention/query"
    assert read[f"{at}/ada_a"].shape == (24, 4) and read[f"{at}/ada_e"][3] == 0
    np.testing.assert_allclose(read[f"{at}/ada_e"][:3] / 4, whole[f"{at}/ada_e"][:3] / 3, rtol=1e-6)


def test_what_a_file_of_an_old_version_lacks_is_off(base, tmp_path):
    _, model, flat, _ = base
    shutil.copytree(HERE / "peft_lora", tmp_path, dirs_exist_ok=True)
    about = json.loads((tmp_path / peft.CONFIG).read_text())
    for key in ("use_rslora", "use_dora"):
        about.pop(key)
    (tmp_path / peft.CONFIG).write_text(json.dumps(about))
    knobs = peft.read(tmp_path, flat, model.config, "sequence").knobs
    assert knobs["rank_stabilized"] is False and knobs["dora"] is False


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("peft_type", "IA3", "accepted: LORA, ADALORA, PREFIX_TUNING"),
        ("rank_pattern", {"query": 2}, "one rank"),
        ("alpha_pattern", {"query": 2}, "alpha_pattern"),
        (
            "init_lora_weights",
            "pissa_niter_4",
            "'pissa_niter_4'; accepted: True, False, 'gaussian'",
        ),
        ("bias", "lora_only", "bias is 'lora_only'; accepted: 'none'"),
        ("layer_replication", [[0, 2], [1, 2]], "accepted: None"),
        ("alora_invocation_tokens", [5, 6], "accepted: None"),
        ("r", 5, r"layer_0/attention/\w+/lora_\w has shape .*; accepted: "),
    ],
)
def test_refused(key, value, words, base, tmp_path):
    _, model, flat, _ = base
    shutil.copytree(HERE / "peft_lora", tmp_path, dirs_exist_ok=True)
    about = json.loads((tmp_path / peft.CONFIG).read_text())
    (tmp_path / peft.CONFIG).write_text(json.dumps({**about, key: value}))
    with pytest.raises(InputError, match=words):
        peft.read(tmp_path, flat, model.config, "sequence")


def test_what_is_no_object_is_refused(base, tmp_path):
    _, model, flat, _ = base
    shutil.copytree(HERE / "peft_lora", tmp_path, dirs_exist_ok=True)
    (tmp_path / peft.CONFIG).write_text("[]")
    with pytest.raises(InputError, match=f"{peft.CONFIG}: a JSON list, not an object"):
        peft.read(tmp_path, flat, model.config, "sequence")


@pytest.mark.parametrize(
    "name, change, words",
    [
        ("lora", {"hidden_size": 12}, "shape"),
        ("adalora", {"hidden_size": 12}, "shape"),
        (
            "prefix",
            {"hidden_size": 12},
            r"prompt_embeddings has shape \(5, 96\); accepted: \(5, 48\)",
        ),
        ("prefix", {"num_hidden_layers": 1}, r"prompt_embeddings .* accepted: \(5, 48\)"),
        (
            "lora",
            {"labels": 4},
            r"top/classifier/\w+ has shape \(.*3.*\); accepted: \(.*4.*\), as this",
        ),
    ],
)
def test_of_another_base_or_other_labels(name, change, words, base):
    """What peft loads below it tells sizes only by its tensors."""
    _, model, _, _ = base
    sizes = {k: v for k, v in change.items() if k != "labels"}
    encoder = dataclasses.replace(model.config, **sizes)
    other = Model(encoder, functools.partial(SequenceHead, change.get("labels", 3)))
    shapes = jax.eval_shape(other.init, jax.random.key(0), example_batch())["params"]
    with pytest.raises(InputError, match=words):
        peft.read(HERE / f"peft_{name}", hf.flatten(shapes), encoder, "sequence")


def test_answers_of_a_model_that_reads_token_types(run_here, tmp_path):
    """peft's own class around a model that answers questions leaves the token types out."""
    pytest.importorskip("torch"), pytest.importorskip("peft")
    texts = ((r["id"], r["text"], r["text"].rstrip(".").split()[-1]) for r in reviews(24, 1))
    rows = [
        {
            "id": name,
            "question": "what is it",
            "context": text,
            "answers": {"text": [word], "answer_start": [text.index(word)]},
        }
        for name, text, word in texts
    ]
    data = write_jsonl(tmp_path / "a.jsonl", rows)
    span = ("--config.task.name=span", "--config.methods.use=lora", "--config.task.label_names=",
            "--config.data.text=question", "--config.data.text_pair=context",
            "--config.data.label=answers", "--config.data.dev=", "--config.task.stride=4",
            "--config.task.max_question=8", f"--config.data.train=files:{data}",
            f"--config.data.test=files:{data}", "--config.train.steps=2",
            "--config.eval.report=False")  # fmt: skip
    run = run_here(tmp_path / "run", *span).ok().workdir
    to = ("--mode=export", f"--config.export.to={tmp_path / 'out'}", "--config.export.format=peft")
    assert "peft" in run_here(run, *span, *to).ok().out


def test_no_place_for_it(base, tmp_path):
    _, model, flat, _ = base
    with pytest.raises(InputError, match="no adapter of peft"):
        peft.read(tmp_path, flat, model.config, "sequence")
    shutil.copytree(HERE / "peft_lora", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / peft.TENSORS)
    save_file({**tensors, "base_model.model.gpt.bias": np.zeros(2)}, tmp_path / peft.TENSORS)
    with pytest.raises(InputError, match="base_model.model.gpt.bias"):
        peft.read(tmp_path, flat, model.config, "sequence")
    linear = peft.read(HERE / "peft_all_linear", flat, model.config, "sequence")
    both = {**linear.tensors, "top/pooler/bias": np.zeros(24)}
    with pytest.raises(InputError, match="whole and by factors, as top/pooler/bias; accepted: a"):
        factored = dataclasses.replace(linear, tensors=both)
        peft.save(tmp_path, factored, flat, model.config, "sequence", "x")
    bias = peft.Adapter("lora", {}, {"encoder/norm/bias": np.zeros(24)})
    with pytest.raises(InputError, match="encoder/norm/bias"):
        peft.save(tmp_path, bias, flat, model.config, "sequence", "x")


def test_adapters_beside_each_other_answer_by_what_each_has_learnt(run_here, tmp_path):
    """Two runs on one base, of which one was trained on ratings of ten times the size."""
    flags = (
        *(
            "--config.task.name=regression",
            "--config.task.label_names=",
            "--config.methods.use=lora",
        ),
        *("--config.train.steps=2", "--config.data.row_counts=1", "--config.eval.report=False"),
        *("--config.data.dev=", "--config.data.test="),
    )
    given = write_jsonl(tmp_path / "rows.jsonl", [{"text": r["text"]} for r in reviews(5, 4)])
    asked, places = (*flags, "--mode=predict", f"--config.predict.input={given}"), []
    for times in (1, 10):
        rows = [{**r, "label": times * r["label"]} for r in reviews(24, times)]
        data = write_jsonl(tmp_path / f"{times}.jsonl", rows)
        run = run_here(tmp_path / f"by{times}", *flags, f"--config.data.train=files:{data}").ok()
        places.append(run.workdir)
    run_here(places[1], *asked).ok()
    out = f"--config.predict.output={tmp_path / 'out.jsonl'}"
    both = f"--config.predict.adapters={','.join(map(str, places))}"
    run_here(places[0], *asked, out, both).ok()
    where = tmp_path / "written10"
    to = ("--config.export.format=peft", f"--config.export.to={where}")
    data = f"--config.data.test=files:{tmp_path / '10.jsonl'}"
    run_here(places[1], *flags, data, *to, "--mode=export").ok()
    by = f"--config.predict.adapters={where}"
    run_here(places[0], *asked, out, by).ok()  # of ours, so it says in what unit it answers
    small, large = (
        [r["label"] for r in read_jsonl(tmp_path / f"out.by{n}.jsonl")] for n in (1, 10)
    )
    own = [r["label"] for r in read_jsonl(places[1] / "predictions" / "rows.jsonl")]
    assert large == pytest.approx(own, abs=1e-4)
    apart = [r["label"] for r in read_jsonl(tmp_path / "out.written10.jsonl")]
    assert apart == pytest.approx(own, abs=1e-4)
    about = json.loads((where / MARK).read_text())
    (where / MARK).write_text(json.dumps(about | {"base_sha256": "0"}))
    run_here(places[0], *asked, out, by).refused("written10", "another base")
    assert max(map(abs, small)) < 4 < max(map(abs, large)), "of labels about 0.5, and about 5"

    (where / MARK).write_text(json.dumps(about))
    unit = about["unit"]
    said = f"A label is the output times {unit['scale']}, and {unit['mean']} more."
    assert said in (where / "README.md").read_text()
    begun = ("--config.train.steps=1", "--config.train.learning_rate=1e-9")
    begun = (*flags, *begun, f"--config.data.train=files:{tmp_path / '1.jsonl'}")
    run_here(tmp_path / "begun", *begun, f"--config.model.adapter={where}").ok()
    run_here(tmp_path / "begun", *asked).ok()  # from what was learnt in another unit
    own = read_jsonl(tmp_path / "begun" / "predictions" / "rows.jsonl")
    assert [r["label"] for r in own] == pytest.approx(large, abs=1e-3)


def test_a_chain_and_a_card_of_an_adapter(run_here, tmp_path):
    """The scores of a CRF are read at the rate that they were stored at, and README.md's lines load
    five outputs on a base that has two."""
    data = write_jsonl(tmp_path / "a.jsonl", opinions(40, 1))
    crf = ("--config.task.name=tagging", "--config.task.decode=crf", "--config.methods.use=lora",
           "--config.task.label_names=", "--config.data.text=tokens", "--config.data.label=tags",
           f"--config.data.train=files:{data}", f"--config.data.test=files:{data}",
           "--config.data.dev=", "--config.train.steps=4", "--config.task.stride=8",
           "--config.eval.report=False")  # fmt: skip
    run, out = run_here(tmp_path / "run", *crf).ok().workdir, tmp_path / "out"
    to = ("--mode=export", f"--config.export.to={out}", "--config.export.format=peft")
    run_here(run, *crf, *to).ok()
    ask = (*crf, "--mode=predict", f"--config.predict.input={data}")
    run_here(run, *ask).ok()
    by = f"--config.predict.adapters={out}"
    for rate in (100.0, 1000.0):
        run_here(run, *ask, by, f"--config.task.crf_rate={rate}").ok()
        own, its = (
            [
                e["probability"]
                for line in read_jsonl(run / "predictions" / name)
                for e in line["label"]
            ]
            for name in ("a.jsonl", "a.out.jsonl")
        )
        assert len(own) > 40 and its == pytest.approx(own, abs=1e-5), rate
    pytest.importorskip("torch"), pytest.importorskip("peft")
    text = (out / "README.md").read_text()
    lines = text[text.index("```python\n") :].split("```")[1].removeprefix("python\n")
    names = dict[str, Any]()
    exec(lines.replace('("out"', f'("{out}"'), names)
    assert names["model"].config.id2label == dict(
        enumerate(["O", "B-BAD", "B-GOOD", "B-TOPIC", "I-TOPIC"])
    )
    loaded = load_file(out / "adapter_model.safetensors")
    weight = names["model"].classifier.state_dict()
    (ours,) = (v for k, v in loaded.items() if k.endswith("classifier.weight"))
    (theirs,) = (v for k, v in weight.items() if k.endswith("weight") and "original" not in k)
    np.testing.assert_array_equal(theirs.numpy(), ours)


@pytest.mark.parametrize(
    ("task", "theirs", "words"),
    [
        ("classification", {"thresholds": [0.1], "weights": [2.0]}, ""),
        (
            "classification",
            {"labels": ["b", "a"]},
            "its labels: ['b', 'a']; accepted: this run's, ",
        ),
        ("classification", {"names": ["x", "y"]}, "its names: ['x', 'y']"),
        ("multilabel", {}, "its task.name: 'multilabel'; accepted: this run's, 'classification'"),
    ],
)
def test_adapters_with_outputs_that_mean_something_else(task, theirs, words):
    fitted = {"labels": ["a", "b"], "names": ["a", "b"], "thresholds": [0.5]}
    system = SimpleNamespace(task=SimpleNamespace(name="classification"), fitted=fitted)
    said = ""
    try:
        require_same(system, task, {**fitted, **theirs}, "run")
    except InputError as e:
        said = str(e)
    assert words in said if words else not said


def test_adapters_of_several_parts_are_compared_part_by_part():
    task = SimpleNamespace(name="multi", parts={"a": None, "b": None})
    fitted = {"a": {"labels": ["x", "y"]}, "b": {"mean": 1.0}}
    system = SimpleNamespace(task=task, fitted=fitted)
    require_same(system, "multi", {**fitted, "b": {"mean": 2.0}}, "run")
    with pytest.raises(InputError, match="its a labels: None; accepted: this run's, .'x', 'y'"):
        require_same(system, "multi", {"b": {"mean": 1.0}}, "run")
