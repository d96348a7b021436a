"""Processes that die, hang, disagree or are preempted: the others never wait in silence."""

import re
import signal
import time

import pytest
from conftest import Done
from several import quick, start
from test_processes import OBSERVED

STEPS = 12
FLAGS = (
    f"--config.train.steps={STEPS}",
    "--config.eval.every_steps=5",
    "--config.checkpoint.every_steps=3",
    "--config.model.dropout=0.1",
    "--config.log.every_steps=1",
    *quick(4),
)


@pytest.fixture(scope="module")
def undisturbed(world, cache, tmp_path_factory) -> Done:
    """Its processes have cold caches of their own, as on machines that share the workdir alone; the
    other runs share one, which is cold at the first of them."""
    root = tmp_path_factory.mktemp("faults")
    apart = [root / "disk-0", root / "disk-1"]
    with start(root / "run", world.config, cache, *FLAGS, caches=apart) as run:
        done = run.done()
    encoded = [sorted(p.name for p in (at / "bert_ft/encoded").iterdir()) for at in apart]
    assert encoded[0] == encoded[1] and len(encoded[0]) == 3
    return done


def faulty(workdir, world, cache, process: int, fault: str, slow_s: float = 0.0, **how):
    share = {"OBSERVED_SHARE": f"{process}:OBSERVED_FAULT={fault}", "OBSERVED_SLOW": str(slow_s)}
    return start(workdir, world.config, cache, *FLAGS, program=OBSERVED, extra=share, **how)


def one_line(text: str, begin: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith(begin)]
    assert lines, text
    return lines[0]


def test_kills_and_hangs_of_either_process_change_nothing(world, cache, tmp_path, undisturbed):
    workdir = tmp_path / "run"
    for process, fault, name in (
        (1, "step 4=KILL", "step 4"),
        (0, "the save of step 6=KILL", ""),
        (1, "step 8=STOP", "step"),
    ):
        other = 1 - process
        with faulty(workdir, world, cache, process, fault) as run:
            code = run.codes(but=[process])[other]
            assert code == 76, run.err(other)
            line = one_line(run.err(other), "stuck: ")
            assert name in line and "Traceback" not in run.err(other), line
            assert "most recent call first" in (workdir / f"stacks-{other}.txt").read_text()
            if fault.endswith("STOP"):
                assert run.processes[process].poll() is None  # it hangs still
                run.signal(process, signal.SIGCONT)  # and finds that the others have gone
                assert run.codes()[process] == 76
    with start(workdir, world.config, cache, *FLAGS) as run:
        done = run.done()
    # The save of step 6 may have been under way when its process was stopped.
    assert re.search("start: own checkpoint of step (3|6)", done.err), done.err
    assert done.result["params_sha256"] == undisturbed.result["params_sha256"]
    assert done.values("train/loss") == undisturbed.values("train/loss")
    assert done.values("dev/loss") == undisturbed.values("dev/loss")


def test_sigterm_to_one_of_two(world, cache, tmp_path, undisturbed):
    """Both save the same step; one process of as many devices goes on, then two again."""
    workdir = tmp_path / "run"
    with faulty(workdir, world, cache, 1, "step 1=TERM", slow_s=0.3) as run:
        assert run.codes() == [75, 75], run.err(0) + run.err(1)
    assert "preempted: saved at step" in run.err(0)
    with faulty(workdir, world, cache, 0, "step 10=TERM", count=1, devices=4) as run:
        assert run.codes() == [75], run.err(0)
    assert "preempted: saved at step 11 of 12" in run.err(0)
    with start(workdir, world.config, cache, *FLAGS) as run:
        done = run.done()
    for name in ("train/loss", "dev/loss"):
        found, wanted = done.values(name), undisturbed.values(name)
        assert found == pytest.approx(wanted, rel=1e-4), name


def test_processes_that_disagree_are_told_so(world, cache, tmp_path):
    began = time.monotonic()
    seeds = ("--config.train.seed=3", "--config.train.seed=4")
    with start(tmp_path / "run", world.config, cache, *FLAGS, each=lambda i: [seeds[i]]) as run:
        assert run.codes(60) == [2, 2]
    assert time.monotonic() - began < 60
    for i in (0, 1):
        line = one_line(run.err(i), "error: ")
        assert "differ in config: train.seed: 3 on process 0 (" in line
        assert ", 4 on process 1 (" in line and "pid " in line
        assert "Traceback" not in run.err(i)


def test_a_process_that_never_comes(world, cache, tmp_path):
    flags = (*FLAGS, "--config.watchdog.join_s=2")
    with start(tmp_path / "run", world.config, cache, *flags, count=1, total=2) as run:
        assert run.codes(60) == [76]
    line = one_line(run.err(0), "stuck: ")
    assert "not all of 2 processes at 127.0.0.1:" in line and "2 s (watchdog.join_s)" in line
