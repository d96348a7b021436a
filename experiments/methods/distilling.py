"""What a teacher buys a smaller student: the demo's 6 layers into 3 and 2 of them, and into the
LSTM, each without it, with its soft labels, and where there are layers with those as hints too.

python -m experiments.methods.distilling

Trains what distilling.jsonl does not hold yet with the same flags and versions, one run at a
time: for each seed a teacher, kept under --workdirs, then its students. Prints the table and draws
distilling.svg. A run that fails is noted, and the others go on.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_ft.config import flat
from bert_ft.train.record import git_commit
from experiments.attempts import Attempts
from experiments.dot_chart import dot_chart
from experiments.lines import SHOW, measured, median, shown, spread, told, versions
from experiments.methods.reading import train

HERE = Path(__file__).parent
# Every second layer of six, and every third: the last ones of each stretch, so that the top stays.
STUDENTS = {
    "6 layers (the teacher)": ("configs/sentiment.py", ()),
    "3 layers": ("configs/sentiment.py", ("--config.model.layers_from=1,3,5",)),
    "2 layers": ("configs/sentiment.py", ("--config.model.layers_from=2,5",)),
    "LSTM": ("configs/lstm.py", ()),
}
TEACHER = next(iter(STUDENTS))
WAYS = {"alone": "", "soft labels": "distil", "soft labels and hints": "distil,hints"}


def line_of(result: Mapping[str, Any]) -> dict[str, Any]:
    test = result["eval"]["test/accuracy"]
    return {
        "accuracy": test["mean"],
        "n": test["n_examples"],
        "parameters": result["params"]["total"],
        "examples_per_s": result["speed"]["examples_per_s"],
        "git_commit": git_commit(),
    }


def of(student: str, way: str) -> dict[str, Any]:
    """What else tells a run apart from one of other defaults, or of other layers."""
    module = importlib.import_module(STUDENTS[student][0].removesuffix(".py").replace("/", "."))
    c = module.get_config()
    c.methods.use = WAYS[way]
    return {"config": told(flat(c)), "own": list(STUDENTS[student][1])}


def teach(workdir: Path, seed: int, flags: Sequence[str]) -> dict[str, Any]:
    """A teacher is a run like any other: it goes on, or is finished, where it is there."""
    own = [f"--config.train.seed={seed}", *flags]
    return line_of(train(STUDENTS[TEACHER][0], workdir, own))


def learn(
    student: str,
    way: str,
    seed: int,
    teacher: Path,
    taught: Callable[[], Any],
    flags: Sequence[str],
) -> dict[str, Any]:
    """`taught` makes the teacher's workdir, where the results alone have its line."""
    config, own = STUDENTS[student]
    words = [*own, f"--config.train.seed={seed}", *flags]
    if WAYS[way]:
        taught()
        words += [f"--config.methods.use={WAYS[way]}", f"--config.methods.distil.teacher={teacher}"]
    with tempfile.TemporaryDirectory() as scratch:
        return line_of(train(config, Path(scratch, "run"), words))


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        "| | parameters | test accuracy, % | each seed | training, examples/s |",
        "|---|---|---|---|---|",
    ]
    for name, rows in runs.items():
        each = ", ".join(f"{100 * row['accuracy']:.2f}" for row in rows)
        pace = shown(median([row["examples_per_s"] for row in rows]))
        scores = spread([row["accuracy"] for row in rows])
        lines.append(f"| {name} | {rows[0]['parameters']:,} | {scores} | {each} | {pace} |")
    seeds = ", ".join(str(row["seed"]) for row in next(iter(runs.values())))
    n = next(iter(runs.values()))[0]["n"]
    lines.append(f"\nMean ± standard deviation over seeds {seeds}; test n = {n}.")
    return "\n".join(lines)


def show(runs: Mapping[str, Sequence[Mapping[str, Any]]], plot: Path) -> None:
    print(table(runs))
    cases = {name: [100 * row["accuracy"] for row in rows] for name, rows in runs.items()}
    plot.write_text(dot_chart("Test accuracy, %", cases, statistics.fmean, from_zero=False))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--students", nargs="+", choices=list(STUDENTS)[1:], default=list(STUDENTS)[1:])
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument(
        "--flags", type=str.split, default=[], help="--flags='--config.a=1 …', as main has them"
    )
    p.add_argument("--workdirs", type=Path, default=Path("runs/distilling"))
    p.add_argument("--results", type=Path, default=HERE / "distilling.jsonl")
    p.add_argument("--plot", type=Path, default=HERE / "distilling.svg")
    p.add_argument("--show", action="store_true", help=SHOW)
    args = p.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    attempts = Attempts()

    def add(name: str, seed: int, what: dict[str, Any], make: Callable[[], dict]) -> bool:
        """Whether there is a line, which is then among the runs."""
        said = f"{name}, seed {seed}"
        line = attempts.of(said, lambda: measured(args.results, what, make, args.show))
        if line is not None:
            runs.setdefault(name, []).append(line)
        return line is not None

    for seed in args.seeds:
        shared = {"seed": seed, "flags": args.flags, "versions": versions()}
        # Of its own versions and flags: one that another jax has trained is another teacher.
        digest = hashlib.sha256(json.dumps(shared).encode()).hexdigest()
        teacher = args.workdirs / f"teacher_{seed}_{digest[:8]}"
        what = {"student": TEACHER, "way": "alone", **shared, **of(TEACHER, "alone")}
        taught = functools.cache(functools.partial(teach, teacher, seed, args.flags))
        if not add(TEACHER, seed, what, taught):
            continue
        for student in args.students:
            for way in [w for w in WAYS if "hints" not in w or "layers" in student]:
                what = {"student": student, "way": way, **shared, **of(student, way)}
                how = (student, way, seed, teacher, taught, args.flags)
                add(f"{student}, {way}", seed, what, functools.partial(learn, *how))
    if runs:
        show(runs, args.plot)
    attempts.end()


if __name__ == "__main__":
    main()
