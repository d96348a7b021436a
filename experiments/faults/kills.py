"""SIGKILL to one of two processes at random moments, twenty times: what is lost?

    python -m experiments.faults.kills [--kills=20] [--seed=0]

A tiny BERT on two processes of two CPU devices each. One process, drawn at random, is killed at a
random moment: one time in five within 20 s of its start, else up to half a second after a step that
is drawn from the nine after the last checkpoint. The other must leave by itself with code 76; then
both are started again. The run that is left alone at last must end as one that was never disturbed.
Writes kills.jsonl beside this file, a line a kill and a last one with both digests.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

import conftest  # noqa: E402
from several import Several, quick, start  # noqa: E402

STEPS, EVAL, SAVE = 150, 7, 5
FLAGS = (
    f"--config.train.steps={STEPS}",
    f"--config.eval.every_steps={EVAL}",
    f"--config.checkpoint.every_steps={SAVE}",
    "--config.eval.keep_best=True",
    "--config.train.schedule=linear",
    "--config.model.dropout=0.1",
    *quick(6),
)


class Folders:
    """What conftest's world asks pytest for."""

    def __init__(self, root: Path):
        self.root = root

    def mktemp(self, name: str) -> Path:
        (self.root / name).mkdir()
        return self.root / name


def saved(workdir: Path) -> int:
    """The step of the newest whole checkpoint; -1 where there is none."""
    found = [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdigit()]
    return max(found, default=-1)


def begin(root: Path, name: str, world: Any) -> Several:
    return start(root / name, world.config, root / "cache", *FLAGS)


def kill(root: Path, world: Any, rng: random.Random) -> dict[str, Any]:
    victim, early = rng.randrange(2), rng.random() < 0.2
    before = saved(root / "killed")
    target = before + rng.randint(1, 9)
    with begin(root, "killed", world) as run:
        said = run.err(1 - victim).count("stuck: ")
        if early:
            time.sleep(rng.uniform(0, 20))
        else:
            run.until(lambda: run.last_step() >= target, 600)
            time.sleep(rng.uniform(0, 0.5))
        ended = run.processes[victim].poll() is not None
        step = max(run.last_step(), 0)
        run.signal(victim, signal.SIGKILL)
        killed_at = time.monotonic()
        code = run.codes(but=[victim])[1 - victim]
        left_s = time.monotonic() - killed_at
        lines = re.findall("^stuck: (.*?); the stacks", run.err(1 - victim), re.MULTILINE)[said:]
    return {
        "victim": victim,
        "early": early,
        "ended": ended,
        "from": before,
        "step": step,
        "saved": saved(root / "killed"),
        "other_code": code,
        "other_left_after_s": round(left_s, 1),
        "other_said": lines[0][:200] if lines else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, lines = random.Random(given.seed), []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        world = conftest.world._get_wrapped_function()(Folders(root))  # type: ignore[attr-defined]
        with begin(root, "whole", world) as run:
            whole = run.done(900)
        for _ in range(given.kills):
            lines.append(kill(root, world, rng))
            print(lines[-1], flush=True)
        with begin(root, "killed", world) as run:
            done = run.done(900)
        starts = [int(x) for x in re.findall(r"start: own checkpoint of step (\d+)", done.err)]
        last = {
            "undisturbed": whole.result["params_sha256"],
            "killed": done.result["params_sha256"],
            "same_losses": done.values("train/loss") == whole.values("train/loss"),
            "same_scores": done.values("dev/accuracy") == whole.values("dev/accuracy"),
            "starts_from_checkpoints_of": starts,
            "goodput": done.result["goodput"],
        }
    print(last)
    (HERE / "kills.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [*lines, last]))


if __name__ == "__main__":
    main()
