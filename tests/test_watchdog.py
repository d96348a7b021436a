"""The watchdog: what it waits for, and that it does not bark at evaluations and saves."""

import math
import signal
import subprocess
import sys
import time

import pytest
import small
from conftest import ROOT, command, environment

from bert_ft.train import phases, watchdog


@pytest.fixture
def clock(monkeypatch):
    """time.monotonic(), set by hand."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    phases.begin(now[0])
    yield now
    monkeypatch.undo()
    phases.begin(time.monotonic())


def seconds(kind: str, name: str = "x") -> float:
    with phases.within(kind, name):
        return watchdog.limit(phases.now(), small.config())[0]


def test_limits(clock):
    w = small.config().watchdog
    assert seconds("other") == seconds("input") == math.inf  # data is prepared as long as it takes
    assert seconds("steps") == w.first_step_s
    for kind in ("compilation", "evaluation", "saving", "restoring"):
        assert seconds(kind) == w.other_s
    phases.set_unsaved(True)
    assert seconds("input") == w.first_step_s
    for _ in range(3):
        phases.stepped()
        clock[0] += 10
    assert seconds("steps") == seconds("input") == w.factor * 10
    for _ in range(5):
        with phases.within("evaluation", "an evaluation"):
            clock[0] += 1000
        phases.stepped()  # the time of an evaluation is no step's
    assert phases.median_step_s() == 10
    for _ in range(5):
        clock[0] += 0.01
        phases.stepped()
    assert seconds("steps") == w.least_s


def test_goodput(clock):
    clock[0] += 2  # imports
    with phases.within("input", "data"):
        clock[0] += 1
        with phases.within("compilation", "c"):
            clock[0] += 4
        clock[0] += 1
    phases.add({"steps": 10.0, "unknown": 5.0})
    assert phases.seconds() == {
        "steps": 10, "compilation": 4, "input": 2, "evaluation": 0, "saving": 0, "restoring": 0,
        "other": 2,
    }  # fmt: skip
    shares = phases.goodput()
    assert sum(shares.values()) == pytest.approx(1) and shares["steps"] == pytest.approx(10 / 18)


def test_it_waits_for_a_sign_of_life(monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK_EVERY_S", 0.02)
    config = small.config(watchdog__other_s=1.0)
    phases.begin(time.monotonic())
    barked: list[str] = []
    watch = watchdog.Watchdog(config, barked.append)
    with phases.within("evaluation", "an evaluation"):
        for _ in range(15):
            time.sleep(0.1)
            phases.alive()
        assert not barked
        time.sleep(1.3)
    watch.close()
    assert barked and "no sign of life for 1." in barked[0]
    assert "in an evaluation; the limit is 1.0 s (watchdog.other_s)" in barked[0]


def test_a_suspended_run_is_not_stuck():
    """Stopped for 3 s of the 2 that are allowed, as by Ctrl-Z: it counts anew from its waking."""
    program = (
        "import time; from bert_ft import config; from bert_ft.train import phases, watchdog\n"
        "c, barked = config.default(), []\n"
        "c.watchdog.other_s, watchdog.SLEPT_S = 2.0, 1.0\n"
        "phases.begin(time.monotonic())\n"
        "watch = watchdog.Watchdog(c, barked.append)\n"
        "with phases.within('evaluation', 'an evaluation'):\n"
        "    print('in', flush=True)\n"
        "    time.sleep(4)\n"
        "    print(len(barked), flush=True)\n"
        "    time.sleep(3)\n"
        "print(len(barked) > 0)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and run.stdout.readline() == "in\n"
        time.sleep(0.4)
        run.send_signal(signal.SIGSTOP)
        time.sleep(3)
        run.send_signal(signal.SIGCONT)
        assert run.communicate(timeout=30)[0] == "0\nTrue\n"


def test_a_step_that_hangs(world, cache, tmp_path):
    program = (
        "import sys, ctypes; from bert_ft.train import step; from bert_ft import main\n"
        "call = step.Programs.__call__\n"
        "def hang(self, state, batch):\n"
        "    hang.calls += 1\n"
        "    if hang.calls == 7: ctypes.CDLL(None).sleep(120)\n"
        "    return call(self, state, batch)\n"
        "hang.calls = 0; step.Programs.__call__ = hang\n"
        "sys.exit(main.main(sys.argv))"
    )
    flags = (
        "--config.watchdog.least_s=2",
        "--config.watchdog.factor=3",
        "--config.train.steps=9",
        "--config.checkpoint.every_steps=2",
    )
    words = command(world.config, tmp_path / "run", *flags)[3:]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment(cache), cwd=ROOT, text=True,
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 76, done.stderr
    line = next(x for x in done.stderr.splitlines() if x.startswith("stuck: "))
    assert " in step 6; the limit is" in line and "stacks-0.txt" in line
    stacks = (tmp_path / "run" / "stacks-0.txt").read_text()
    assert "in hang" in stacks and stacks.startswith("stuck: ") and "in hang" in done.stderr
    saved = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()]
    assert "4" in saved
