"""What training less of a model costs and saves: score, share that is trained, step time, bytes.

python -m experiments.methods.tuning

Full tuning, LoRA, AdaLoRA, adapters, a prefix and biases alone, each with three seeds, on the
demo's reviews (one epoch), Banking77 (30 requests a class) and the NCBI diseases (2,000 sentences).
--whole takes each config's rows and epochs as they are. The first seed runs with each learning rate
of a method, the others with the one of the best score on dev. Runs what tuning.jsonl does not hold
yet with the same settings and versions, one run at a time, then prints the tables and draws
tuning.svg. A run that fails is noted, and the others go on.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.customer_service import BANKING
from configs.medical import DISEASES
from experiments.attempts import Attempts
from experiments.dot_chart import dot_chart
from experiments.lines import SHOW, measured, median, shown, spread, versions
from experiments.methods.reading import encoder_sizes
from experiments.parity.tasks import Task, divided
from experiments.runs import by_best_rate, folder_name, result_of, settings_of

HERE = Path(__file__).parent
TASKS = {
    "reviews": Task("configs/sentiment.py", "test/accuracy"),
    "Banking77": Task(
        "configs/customer_service.py:banking77",
        "test/accuracy",
        divided(BANKING.format("train")),
    ),
    "NCBI diseases": Task("configs/medical.py", "test/f1"),
}
LESS: dict[str, tuple[tuple[str, Any], ...]] = {  # without --whole
    "reviews": (("train.epochs", 1.0),),
    "Banking77": (("data.shots", 30),),
    "NCBI diseases": (("data.train", f"{DISEASES.format('train')}&limit=2000"),),
}
SHORTEST = 150  # of the 188 steps of the shortest, those in which AdaLoRA drops triplets

EVERY = "^encoder/"  # all dense layers of the encoder, not queries and values alone
METHODS: dict[str, tuple[tuple[str, Any], ...]] = {
    "all": (),
    "LoRA, r = 8": (("methods.use", "lora"), ("methods.lora.targets", EVERY)),
    "AdaLoRA, r = 12 to 8": (("methods.use", "adalora"), ("methods.adalora.targets", EVERY)),
    "Houlsby, width 24": (("methods.use", "houlsby"), ("methods.houlsby.width", 24)),
    "Pfeiffer, width 24": (("methods.use", "pfeiffer"),),
    "prefix of 16": (("methods.use", "prefix"),),
    "BitFit": (("methods.use", "bitfit"),),
}
# What is new begins from nothing, or from zeros, and needs a larger rate than what is pretrained.
RATES = {"all": (5e-5, 1.5e-4, 5e-4, 1.5e-3), "prefix of 16": (5e-3, 1.5e-2, 5e-2)}
RATES_OF_FEW = (1e-3, 3e-3, 1e-2)


def case(task: str, method: str, rate: float, whole: bool) -> Task:
    of = TASKS[task]
    less = () if whole else (*LESS[task], ("methods.adalora.end", SHORTEST))
    own = (*METHODS[method], ("train.learning_rate", rate), ("eval.report", False))
    return Task(of.config, of.score, (*of.overrides, *less, *own))


def expected(task: str, method: str, rate: float, seed: int, whole: bool) -> dict[str, Any]:
    """The part of a result's line that says what was run; equal parts need not run again."""
    settings = settings_of(case(task, method, rate, whole), seed)
    what = {"task": task, "method": method, "seed": seed}
    return {**what, "config": settings, "versions": versions()}


def bytes_below(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def one(task: str, method: str, args: argparse.Namespace, rate: float, seed: int) -> dict[str, Any]:
    """The line of a run, from the results or made and added to them."""
    what = expected(task, method, rate, seed, args.whole)
    wanted = case(task, method, rate, args.whole)
    workdir = (
        args.workdirs / folder_name(f"{task}-{method}-{rate:g}") / f"{seed}{'-whole' * args.whole}"
    )
    make = functools.partial(run, wanted, rate, seed, workdir)
    return measured(args.results, what, make, args.show)


def run(wanted: Task, rate: float, seed: int, workdir: Path) -> dict[str, Any]:
    """What a run has measured; its workdir goes."""
    result = result_of(wanted, seed, workdir)
    score = result["eval"][wanted.score]
    last = max(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    trained, encoder = encoder_sizes(workdir)
    line = {
        "rate": rate,
        "dev": result["eval"][wanted.score.replace("test/", "dev/")]["mean"],
        "score": score["mean"],
        "n": score["n_examples"],
        "steps": result["steps"],
        "params": {**result["params"], "encoder": encoder, "trained_in_encoder": trained},
        "step_ms_p50": result["speed"]["step_ms_p50"],
        "checkpoint_bytes": bytes_below(workdir / "checkpoints" / str(last)),
        "reported_bytes": bytes_below(workdir / "best"),
        "params_sha256": result["params_sha256"],
        "git_commit": result["git_commit"],
        "cores": len(os.sched_getaffinity(0)),
    }
    shutil.rmtree(workdir)  # checkpoints are large
    return line


def runs_of(
    task: str, method: str, args: argparse.Namespace, attempts: Attempts
) -> list[dict[str, Any]]:
    """A line a seed, all with the rate that is best on dev for the first."""

    def tried(rate: float, seed: int) -> dict[str, Any] | None:
        make = functools.partial(one, task, method, args, rate, seed)
        return attempts.of(f"{task}, {method}, {rate:g}, seed {seed}", make)

    rates = args.rates or RATES.get(method, RATES_OF_FEW)
    return by_best_rate(tried, rates, args.seeds, lambda line: line["dev"])


TITLES = (
    *(
        "what is trained",
        "learning rate",
        "score, %",
        "of the encoder, %",
        "of all parameters, %",
        "step, ms",
    ),
    *("step, of full tuning's", "checkpoint, MB", "reported parameters, MB"),
)


def table(task: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """{method: a line a seed} of a task, in Markdown."""
    first = next(iter(runs.values()))
    lines = [f"{task}: {TASKS[task].score}, n = {first[0]['n']}\n", f"| {' | '.join(TITLES)} |"]
    lines.append("|---" * len(TITLES) + "|")
    full = median([r["step_ms_p50"] for r in runs.get("all", ())])
    for method, rows in runs.items():
        sizes, step = rows[0]["params"], median([r["step_ms_p50"] for r in rows])
        shares = (
            sizes["trained_in_encoder"] / sizes["encoder"],
            sizes["trainable"] / sizes["total"],
        )
        cells = [
            method,
            f"{rows[0]['rate']:g}",
            spread([r["score"] for r in rows]),
            *(f"{100 * s:.2f}" for s in shares),
        ]
        cells.append(shown(step))
        cells.append(f"{step / full:.2f}" if step and full else "-")
        cells += [f"{rows[0][k] / 1e6:.1f}" for k in ("checkpoint_bytes", "reported_bytes")]
        lines.append(f"| {' | '.join(cells)} |")
    seeds = ", ".join(str(r["seed"]) for r in first)
    return "\n".join([*lines, f"\nMean ± standard deviation over seeds {seeds}. Steps: medians."])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    p.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    p.add_argument("--rates", type=float, nargs="+", help="for all methods, in the place of theirs")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--whole", action="store_true", help="each config's own rows and epochs")
    p.add_argument("--results", type=Path, default=HERE / "tuning.jsonl")
    p.add_argument("--plot", type=Path, default=HERE / "tuning.svg")
    p.add_argument("--workdirs", type=Path, default=Path("runs/tuning"))
    p.add_argument("--show", action="store_true", help=SHOW)
    args = p.parse_args()
    cases, attempts = {}, Attempts()
    for task in args.tasks:
        found = {method: runs_of(task, method, args, attempts) for method in args.methods}
        runs = {method: lines for method, lines in found.items() if lines}
        if runs:
            print(f"\n{table(task, runs)}")
        cases |= {f"{task}, {m}": [100 * r["score"] for r in rows] for m, rows in runs.items()}
    if cases:
        args.plot.write_text(dot_chart("Score, %", cases, statistics.fmean, from_zero=False))
    attempts.end()


if __name__ == "__main__":
    main()
