"""A run that is killed and started again computes what it would have computed without."""

import contextlib
import dataclasses
import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import pytest
from conftest import ROOT, Done, command, environment

from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.sinks import read_metrics
from bert_ft.train.store import Store

STEPS, EVAL, SAVE = 60, 7, 5
FLAGS = (
    f"--config.train.steps={STEPS}",
    f"--config.eval.every_steps={EVAL}",
    f"--config.checkpoint.every_steps={SAVE}",
    "--config.data.row_counts=2",
    # A schedule that moves, and dropout: both must go on from where they were.
    "--config.train.schedule=linear",
    "--config.train.warmup=0.2",
    "--config.model.dropout=0.1",
)
BEST = (*FLAGS, "--config.eval.keep_best=True")
KILLS = ("step", "save", "evaluation", "step", "save", "evaluation", "step", "save", "save", "step")


def half_written(workdir: Path) -> set[tuple[str, int]]:
    """Checkpoints under their temporary names, each with the number that tells it from a later one
    of the same name."""
    found = set()
    for path in [*workdir.glob("checkpoints/*tmp*"), *workdir.glob("best/*tmp*")]:
        with contextlib.suppress(FileNotFoundError):  # it has just got its own name
            found.add((str(path), path.stat().st_ino))
    return found


@dataclasses.dataclass
class Watched:
    """The program in a process, watched through what it writes. What an earlier process, killed in
    the same directory, has left there does not count."""

    workdir: Path
    process: subprocess.Popen
    born: float
    leftovers: set[tuple[str, int]]

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def last_step(self, name: str = "train/loss") -> int:
        path = self.workdir / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []
        steps = [x["step"] for x in lines if x["name"] == name and x["time"] > self.born]
        return max(steps, default=0)

    def saving(self) -> bool:
        return bool(half_written(self.workdir) - self.leftovers)

    def until(self, reached: Callable[[], bool], pause: float = 0.002) -> bool:
        """Waits; False where the program ended first."""
        deadline = time.monotonic() + 600
        while self.process.poll() is None:
            if reached():
                return True
            assert time.monotonic() < deadline, (self.workdir / "stderr.txt").read_text()
            time.sleep(pause)
        return False


def start(workdir: Path, world, cache: Path, flags: tuple[str, ...]) -> Watched:
    workdir.mkdir(parents=True, exist_ok=True)
    born, leftovers = time.time(), half_written(workdir)
    with (workdir / "stderr.txt").open("ab") as err:
        process = subprocess.Popen(
            command(world.config, workdir, *flags), env=environment(cache), cwd=ROOT, stderr=err
        )
    return Watched(workdir, process, born, leftovers)


def kill(run: Watched, kind: str, rng: random.Random) -> str:
    """Kills the run in the middle of a `kind`, as well as one can see from outside. What it was."""
    saved = [p.name for p in run.workdir.glob("checkpoints/*")]
    first = max((int(name) for name in saved if name.isdigit()), default=0)
    if kind == "save":
        reached = run.until(run.saving, pause=0.0005)
        time.sleep(rng.uniform(0, 0.01))
    elif kind == "evaluation":
        # The loss of the last step before an evaluation is written down after the evaluation.
        before = next(step for step in range(first + 1, STEPS) if (step + 1) % EVAL == 0)
        reached = run.until(lambda: run.last_step() >= before)
        time.sleep(rng.uniform(0.01, 0.2))
    else:
        target = first + rng.randint(1, SAVE)
        reached = run.until(lambda: run.last_step() >= target)
        time.sleep(rng.uniform(0, 0.005))
    was_saving = run.saving()
    run.process.send_signal(signal.SIGKILL)
    code = run.process.wait()
    if not reached or code != -signal.SIGKILL:
        return "ended"
    at = run.last_step()
    evaluating = (at + 1) % EVAL == 0 and run.last_step("dev/loss") < at + 1
    if evaluating and kind == "evaluation":  # while a save, in the background, goes on or not
        return "evaluation"
    if was_saving and run.saving():
        return "save"
    return "evaluation" if evaluating else "step"


def finish(workdir: Path, world, cache: Path, flags: tuple[str, ...]) -> Done:
    with start(workdir, world, cache, flags) as run:
        code = run.process.wait(timeout=600)
    return Done(code, "", (workdir / "stderr.txt").read_text(), workdir)


def kill_ten_times(workdir: Path, world, cache: Path, flags: tuple[str, ...], seed: int):
    rng, kinds = random.Random(seed), []
    for kind in KILLS:
        with start(workdir, world, cache, flags) as run:
            kinds.append(kill(run, kind, rng))
    return finish(workdir, world, cache, flags), kinds


def ask_to_stop(workdir: Path, world, cache: Path, flags: tuple[str, ...]):
    with start(workdir, world, cache, flags) as run:
        assert run.until(lambda: run.last_step() >= 17)
        run.process.send_signal(signal.SIGTERM)
        code = run.process.wait(timeout=600)
    stopped = Done(code, "", (workdir / "stderr.txt").read_text(), workdir)
    return stopped, finish(workdir, world, cache, flags)


@pytest.fixture(scope="module")
def runs(world, cache, tmp_path_factory):
    """{name: what came of it}; two at a time, after the first has compiled for all."""
    root = tmp_path_factory.mktemp("resume")
    out = {"plain": finish(root / "plain", world, cache, FLAGS).ok()}
    with ThreadPoolExecutor(2) as pool:
        plans = {
            "plain, killed": (kill_ten_times, FLAGS, 1),
            "best, killed": (kill_ten_times, BEST, 2),
            "best": (finish, BEST),
            "stopped": (ask_to_stop, FLAGS),
        }
        futures = {
            name: pool.submit(what, root / name.replace(", ", "-"), world, cache, *rest)
            for name, (what, *rest) in plans.items()
        }
        return out | {name: future.result() for name, future in futures.items()}


def test_a_checkpoint_never_outruns_the_best_before_it(tmp_path, monkeypatch):
    """Both are written in the background; a kill between them must not lose the best."""
    seen = []

    def save(self, step, *rest):
        seen.append((self._directory.name, (tmp_path / "best" / str(step)).exists()))
        return before(self, step, *rest)

    before = Store.save
    monkeypatch.setattr(Store, "save", save)
    state = {"x": jnp.arange(1000.0)}
    rules = {"keep": 2, "every_steps": 1, "every_seconds": 0.0, "say": print}
    with Checkpoints(tmp_path / "checkpoints", **rules) as saved:
        saved.save_best(5, state, {}, 0.5)
        saved.save(5, state, {})
    assert seen == [("best", False), ("checkpoints", True)]


def assert_same(done: Done, unbroken: Done) -> None:
    assert done.result["params_sha256"] == unbroken.result["params_sha256"]
    assert done.result["eval"] == unbroken.result["eval"]
    assert done.result["steps"] == unbroken.result["steps"]

    def values(run: Done) -> dict[tuple[int, str], float]:
        lines = [line for line in run.metrics if not line["name"].endswith("_per_s")]
        found = {(line["step"], line["name"]): line["value"] for line in lines}
        assert len(found) == len(lines), "a step has a metric twice"
        return found

    assert values(done) == values(unbroken)
    assert set(done.values("train/loss")) == set(range(1, STEPS + 1))


@pytest.mark.parametrize("name", ["plain", "best"])
def test_ten_kills_change_nothing(runs, name):
    done, kinds = runs[f"{name}, killed"]
    assert "ended" not in kinds and len(kinds) == 10, kinds
    assert_same(done.ok(), runs[name].ok())
    assert not half_written(done.workdir), "what killed saves left behind is not removed"
    assert done.err.count("start: ") == 11, "a run was killed before it had begun"
    assert "WARNING" not in done.err, "a kill damaged a checkpoint"
    if any(kinds.count(kind) < 2 for kind in set(KILLS)):
        pytest.skip(f"nothing was lost, but a slow machine hit only {kinds}")


def test_the_best_is_not_the_last(runs):
    """Else keep_best would have shown nothing here."""
    scores = runs["best"].values("dev/accuracy")
    best = max(scores, key=lambda step: (scores[step], -step))
    assert runs["best"].result["steps"] == best
    assert runs["best"].result["eval"]["dev/accuracy"]["mean"] == scores[best]
    assert runs["best"].values("dev/loss") == runs["plain"].values("dev/loss")


def test_sigterm_saves_and_leaves_with_75(runs):
    stopped, done = runs["stopped"]
    assert stopped.code == 75, stopped.err
    assert "preempted: saved at step" in stopped.err and "start me again" in stopped.err
    assert "Traceback" not in stopped.err
    assert_same(done.ok(), runs["plain"])


def test_a_finished_run_started_again_does_no_step(runs, run_here):
    plain = runs["plain"]
    before, lines = plain.result, plain.metrics
    again = run_here(plain.workdir, *FLAGS).ok()
    assert f"start: own checkpoint of step {STEPS}" in again.err
    assert again.result == before

    def kept(metrics: list[dict]) -> list[str]:
        """With the time at which each was written."""
        return [json.dumps(line) for line in metrics if line["name"].startswith("train/")]

    assert kept(again.metrics) == kept(lines)
