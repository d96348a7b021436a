"""Trials in one program against runs one after the other: wall time, compilation, memory.

python -m experiments.trials.at_once --trials=15 --steps=60

Both train the demo (configs/sentiment.py) for so many steps on seeds 0, 1, …, score dev and test,
and write their records. Every run begins with nothing compiled: the cache of XLA's programs is off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_ft.train.record import git_commit, versions
from experiments.lines import append

HERE = Path(__file__).parent
CONFIG = "configs/sentiment.py"


def run(workdir: Path, *flags: str) -> dict[str, float]:
    """{wall seconds, peak memory in GB} of one command."""
    command = [sys.executable, "-m", "bert_ft.main", f"--config={CONFIG}", f"--workdir={workdir}"]
    command += ["--config.compile.cache_dir=", "--config.log.progress=False", *flags]
    began = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return {"wall_s": time.monotonic() - began, "peak_gb": usage.ru_maxrss / 1e6}


def measure(trials: int, steps: int, widths: list[int]) -> Iterator[dict[str, Any]]:
    about = {"trials": trials, "steps": steps, "cores": len(os.sched_getaffinity(0))}
    about |= {"versions": versions(), "git_commit": git_commit()}
    with tempfile.TemporaryDirectory() as scratch:
        common = (f"--config.train.steps={steps}", "--config.eval.report=False")
        alone = [
            run(Path(scratch, f"alone_{k}"), *common, f"--config.train.seed={k}")
            for k in range(trials)
        ]
        yield {
            "way": "one run each",
            "wall_s": sum(one["wall_s"] for one in alone),
            "peak_gb": max(one["peak_gb"] for one in alone),
            "accuracy": _accuracies([Path(scratch, f"alone_{k}") for k in range(trials)]),
            **about,
        }
        for width in widths:
            workdir = Path(scratch, f"width_{width}")
            given = json.dumps({"seed": list(range(trials))})
            found = run(
                workdir, *common, f"--config.trials={given}", f"--config.trial.width={width}",
                "--config.trial.ensembles=False",
            )  # fmt: skip
            folders = [workdir / "trials" / str(k) for k in range(trials)]
            accuracy = _accuracies(folders)
            yield {"way": f"trials, {width} wide", **found, "accuracy": accuracy, **about}


def _accuracies(folders: list[Path]) -> list[float]:
    results = [json.loads((f / "result.json").read_text()) for f in folders]
    return [r["eval"]["test/accuracy"]["mean"] for r in results]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--trials", type=int, default=15)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--widths", type=int, nargs="+", default=[1, 5])
    p.add_argument("--results", type=Path, default=HERE / "at_once.jsonl")
    args = p.parse_args()
    base = None
    for line in measure(args.trials, args.steps, args.widths):
        append(args.results, [line])
        base = base or line["wall_s"]
        print(
            f"{line['way']}: {line['wall_s']:.0f} s, {base / line['wall_s']:.2f} x, "
            f"{line['peak_gb']:.1f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
