"""The grid of Devlin et al. 2019, A.3, in one command: learning rates 5e-5, 3e-5 and 2e-5, 2, 3 and
4 epochs, 5 seeds: 45 trials of one compiled program.

python -m experiments.trials.grid

The system is the demo's (configs/sentiment.py) on --shots reviews of each label. Runs it where
grid.json is not there, then prints the table and draws grid.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bert_ft.train.record import versions
from experiments.dot_chart import dot_chart
from experiments.lines import spread

HERE = Path(__file__).parent
SEEDS = [0, 1, 2, 3, 4]
GRID = {"learning_rate": [5e-5, 3e-5, 2e-5], "epochs": [2, 3, 4], "seed": SEEDS}


def measure(shots: int, workdir: Path) -> dict[str, Any]:
    command = ["-m", "bert_ft.main", "--config=configs/sentiment.py"]
    command += [f"--config.data.shots={shots}", f"--config.trials={json.dumps(GRID)}"]
    command += ["--config.trial.at_once=9"]  # all 45 would take some 30 GB
    command += ["--config.trial.ensembles=False"]  # the question is another
    subprocess.run([sys.executable, *command, f"--workdir={workdir}"], check=True)
    result = json.loads((workdir / "result.json").read_text())
    scores = {name: result["eval"][f"{name}/accuracy"] for name in ("dev", "test")}
    written = [p.stat().st_mtime for p in workdir.glob("trials/*/result.json")]
    return {
        "command": ["python", *command],
        # From when the data were read to the last trial's record.
        "wall_s": max(written) - (workdir / "config.json").stat().st_mtime,
        "trials": [
            {**one["settings"], **{name: of["per_trial"][k] for name, of in scores.items()}}
            for k, one in enumerate(result["trials"])
        ],
        "n_examples": {name: of["n_examples"] for name, of in scores.items()},
        "versions": versions(),
        "git_commit": result["git_commit"],
    }


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--shots", type=int, default=250)
    p.add_argument("--workdir", type=Path, default=Path("runs/grid"), help="goes on from there")
    p.add_argument("--results", type=Path, default=HERE / "grid.json")
    p.add_argument("--plot", type=Path, default=HERE / "grid.svg")
    args = p.parse_args()
    if not args.results.exists():
        args.results.write_text(json.dumps(measure(args.shots, args.workdir), indent=1) + "\n")
    made = json.loads(args.results.read_text())
    cells: dict[tuple[float, float], list[dict[str, Any]]] = {}
    for one in made["trials"]:
        key = one["train.learning_rate"], one["train.epochs"]
        cells.setdefault(key, []).append(one)
    print("| learning rate | epochs | dev, % | test, % |\n|---|---|---|---|")
    for (rate, epochs), own in cells.items():
        dev, test = (spread([one[name] for one in own]) for name in ("dev", "test"))
        print(f"| {rate:g} | {epochs:g} | {dev} | {test} |")
    chosen = [
        max((one for one in made["trials"] if one["train.seed"] == s), key=lambda one: one["dev"])
        for s in SEEDS
    ]
    print(f"\nBest of nine on dev, each seed: test {spread([one['test'] for one in chosen])}")
    print(f"{len(made['trials'])} trials in {made['wall_s'] / 60:.0f} minutes")
    cases = {f"{r:g}, {e:g} epochs": [100 * one["dev"] for one in o] for (r, e), o in cells.items()}
    args.plot.write_text(dot_chart("Dev accuracy, %", cases, statistics.fmean, from_zero=False))


if __name__ == "__main__":
    main()
