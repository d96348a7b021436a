"""What one seed would have claimed: MRPC and RTE over 20 seeds, as trials of one program.

python -m experiments.trials.seeds --data=../shared/data

configs/glue.py as it is (MiniLM, 3 epochs of batch 32), --at_once seeds in each run. Runs what
seeds.jsonl does not hold yet with the same flags and versions, then prints the table and draws
seeds.svg; --show makes no run. Scores are of the development set: GLUE gives no labels of a test
set but MRPC's, whose scores stand beside.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_ft.config import flat
from bert_ft.train.record import git_commit
from configs.glue import get_config
from experiments.dot_chart import dot_chart
from experiments.lines import SHOW, append, found, read, spread, told, versions, whatever_versions

HERE = Path(__file__).parent
TASKS = {"mrpc": ("accuracy", "f1"), "rte": ("accuracy",)}  # and GLUE's scores
POINT = 1.0  # a difference that a paper would report


def what_of(task: str, seed: int) -> dict[str, Any]:
    """The part of a line that says what was run, wherever its data lie."""
    config = told(flat(get_config(f"{task}=glue_{task}")))
    return {"task": task, "seed": seed, "config": config, "versions": versions()}


def run(task: str, seeds: Sequence[int], data: Path) -> list[dict[str, Any]]:
    """One run of the main program, a trial a seed -> their lines."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "bert_ft.main", f"--workdir={scratch}/run"]
        command += [f"--config=configs/glue.py:{task}={data / f'glue_{task}'}"]
        command += [f"--config.trials={json.dumps({'seed': list(seeds)})}"]
        command += ["--config.trial.ensembles=False", "--config.eval.report=False"]
        subprocess.run(command, check=True)
        result = json.loads(Path(scratch, "run", "result.json").read_text())
    scores = {name: of for name, of in result["eval"].items() if name.endswith(("accuracy", "/f1"))}
    return [
        {
            **what_of(task, seed),
            "scores": {name: of["per_trial"][k] for name, of in scores.items()},
            "n_examples": {name: of["n_examples"] for name, of in scores.items()},
            "git_commit": git_commit(),
        }
        for k, seed in enumerate(seeds)
    ]


def claimed(values: Sequence[float]) -> str:
    """What pairs of seeds would have said of a system that is compared with itself. `values` in
    per cent."""
    pairs = list(itertools.combinations(values, 2))
    apart = sum(abs(a - b) >= POINT for a, b in pairs)
    return (
        f"{min(values):.1f} to {max(values):.1f}; {100 * apart / len(pairs):.0f} % of the pairs of "
        f"seeds lie {POINT:.0f} point or more apart; the best is "
        f"{max(values) - statistics.fmean(values):.1f} above the mean"
    )


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--data", type=Path, help="the folder of glue_mrpc and glue_rte")
    p.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    p.add_argument("--seeds", type=int, default=20)
    p.add_argument("--at_once", type=int, default=5)
    p.add_argument("--show", action="store_true", help=SHOW)
    p.add_argument("--results", type=Path, default=HERE / "seeds.jsonl")
    p.add_argument("--plot", type=Path, default=HERE / "seeds.svg")
    args = p.parse_args()
    if not (args.data or args.show):
        p.error("--data is missing: the folder of glue_mrpc and glue_rte; --show needs none")
    cases: dict[str, list[float]] = {}
    for task in args.tasks:
        wanted = [what_of(task, k) for k in range(args.seeds)]
        if args.show:
            wanted = [whatever_versions(what) for what in wanted]
        known = read(args.results)
        missing = [k for k, what in enumerate(wanted) if not args.show and not found(known, what)]
        for first in range(0, len(missing), args.at_once):
            append(args.results, run(task, missing[first : first + args.at_once], args.data))
        known = read(args.results)
        every = [found(known, what) for what in wanted]
        lines = [line for line in every if line]
        scores = lines[0]["scores"] if lines else ()
        for name in (n for n in scores if n.split("/")[1] in TASKS[task]):
            values = [100 * line["scores"][name] for line in lines]
            cases[f"{task}, {name}, {len(values)} seeds"] = values
    if not cases:
        p.error(f"{args.results} has no run like these; leave out --show to make them")
    print("| | mean ± std, % | what one seed would have claimed |\n|---|---|---|")
    for name, values in cases.items():
        print(f"| {name} | {spread([v / 100 for v in values])} | {claimed(values)} |")
    title = "%: a dot is what one run would have reported"
    args.plot.write_text(dot_chart(title, cases, statistics.fmean, from_zero=False))


if __name__ == "__main__":
    main()
