"""The command line: what it shows, and one line for whatever is wrong on it."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, World, command, environment

from bert_ft import command_line, config, main

CONFIGS = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "configs").glob("*.py"))]


def test_help(run_cli, tmp_path):
    done = run_cli(tmp_path / "run", "--help").ok()
    assert "usage: python -m bert_ft.main --config=FILE[:variant] --workdir=DIR" in done.out
    for mode, text in main.MODES.items():
        assert re.search(rf"^  {mode} +{re.escape(text)}$", done.out, re.MULTILINE)
    for key in config.flat(config.default()):
        assert f"--config.{key}=" in done.out
    assert not done.err and not done.workdir.exists()


def test_the_programs_can_be_imported_side_by_side():
    """absl's flags are one table for all modules of a process: a name is defined once."""
    programs = ("main", "select", "sweep", "compare")
    assert all(importlib.import_module(f"bert_ft.{name}").main for name in programs)


def test_main_is_flags_only():
    assert len((ROOT / "bert_ft" / "main.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--wrkdir=x"], ["wrkdir", "workdir"]),
        (["--steps=3"], ["--steps is no flag", "did you mean --config.train.steps?"]),
        (["--zebra=3"], ["--zebra is no flag; --help names them all"]),
        (["--config.train.lr=1"], ["train.lr", "did you mean train.learning_rate?"]),
        (["--config.train.seed=8", "--config.train.steps=8a"], ["train.steps is '8a'"]),
        (["--config.train.seed", "8", "--config.train.steps", "8a"], ["train.steps is '8a'"]),
        (["--config.train.steps=8", "--config.train.steps=8a"], ["train.steps is '8a'"]),
        (
            ["--workdir=runs/lr[1e-5]"],
            ["--workdir=", "lr[1e-5]: [ ] in it; accepted: a path without"],
        ),
        (["--workdir=gs:/bucket/run"], ["gs:/bucket/run: gs:/ is not read", "gs://BUCKET/PATH"]),
        (["--mode=trian"], ["trian", "train", "eval", "predict"]),
        (["extra"], ["'extra'", "--name=value"]),
        (["--config.train.batch_sise=3"], ["train.batch_sise", "did you mean train.batch_size?"]),
        (["--config.trian.batch_size=3"], ["trian.batch_size", "did you mean train.batch_size?"]),
        (["--config.train=3"], ["config.train is a group", "--config.train.NAME=VALUE"]),
        (["--config.train.batch_size=abc"], ["train.batch_size", "'abc'", "int", "32"]),
        (["--config.train.batch_size=1.5"], ["train.batch_size", "'1.5'", "int"]),
        (["--config.train.epochs=many"], ["train.epochs", "'many'", "float"]),
        (["--config.eval.keep_best=maybe"], ["eval.keep_best", "'maybe'", "bool"]),
        (["--config.train.batch_size=0"], ["train.batch_size is 0", "1 or more"]),
        (["--config.train.learning_rate=nan"], ["train.learning_rate is nan"]),
        (["--config.train.schedule=liner"], ["train.schedule", "'liner'", "'linear'"]),
        (["--config.train.accumulate=3"], ["train.accumulate is 3", "divisor", "8"]),
        (["--config.model.dropout=1.0"], ["model.dropout is 1.0", "less than 1"]),
        (["--config.mesh.trial=2"], ["mesh.trial is 2"]),
        (["--config.train.epochs=inf"], ["train.epochs is inf", "a finite number"]),
        (["--config.train.seed=2147483648"], ["train.seed is 2147483648", "less than 2^31"]),
        (["--config.train.epsilon=-8"], ["train.epsilon is -8.0", "0 or more"]),
        (["--config.methods.lora.alpha=0"], ["methods.lora.alpha is 0.0", "more than 0"]),
        (["--config.trial.width=4"], ["trial.width is 4", "config.trials is ''"]),
        (["--config.task.class_weights=0,0"], ["task.class_weights is '0,0'", "more than 0"]),
        (["--config.data.train="], ["data.train", "files:"]),
        (["--mode=predict"], ["predict.input", "new.jsonl"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("-") else "",
)
def test_refused_before_jax_starts(run_here, tmp_path, flags, words):
    done = run_here(tmp_path / "run", *flags)
    done.refused(*words)
    assert not done.workdir.exists()


def test_refused_in_a_process_of_its_own(run_cli, tmp_path):
    done = run_cli(tmp_path / "run", "--config.train.batch_sise=3")
    assert done.refused() == (
        "error: config.train.batch_sise is no key; did you mean train.batch_size?"
    )
    assert len(done.err.splitlines()) == 1 and not done.out


@pytest.mark.parametrize("joined", [True, False])
def test_flags_may_stand_before_the_config(run_here, tmp_path, world: World, monkeypatch, joined):
    config = [f"--config={world.config}"] if joined else ["--config", str(world.config)]
    words = ["--config.train.batch_size", "0", *config, f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setattr("conftest.command", lambda *_: ["python", "-m", "main", *words])
    run_here(tmp_path / "run").refused("train.batch_size is 0", "1 or more")


def test_what_is_missing(run_here, tmp_path, monkeypatch):
    run_here(Path(""), "--workdir=").refused("--workdir is missing")
    run_here(tmp_path / "run", config="").refused("--config")
    monkeypatch.setattr("conftest.command", lambda *_: ["python", "-m", "main", "--workdir=x"])
    run_here(tmp_path / "run").refused("--config is missing", "--config=configs/sentiment.py")


def test_unknown_config_file_and_variant(run_here, tmp_path, world: World, monkeypatch):
    near = str(world.config).replace("tiny", "tinny")
    run_here(tmp_path / "run", config=near).refused(f"{near}: no such file", f"{world.config}?")
    monkeypatch.chdir(ROOT)
    for name in CONFIGS:
        done = run_here(tmp_path / "run", config=f"{name}:no_such_variant")
        done.refused(name, "no_such_variant", "accepted: ''")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("c.train.batch_sise = 3", ["train.batch_sise", "did you mean train.batch_size?"]),
        ("c.train.batch_size = '8'", ["broken.py:4:", "batch_size", "str", "int"]),
        ("c.train.batch_size = None", ["train.batch_size is None", "int"]),
        ("c.train.batch_size = nosuch", ["broken.py:4:", "NameError", "nosuch"]),
        ("c.train.batch_size = = 3", ["broken.py:4:", "SyntaxError"]),
        ("raise OSError('no room')", ["broken.py", "no room"]),
        ("import nosuch", ["broken.py:4:", "nosuch"]),
        ("del c.train.seed", ["train.seed is missing"]),
        ("return None", ["broken.py", "get_config returns None"]),
    ],
)
@pytest.mark.filterwarnings("ignore::SyntaxWarning")
def test_a_config_file_that_is_wrong(run_here, tmp_path, line, words):
    broken = tmp_path / "broken.py"
    head = "from bert_ft import config\ndef get_config():\n    c = config.default()\n"
    broken.write_text(f"{head}    {line}\n    return c\n")
    run_here(tmp_path / "run", config=broken).refused(*words)


def test_overrides_reach_the_config(world: World, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(command_line, "check", lambda c, mode: seen.append((c, mode)))
    from absl import flags
    from absl.testing import flagsaver

    words = ["--config.train.learning_rate=3e-5", "--config.model.tokenizer=x", "--mode=eval"]
    argv = command(world.config, Path("some/where"), *words)[2:]
    monkeypatch.setattr("sys.argv", argv)
    before = flagsaver.save_flag_values()
    try:
        _, workdir = command_line.parse(argv, main.CONFIG, main.WORKDIR, main.MODE)
    finally:
        flagsaver.restore_flag_values(before, flags.FLAGS)
    [(parsed, mode)] = seen
    assert (parsed.train.learning_rate, parsed.model.tokenizer, mode) == (3e-5, "x", "eval")
    assert parsed.train.batch_size == 8 and parsed.is_locked
    assert workdir == Path.cwd() / "some/where"


def test_ctrl_c_leaves_with_130_and_a_line(world: World, cache: Path, tmp_path):
    words = ["--config.train.steps=60", "--config.checkpoint.every_steps=1"]
    with subprocess.Popen(
        command(world.config, tmp_path / "run", *words),
        env=environment(cache),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C, and it is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and not list(tmp_path.glob("run/checkpoints/1")):
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("interrupted; the same command goes on")


TOUCHED = """
import re, resource, numpy
from bert_ft.command_line import keep_freed_memory
keep_freed_memory()
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.empty(2**26, numpy.int32).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first, again = fill(), max(fill(), fill())
held = numpy.ones(2**24, numpy.int32)
told = open("/proc/self/smaps_rollup").read()
print(first, again, re.search(r"AnonHugePages:\\s+(\\d+)", told)[1])
"""
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not HUGE.exists(), reason="Linux, with pages of 2 MiB, only")
def test_freed_memory_is_kept_and_lies_in_large_pages():
    done = subprocess.run([sys.executable, "-c", TOUCHED], capture_output=True, text=True)
    first, again, huge_kb = map(int, done.stdout.split())
    assert again < 100, "256 MiB were given back, and had to be asked for again"
    if "[never]" not in HUGE.read_text():
        assert first < 2**16 / 4 and huge_kb > 2**16, (first, huge_kb)
