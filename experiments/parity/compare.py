"""Scores over seeds: python -m bert_ft.main against the Hugging Face Trainer, on seven tasks.

python -m experiments.parity.compare

Runs what results.jsonl does not hold yet with the same settings and versions, one run at a time,
then prints the table and draws scores.svg; --show makes no run. A config as it stands may have been
measured already, by experiments.scores.measure: what its scores.jsonl holds is not run again. A run
that fails does not end the others: its task has no line in the table, and the exit code is 1.
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
from experiments.lines import SHOW, Unmeasured, append, found, read, spread
from experiments.lines import versions as our_versions
from experiments.parity.hf_trainer import versions as their_versions
from experiments.parity.tasks import TASKS
from experiments.runs import folder_name, result_of, settings_of

HERE = Path(__file__).parent
SCORES = HERE.parent / "scores" / "scores.jsonl"
SYSTEMS = {"bert_ft": "bert_ft, packed", "trainer": "Trainer, padded"}
MORE_SEEDS = {"ATIS, intents": range(8)}  # of 21 classes: a run's score varies by two points


def expected(name: str, system: str, seed: int, show: bool = False) -> dict[str, Any]:
    """The part of a result's line that says what was run; equal parts need not run again. Of any
    versions where it is only to `show`."""
    task, trainer = TASKS[name], system == "trainer"
    settings = task.settings() if trainer else settings_of(task, seed)
    what = {"task": name, "system": system, "seed": seed, "settings": settings}
    return what if show else {**what, "versions": their_versions() if trainer else our_versions()}


def from_scores(what: dict[str, Any], scores: Path) -> dict[str, Any] | None:
    """The line of our run, if it was one for the configs' docstrings."""
    same = {key: what[key] for key in ("seed", "versions") if key in what}
    line = found(read(scores), {"config": what["settings"], **same})
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


def one(
    name: str, system: str, seed: int, results: Path, workdirs: Path, show: bool = False
) -> dict[str, Any]:
    """The line of a run, from `results` or made and added to it; its workdir stays without weights,
    which would be gigabytes of all runs. Raises Unmeasured where it was only to `show`."""
    what = expected(name, system, seed, show)
    line = found(read(results), what) or from_scores(what, SCORES)
    if line is None and show:
        raise Unmeasured(what)
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
    """A task's line of the table: each system's score and, of two, the difference in standard
    deviations of a single run (the two systems' pooled)."""
    counts = {r["n"] for of_one in runs.values() for r in of_one}
    assert len(counts) == 1, f"{name}: scored on {sorted(counts)} rows, not on the same"
    cells = [name, TASKS[name].score, str(counts.pop()), str(len(next(iter(runs.values()))))]
    cells += [spread([r["score"] for r in of_one]) for of_one in runs.values()]
    if len(runs) < len(SYSTEMS):
        return "| " + " | ".join(cells) + " |"
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
    p.add_argument("--plot", type=Path, default=HERE / "scores.svg")
    p.add_argument("--show", action="store_true", help=SHOW)
    args = p.parse_args()
    titles = ["task", "score", "n", "seeds", *(SYSTEMS[system] for system in args.systems)]
    titles += ["difference"] if len(args.systems) == len(SYSTEMS) else []
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    cases, attempts = {}, Attempts()
    for name in args.tasks:
        seeds = args.seeds or MORE_SEEDS.get(name, range(3))
        runs: dict[str, list[dict[str, Any]]] = {system: [] for system in args.systems}
        for system in args.systems:
            for seed in seeds:
                where = (args.results, args.workdirs, args.show)
                make = functools.partial(one, name, system, seed, *where)
                line = attempts.of(f"{name}, {system}, seed {seed}", make)
                runs[system] += [line] if line else []
        if lacking := [s for s, of_one in runs.items() if len(of_one) < len(seeds)]:
            print(f"{name}: no line of the table, for runs of {' and '.join(lacking)} are missing")
            continue
        for system, of_one in runs.items():
            cases[f"{name}, {system}"] = [100 * r["score"] for r in of_one]
        made = attempts.of(f"{name}, the table", functools.partial(row, name, runs))
        lines += [made] if made else []
    print("\n".join(lines))
    if cases:
        plot = dot_chart("Score, %", cases, statistics.fmean, from_zero=False)
        args.plot.write_text(plot)
    attempts.end()


if __name__ == "__main__":
    main()
