"""Scores over seeds: python -m bert_ft.main against the Hugging Face Trainer, on seven tasks.

python -m experiments.parity.compare

Runs what results.jsonl does not hold yet with the same settings and versions, one run at a time,
then prints the table and draws scores.svg. A config as it stands may have been measured already, by
experiments.scores.measure: what its scores.jsonl holds is not run again. A run that fails does not
end the others: its task has no line in the table, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.attempts import Attempts
from experiments.dot_chart import dot_chart
from experiments.lines import append, found, read, spread
from experiments.lines import versions as our_versions
from experiments.parity.hf_trainer import versions as their_versions
from experiments.parity.tasks import TASKS
from experiments.runs import folder_name, result_of, settings_of

HERE = Path(__file__).parent
SCORES = HERE.parent / "scores" / "scores.jsonl"
SYSTEMS = ("bert_ft", "trainer")
MORE_SEEDS = {"ATIS, intents": range(8)}  # of 21 classes: a run's score varies by two points


def expected(name: str, system: str, seed: int) -> dict[str, Any]:
    """The part of a result's line that says what was run; equal parts need not run again."""
    task = TASKS[name]
    if system == "trainer":
        settings, versions = task.settings(), their_versions()
    else:
        settings, versions = settings_of(task, seed), our_versions()
    return {"task": name, "system": system, "seed": seed, "settings": settings} | {
        "versions": versions
    }


def from_scores(what: dict[str, Any], scores: Path) -> dict[str, Any] | None:
    """The line of our run, if it was one for the configs' docstrings."""
    same = {"config": what["settings"], "seed": what["seed"], "versions": what["versions"]}
    line = found(read(scores), same)
    if line is None or what["system"] != "bert_ft":
        return None
    score = TASKS[what["task"]].score
    kept = ("scores", "steps", "params_sha256", "git_commit")
    return {**what, "score": line["scores"][score], "n": line["n"][score]} | {
        key: line[key] for key in kept
    }


def ours(name: str, seed: int, workdir: Path) -> dict[str, Any]:
    """The line of a run of the main program, which is made unless `workdir` has its result."""
    result = result_of(TASKS[name], seed, workdir)
    versions = {k: v for k, v in result["versions"].items() if k != "bert_ft"}
    score = result["eval"][TASKS[name].score]
    return {
        **{"task": name, "system": "bert_ft", "seed": seed},
        "settings": settings_of(TASKS[name], seed),
        "versions": versions,
        "score": score["mean"],
        "n": score["n_examples"],
        "scores": {key: value["mean"] for key, value in result["eval"].items()},
        "steps": result["steps"],
        "params_sha256": result["params_sha256"],
        "git_commit": result["git_commit"],
    }


def trainers(name: str, seed: int) -> dict[str, Any]:
    """The line of a run of the Trainer, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "line.jsonl")
        command = [sys.executable, "-m", "experiments.parity.hf_trainer"]
        subprocess.run([*command, f"--task={name}", f"--seed={seed}", f"--out={out}"], check=True)
        return json.loads(out.read_text())


def one(name: str, system: str, seed: int, results: Path, workdirs: Path) -> dict[str, Any]:
    """The line of a run, from `results` or made and added to it; its workdir stays without weights,
    which would be gigabytes of all runs."""
    what = expected(name, system, seed)
    line = found(read(results), what) or from_scores(what, SCORES)
    if line is None:
        workdir = workdirs / folder_name(name) / str(seed)
        line = trainers(name, seed) if system == "trainer" else ours(name, seed, workdir)
        if any(line[key] != value for key, value in what.items()):
            raise RuntimeError(f"{name}, {system}, seed {seed}: it ran otherwise than was said")
        append(results, [line])
        for weights in ("checkpoints", "best") if system == "bert_ft" else ():
            shutil.rmtree(workdir / weights, ignore_errors=True)
    return line


def row(name: str, runs: dict[str, Sequence[dict[str, Any]]]) -> str:
    """A task's line of the table: each system's score, and the difference in standard deviations of
    a single run (the two systems' pooled)."""
    counts = {r["n"] for of_one in runs.values() for r in of_one}
    assert len(counts) == 1, f"{name}: scored on {sorted(counts)} rows, not on the same"
    cells = [name, TASKS[name].score, str(counts.pop()), str(len(runs[SYSTEMS[0]]))]
    cells += [spread([r["score"] for r in runs[system]]) for system in SYSTEMS]
    us, them = ([r["score"] for r in runs[system]] for system in SYSTEMS)
    gap = 100 * (statistics.fmean(us) - statistics.fmean(them))
    if min(len(us), len(them)) > 1:
        pooled = 100 * math.hypot(statistics.stdev(us), statistics.stdev(them)) / math.sqrt(2)
        verdict = "" if gap >= -pooled else " **below**"
        ratio = f" ({gap / pooled:+.1f} std)" if pooled else ""
        cells.append(f"{gap:+.2f}{ratio}{verdict}")
    else:
        cells.append(f"{gap:+.2f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    p.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    p.add_argument("--seeds", type=int, nargs="+", help="three, and eight of ATIS' intents")
    p.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    p.add_argument("--workdirs", type=Path, default=Path("runs/parity"))
    args = p.parse_args()
    lines = [
        "| task | score | n | seeds | bert_ft, packed | Trainer, padded | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    cases, attempts = {}, Attempts()
    for name in args.tasks:
        seeds = args.seeds or MORE_SEEDS.get(name, range(3))
        runs: dict[str, list[dict[str, Any]]] = {system: [] for system in args.systems}
        for system in args.systems:
            for seed in seeds:
                make = functools.partial(one, name, system, seed, args.results, args.workdirs)
                line = attempts.of(f"{name}, {system}, seed {seed}", make)
                runs[system] += [line] if line else []
        if any(len(of_one) < len(seeds) for of_one in runs.values()):
            continue
        for system, of_one in runs.items():
            cases[f"{name}, {system}"] = [100 * r["score"] for r in of_one]
        if len(runs) == len(SYSTEMS):
            made = attempts.of(f"{name}, the table", functools.partial(row, name, runs))
            lines += [made] if made else []
    print("\n".join(lines))
    if cases:
        plot = dot_chart("Score, %", cases, statistics.fmean, from_zero=False)
        (HERE / "scores.svg").write_text(plot)
    attempts.end()


if __name__ == "__main__":
    main()
