"""SIGTERM wherever a run may be: saved where there is something to save, 75, and the same end."""

import functools
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest
from conftest import ROOT, Done, command, environment

from bert_ft.train import phases, preemption

FLAGS = (
    "--config.train.steps=9",
    "--config.eval.every_steps=4",
    "--config.eval.keep_best=True",
    "--config.checkpoint.every_steps=3",
    "--config.model.dropout=0.1",
    "--config.train.schedule=linear",
)
WHERE = {  # the phase, and what the run says then
    "the preparation of data": "preempted: nothing to save",
    "the start from a checkpoint": "preempted: nothing to save",
    "the compilation of the train step": "preempted: nothing to save",
    "step 2": "preempted: saved at step 3 of 9",
    "the save of step 3": "preempted: saved at step 3 of 9",
    "the save of the best": "preempted: saved at step 4 of 9",
    "an evaluation": "preempted: saved at step 4 of 9",
    "the evaluation on test": "preempted",
}


@pytest.fixture(scope="module")
def runs() -> dict[str, Done]:
    return {}


@pytest.fixture
def undisturbed(runs, run_here, tmp_path_factory) -> Done:
    if "whole" not in runs:
        runs["whole"] = run_here(tmp_path_factory.mktemp("preemption") / "run", *FLAGS).ok()
    return runs["whole"]


@pytest.mark.parametrize("where", WHERE)
def test_sigterm(where, undisturbed, run_here, tmp_path, monkeypatch):
    within, sent = phases.within, []

    @contextmanager
    def interrupted(kind, name):
        with within(kind, name):
            if name.startswith(where) and not sent:
                sent.append(name)
                os.kill(os.getpid(), signal.SIGTERM)
            yield

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(phases, "within", interrupted)
        stopped = run_here(tmp_path / "run", *FLAGS)
    assert sent and stopped.code == 75, stopped.err
    assert WHERE[where] in stopped.err and "start me again" in stopped.err
    assert "Traceback" not in stopped.err
    assert signal.getsignal(signal.SIGTERM) is before
    done = run_here(tmp_path / "run", *FLAGS).ok()
    assert done.result["params_sha256"] == undisturbed.result["params_sha256"]
    assert done.result["eval"] == undisturbed.result["eval"]
    for name in ("train/loss", "dev/loss"):
        assert done.values(name) == undisturbed.values(name), name
    assert sum(done.result["goodput"].values()) == pytest.approx(1, abs=1e-3)


def test_away_in_a_long_call(world, cache, tmp_path):
    """Python's handlers wait for the call to come back; the run does not."""
    program = (
        "import sys, ctypes; from bert_ft.train import loop; from bert_ft import main\n"
        "def assemble(config, say):\n"
        "    print('away', flush=True); ctypes.CDLL(None).sleep(60)\n"
        "    ctypes.CDLL(None).sleep(60)\n"
        "loop.assemble = assemble\n"
        "sys.exit(main.main(sys.argv))"
    )
    words = command(world.config, tmp_path / "run")[3:]
    with subprocess.Popen(
        [sys.executable, "-c", program, *words], env=environment(cache), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == "away\n"
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75
        assert time.monotonic() - began < 15
        assert re.search("preempted: nothing to save", process.stderr.read())


@pytest.mark.parametrize("after", [0.05, 0.3])
@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_within_a_compilation(world, cache, tmp_path, sent, code, after):
    """XLA's threads are at work when the process ends: its exit code is its own, not a crash's."""
    program = (
        "import os, runpy, signal, threading, jax\n"
        "compile = jax.stages.Lowered.compile\n"
        "def interrupted(*args, **more):\n"
        f"    send = lambda: os.kill(os.getpid(), signal.{sent})\n"
        f"    threading.Timer({after}, send).start()\n"
        "    return compile(*args, **more)\n"
        "jax.stages.Lowered.compile = interrupted\n"
        "runpy.run_module('bert_ft.main', run_name='__main__')"
    )
    flags = ("--config.compile.cache_dir=", "--config.model.layers=6", *FLAGS)
    more = ("--config.model.pretrained=", f"--config.model.tokenizer={world.model}")
    words = command(world.config, tmp_path / "run", *flags, *more)[3:]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environment(cache), cwd=ROOT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), capture_output=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "step 1" not in done.stderr


def test_processes_agree_on_a_point_that_none_has_passed():
    notes: dict[str, dict[int, str]] = {}

    class Board:
        def __init__(self, process):
            self.process, self.processes = process, 2

        def post(self, topic, text):
            notes.setdefault(topic, {}).setdefault(self.process, text)

        def read(self, topic):
            return dict(notes.get(topic, {}))

        def name(self, process):
            return f"process {process}"

    stops = [preemption.Stop(lambda code, line: None) for _ in range(2)]
    try:
        for process, stop in enumerate(stops):
            stop._board = Board(process)  # type: ignore[assignment]
            for _ in range(5 + process):  # one is a point ahead
                assert not stop.due()
        stops[1]._asked = True
        for stop in stops:
            stop.follow(stop._board)
        deadline = time.monotonic() + 20
        while None in (stops[0]._at, stops[1]._at) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [stops[0].due(), stops[0].due(), stops[1].due()] == [False, True, True]
        assert stops[0]._points == stops[1]._points == 7
    finally:
        for stop in reversed(stops):
            stop.close()


class Dying:
    """Ctrl-C comes while this is finalized, where Python throws an exception away."""

    def __del__(self):
        raise KeyboardInterrupt


def test_ctrl_c_within_a_finalizer_is_heard_all_the_same():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hook = sys.unraisablehook
    try:
        with (
            closing(preemption.listen(lambda code, line: None)),
            pytest.raises(KeyboardInterrupt),
        ):
            dying = Dying()
            del dying
            time.sleep(60)
        assert sys.unraisablehook is hook
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_hook_that_was_set_while_it_listened_stays(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with closing(preemption.listen(lambda code, line: None)):
        below = sys.unraisablehook
        sys.unraisablehook = over = functools.partial(lambda hook, ignored: hook(ignored), below)
    assert sys.unraisablehook is over


def test_a_library_that_falls_back_after_a_failure_lets_it_pass():
    assert not issubclass(preemption.Preempted, Exception)
