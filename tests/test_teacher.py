"""A teacher's word joined to the training examples; a student of some of its layers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import read_jsonl, remove, write_jsonl
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from scipy.special import softmax
from small import config
from test_span import write_squad
from test_tagging import opinions

from bert_ft.config import default
from bert_ft.errors import InputError
from bert_ft.models import hf
from bert_ft.models.shallow import chosen_layers, deepened, picked
from bert_ft.train import teacher as teaching
from bert_ft.train.initial import initial_params
from bert_ft.train.system import assemble


def test_layers_of_a_checkpoint_are_picked():
    deep = {f"encoder/layer_{i}/up/kernel": i for i in range(11)} | {"encoder/word/embedding": "w"}
    shallow = picked(deep, [1, 10])
    assert shallow == {
        "encoder/word/embedding": "w",
        "encoder/layer_0/up/kernel": 1,
        "encoder/layer_1/up/kernel": 10,
    }
    assert deepened(shallow, 11).keys() == deep.keys()
    assert chosen_layers("", 2) == [0, 1] and chosen_layers("1, 3", 4) == [1, 3]
    with pytest.raises(InputError, match="layers 0 to 3"):
        chosen_layers("1,4", 4)


def test_a_student_begins_with_them(world, deep, cache):
    c = default()
    c.model.pretrained, c.model.layers_from = str(deep), "1"
    c.data.train, c.data.cache_dir = f"files:{world.train}", str(cache)
    c.data.max_length = 32
    found = hf.flatten(initial_params(assemble(c, print, sets=("train",)), print))
    tensors = load_file(deep / "model.safetensors")
    expected = tensors["encoder.layer.1.intermediate.dense.weight"].T
    np.testing.assert_array_equal(found["encoder/layer_0/up/kernel"], expected)
    assert not any("layer_1" in path for path in found)


def test_two_students_learn_from_a_teacher_that_reads_once(run_here, world, deep, tmp_path, cache):
    """As trials of one program, from one of the teacher's layers; with its word alone they come
    near it. The teacher's own predictions of the training set are its test set's."""
    short = ("--config.train.steps=4", f"--config.model.pretrained={deep}")
    teacher = run_here(tmp_path / "teacher", *short, f"--config.data.test=files:{world.train}").ok()
    said = read_jsonl(teacher.workdir / "predictions" / "test.jsonl")
    probabilities = np.array([list(line["probabilities"].values()) for line in said])
    words = (
        "--config.methods.use=distil",
        f"--config.methods.distil.teacher={teacher.workdir}",
        "--config.methods.distil.weight=1.0",
        "--config.model.layers_from=1",
        "--config.data.max_length=40",  # the teacher's is 32, which no text reaches
    )
    trials, taught = json.dumps({"seed": [0, 1]}), cache / "bert_ft" / "taught"
    before = {*taught.glob("*.npy")}
    student = run_here(tmp_path / "student", *short, *words, f"--config.trials={trials}").ok()
    assert "the config is not the one of" not in student.err, "the teacher is no run of this config"
    (kept,) = {*taught.glob("*.npy")} - before
    np.testing.assert_allclose(softmax(np.load(kept), axis=1), probabilities, atol=2e-6)
    far = [line["value"] for line in student.metrics if "distil_divergence" in line["name"]]
    assert len(far) and np.isfinite(far).all()
    ordinal = ("--config.task.name=ordinal", "--config.task.label_names=")
    other = run_here(tmp_path / "other", *short, *words, *ordinal)
    other.refused("config.methods.distil.teacher", "its task is 'classification'", "'ordinal'")
    soft = ("--config.methods.use=distil,prompt", "--config.methods.prompt.length=3")
    other = run_here(tmp_path / "soft", *short, *words, *soft)
    other.refused("config.methods.distil.teacher", "its prompt has 0 soft tokens", "student, 3 (")


@pytest.mark.parametrize("task", ["tagging", "span"])
def test_what_a_teacher_says_of_words_and_answers(task, run_here, deep, tmp_path):
    """A student that begins where its teacher ended has nothing to learn of it, whatever shares its
    rows; one of a layer has. Both with its layers as hints, of which the first has nothing to learn
    either: they are kept as float16."""
    if task == "tagging":
        words = ["--config.data.text=tokens", "--config.data.label=tags", "--config.task.stride=8"]
        train = f"files:{write_jsonl(tmp_path / 'a.jsonl', opinions(40, 1, clauses=6))}"
    else:
        words = ["--config.data.text=question", "--config.data.text_pair=context"]
        words += ["--config.data.label=answers", "--config.task.stride=6"]
        words += ["--config.task.max_question=10"]
        train = f"files:{write_squad(tmp_path / 'a.json', 20, 1)}?format=squad"
    words += [f"--config.task.name={task}", "--config.task.label_names=", "--config.data.dev="]
    words += [f"--config.data.train={train}", "--config.data.test="]
    words += [f"--config.model.pretrained={deep}"]
    teacher = run_here(tmp_path / "teacher", *words, "--config.train.steps=10").ok().workdir
    words += ["--config.methods.use=distil,hints", f"--config.methods.distil.teacher={teacher}"]
    words += ["--config.methods.distil.weight=0.7", "--config.train.steps=2"]
    words += ["--config.checkpoint.every_steps=1"]

    def first(done, name):
        return done.values(f"train/{name}")[1]

    same = run_here(tmp_path / "same", *words, f"--config.resume={teacher}").ok()
    less = run_here(tmp_path / "less", *words, "--config.model.layers_from=1").ok()
    assert abs(first(same, "distil_divergence")) < 1e-5 < 1e-3 < first(less, "distil_divergence")
    assert first(same, "hints_hidden") < 1e-5 < 1e-2 < first(less, "hints_hidden")
    remove(less.workdir, "checkpoints/2", "best", "result.json")
    again = run_here(less.workdir, *words, "--config.model.layers_from=1").ok()
    assert again.result["params_sha256"] == less.result["params_sha256"]
    if task == "tagging":
        run_here(tmp_path / "crf", *words, "--config.task.decode=crf").refused("'viterbi' or")


@pytest.mark.parametrize("use", ["hints", "distil", "distil,hints"])
def test_a_chain_says_nothing_to_distil_but_has_layers(use, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "task.json").write_text('{"fitted": {}}')
    own = {"task.name": "tagging", "task.decode": "crf"}
    (tmp_path / "config.json").write_text(json.dumps(own))

    def assembled(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(teaching, "assemble", assembled)
    student = SimpleNamespace(
        config=config(methods__use=use, methods__distil=ConfigDict({"teacher": str(tmp_path)})),
        task=SimpleNamespace(name="tagging"),
        sets={"train": None},
        fitted={},
        mesh=SimpleNamespace(devices=np.zeros(1)),
    )
    refused = pytest.raises(InputError, match="'crf', whose chain .* with distil 'viterbi' or")
    with pytest.raises(InterruptedError) if use == "hints" else refused:
        teaching.taught(student, print)
