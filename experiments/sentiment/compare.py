"""Accuracy over seeds: python -m bert_ft.main against the Hugging Face Trainer, each from scratch.

python -m experiments.sentiment.compare

Runs what results.jsonl does not hold yet with the same settings and versions, one run at a time,
then prints the table and draws accuracy.svg; --show makes no run. Neither program looks at dev
while it trains, so dev is a second held-out set here.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bert_ft.config import flat
from bert_ft.train.record import git_commit
from configs.sentiment import get_config
from experiments import lines
from experiments.dot_chart import dot_chart
from experiments.lines import spread
from experiments.sentiment import hf_trainer

HERE = Path(__file__).parent
SYSTEMS = ("bert_ft", "trainer")
ALLOWED = 0.5  # points that bert_ft may lie below the Trainer


def expected(system: str, seed: int, padding: str, show: bool = False) -> dict[str, Any]:
    """The part of a result's line that says what was run; equal parts need not run again. Of any
    versions where it is only to `show`."""
    if system == "trainer":
        settings, versions = hf_trainer.settings(padding), hf_trainer.versions
    else:
        config = get_config()
        config.train.seed = seed
        settings, versions = lines.told(flat(config)), lines.versions
    what = {"system": system, "seed": seed, "settings": settings}
    return what if show else {**what, "versions": versions()}


def run_bert_ft(seed: int, what: dict[str, Any]) -> dict[str, Any]:
    """One run of the main program in a fresh workdir -> its line."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "bert_ft.main", "--config=configs/sentiment.py"]
        command += [f"--workdir={scratch}/run", f"--config.train.seed={seed}"]
        subprocess.run(command, check=True)
        result = json.loads(Path(scratch, "run", "result.json").read_text())
    test, dev = result["eval"]["test/accuracy"], result["eval"]["dev/accuracy"]
    return {
        **what,
        "accuracy": test["mean"],
        "n": test["n_examples"],
        "dev_accuracy": dev["mean"],
        "dev_n": dev["n_examples"],
        "steps": result["steps"],
        "examples_per_s": result["speed"]["examples_per_s"],
        "real_token_fraction": result["speed"]["real_token_fraction"],
        "params_sha256": result["params_sha256"],
        "git_commit": result["git_commit"],
        "cores": hf_trainer.cores(),
    }


def run_trainer(seed: int, padding: str) -> dict[str, Any]:
    """One run of the Trainer, in a process of its own -> its line."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "line.jsonl")
        command = [sys.executable, "-m", "experiments.sentiment.hf_trainer"]
        command += [f"--seed={seed}", f"--padding={padding}", f"--out={out}"]
        subprocess.run(command, check=True)
        return json.loads(out.read_text())


def table(runs: dict[str, list[dict[str, Any]]], padding: str) -> str:
    """The table in Markdown, and the difference in a sentence."""
    names = {"bert_ft": "bert_ft, packed", "trainer": f"Trainer, padding to the {padding}"}
    said = [
        "| | seeds | test accuracy, % | each seed | dev accuracy, % |",
        "|---|---|---|---|---|",
    ]
    for system, rows in runs.items():
        test, dev = [r["accuracy"] for r in rows], [r["dev_accuracy"] for r in rows]
        seeds = ", ".join(str(r["seed"]) for r in rows)
        each = ", ".join(f"{100 * a:.2f}" for a in test)
        said.append(f"| {names[system]} | {seeds} | {spread(test)} | {each} | {spread(dev)} |")
    n, dev_n = next(iter(runs.values()))[0]["n"], next(iter(runs.values()))[0]["dev_n"]
    said.append(f"\nMean ± standard deviation over seeds; test n = {n}, dev n = {dev_n}.")
    if len(runs) == len(SYSTEMS):
        for name in ("accuracy", "dev_accuracy"):
            said.append(difference(runs, name))
    return "\n".join(said)


def difference(runs: dict[str, list[dict[str, Any]]], name: str) -> str:
    """bert_ft less the Trainer, in points, with the standard error that the seeds give."""
    ours, theirs = ([100 * r[name] for r in runs[s]] for s in SYSTEMS)
    gap = statistics.fmean(ours) - statistics.fmean(theirs)
    error = math.nan
    if min(len(ours), len(theirs)) > 1:
        error = math.hypot(*(statistics.stdev(v) / math.sqrt(len(v)) for v in (ours, theirs)))
    verdict = "within" if gap >= -ALLOWED else "NOT within"
    set_name = "dev" if name.startswith("dev") else "test"
    return (
        f"{set_name}: bert_ft {gap:+.2f} points (standard error {error:.2f}); "
        f"{verdict} the {ALLOWED} points that it may lie below."
    )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    p.add_argument("--padding", choices=list(hf_trainer.SAMPLING), default="longest")
    p.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    p.add_argument("--plot", type=Path, default=HERE / "accuracy.svg")
    p.add_argument("--show", action="store_true", help=lines.SHOW)
    args = p.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in args.systems}
    for seed in args.seeds:
        for system in args.systems:
            what = expected(system, seed, args.padding, args.show)
            line = lines.found(lines.read(args.results), what)
            if line is None and args.show:
                p.error(f"{args.results} has no run of {system}, seed {seed}; --seeds, --systems?")
            if line is None:
                trainer = system == "trainer"
                line = run_trainer(seed, args.padding) if trainer else run_bert_ft(seed, what)
                lines.append(args.results, [line])
            elif line.get("git_commit", git_commit()) != git_commit():
                print(f"{system}, seed {seed}: kept from commit {line['git_commit']}")
            runs[system].append(line)
    print(table(runs, args.padding))
    cases = {system: [100 * r["accuracy"] for r in rows] for system, rows in runs.items()}
    args.plot.write_text(dot_chart("Test accuracy, %", cases, statistics.fmean, from_zero=False))


if __name__ == "__main__":
    main()
