"""One command, from a data URI to a reported score, and what it leaves behind."""

import json
import re

import pytest
from conftest import read_jsonl

from bert_ft import config
from bert_ft.config import config_hash

STEPS = 60
WORDS = (f"--config.train.steps={STEPS}", "--config.eval.every_steps=20")


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("own-cache")


@pytest.fixture(scope="module")
def run(run_cli, own_cache, tmp_path_factory):
    """With nothing cached."""
    return run_cli(tmp_path_factory.mktemp("run") / "run", *WORDS, cache=own_cache).ok()


@pytest.fixture(scope="module")
def programs(run, own_cache):
    """What the first run left in XLA's cache, by name and time."""
    return {p: p.stat().st_mtime_ns for p in (own_cache / "bert_ft/xla").iterdir()}


@pytest.fixture(scope="module")
def second(run, programs, run_cli, own_cache, tmp_path_factory):
    """The same in another workdir, its programs and data now cached."""
    return run_cli(tmp_path_factory.mktemp("again") / "run", *WORDS, cache=own_cache).ok()


def test_result_json_keeps_its_contract(run):
    result = run.result
    contract = "config_hash git_commit versions seeds steps eval params_sha256 speed params"
    assert set(contract.split()) <= set(result)
    speed = "examples_per_s tokens_per_s real_token_fraction step_ms_p50 compiles"
    assert set([*speed.split(), "seconds_to_first_step"]) <= set(result["speed"])
    assert all(value for value in result["speed"].values()), result["speed"]
    assert set(result["params"]) == {"total", "trainable"}
    assert re.fullmatch("[0-9a-f]{64}", result["params_sha256"])
    assert result["seeds"] == [0] and result["steps"] == STEPS
    assert {"python", "jax", "flax", "optax", "numpy"} <= set(result["versions"])
    for name, score in result["eval"].items():
        assert set(score) == {"mean", "std", "per_trial", "n_examples"}
        assert score["n_examples"] == {"dev": 40, "test": 45}[name.partition("/")[0]]
        assert score["per_trial"] == [score["mean"]]


def test_it_has_learned(run):
    losses = run.values("train/loss")
    assert sum(losses[step] for step in range(51, 61)) / 10 < losses[1] / 2
    assert run.result["eval"]["test/accuracy"]["mean"] > 0.9


def test_the_config_is_kept(run):
    kept = json.loads((run.workdir / "config.json").read_text())
    known = config.default()
    assert set(kept) == set(config.flat(known))
    known.update_from_flattened_dict(kept)
    assert run.result["config_hash"] == config_hash(known)


def test_metrics_jsonl(run):
    lines = run.metrics
    for line in lines:
        assert set(line) == {"step", "name", "value", "time"}, line
        assert isinstance(line["step"], int) and isinstance(line["value"], float)
    assert list(run.values("train/loss")) == list(range(1, STEPS + 1))
    assert list(run.values("dev/accuracy")) == [20, 40, 60]
    assert list(run.values("test/accuracy")) == [STEPS]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


def test_predictions_and_report(run, world):
    answers = read_jsonl(run.workdir / "predictions" / "test.jsonl")
    rows = read_jsonl(world.test)
    assert [a["text"] for a in answers] == [r["text"] for r in rows]
    assert [a["label"] for a in answers] == [("negative", "positive")[r["label"]] for r in rows]
    right = sum(a["prediction"] == a["label"] for a in answers) / len(answers)
    assert right == pytest.approx(run.result["eval"]["test/accuracy"]["mean"])
    html = (run.workdir / "report.html").read_text()
    assert "<svg" in html and not re.search(r"(src|href)=\W?https?:", html)


def test_what_is_said(run):
    """On standard error, and kept in log.txt: no noise of libraries, the results at the end."""
    lines = run.err.strip().splitlines()
    noise = [line for line in lines if re.search(r"warn|^[IWE]\d{4}|absl|jax|orbax", line, re.I)]
    assert not noise
    assert lines[0].startswith("train: 160 examples of 160 rows")
    each, most = map(float, re.search(r"\((\S+) each, at most (\d+)\)", lines[0]).groups())
    assert 3 <= each <= most <= 64
    results = next(i for i, line in enumerate(lines) if line.startswith("test (n = 45): accuracy"))
    assert lines[results - 1].startswith("dev (n = 40): accuracy")
    assert all("label" in line and "%" in line for line in lines[results + 1 : results + 4])
    assert "report.html" in lines[-1] and "result.json" in lines[-1]
    log = (run.workdir / "log.txt").read_text()
    assert all(line in log for line in (lines[0], lines[results], lines[-1]))
    assert not run.out


def test_the_workdir_holds_this_and_no_more(run):
    names = {"config.json", "metrics.jsonl", "result.json", "report.html", "log.txt"}
    assert {p.name for p in run.workdir.iterdir()} == names | {
        "checkpoints",
        "best",
        "model",
        "predictions",
    }
    assert not [p for p in run.workdir.rglob("*") if "tmp" in p.name]


def test_the_second_start_is_sooner(run, second, programs, own_cache):
    first_s, second_s = (r.result["speed"]["seconds_to_first_step"] for r in (run, second))
    assert programs, "XLA's cache is on by default, in the user's cache directory"
    # What compiles in about the least time worth keeping may be kept on one day and not another.
    kept = (own_cache / "bert_ft/xla").iterdir()
    steps = {p.name for p in programs if "_step-" in p.name}
    assert {p.name for p in kept if "_step-" in p.name} == steps
    assert any("train_step" in name for name in steps)
    assert second_s < first_s


def test_two_runs_agree_bit_for_bit(run, second):
    assert run.result["params_sha256"] == second.result["params_sha256"]
    assert run.values("train/loss") == second.values("train/loss")
    assert run.result["eval"] == second.result["eval"]


def test_the_cache_can_be_turned_off(run_here, tmp_path, monkeypatch):
    import jax

    seen = []
    monkeypatch.setattr(jax.config, "update", lambda *setting: seen.append(setting))
    from bert_ft import command_line

    off = config.default()
    off.compile.cache_dir = ""
    command_line.prepare_host(off)
    assert "jax_compilation_cache_dir" not in dict(seen)
    command_line.prepare_host(config.default())
    assert dict(seen)["jax_compilation_cache_dir"].endswith("bert_ft/xla")
