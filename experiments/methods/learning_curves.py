"""What little data is worth: test accuracy at 16 to 1,024 reviews, by how they are chosen and used.

python -m experiments.methods.learning_curves

    plain        as many rows of each label, drawn by the seed
    augmented    the same rows, in other versions each epoch
    pseudo       the same rows, and as many others a batch, with the model's own guesses as labels
    uda          the same rows, and as many others a batch, half of them changed versions
    contrastive  the same rows, those of a label drawn together
    random       16 rows to begin with, then twice as many each time, by chance
    active       the same 16, and those that the run of the last size has chosen (bert_ft.select)

All train for the same number of steps, 16 labelled rows each. Runs what learning_curves.jsonl does
not hold yet with the same flags and versions, one run at a time, then prints the table and draws
learning_curves.svg. A run that fails is noted, and the others go on. What `random` and `active`
have chosen so far lies in --work, so that they too go on where they stopped.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bert_ft.config import flat
from bert_ft.data.shots import FewShots
from bert_ft.data.sources import source_of
from bert_ft.train.record import git_commit
from configs.sentiment import get_config
from experiments.attempts import Attempts
from experiments.lines import SHOW, found, measured, read, spread, told, versions, whatever_versions
from experiments.methods.curve_chart import curve_chart

HERE = Path(__file__).parent
CONFIG = "configs/sentiment.py"
LABELS = 2
START = 16  # rows, as many of each label
AUGMENTED = "typos:0.1,swap:0.1,delete:0.1"
VERSIONS = 16  # of a row; 1,024 rows are read 3 times


def plain(size: int, seed: int) -> list[str]:
    return [f"--config.data.shots={size // LABELS}", f"--config.data.shots_seed={seed}"]


def augmented(size: int, seed: int) -> list[str]:
    more = (f"augment={AUGMENTED}", f"augment_seed={seed}", f"augment_epochs={VERSIONS}")
    return [*plain(size, seed), *(f"--config.data.{flag}" for flag in more)]


def unlabelled(size: int, seed: int) -> list[str]:
    """Beside the 16 labelled rows of a batch 16 of the whole training set, without their labels."""
    more = (f"unlabelled={get_config().data.train}", f"augment_seed={seed}")
    flags = [f"--config.data.{flag}" for flag in more]
    return [*plain(size, seed), *flags, "--config.train.batch_size=32"]


def pseudo(size: int, seed: int) -> list[str]:
    return [*unlabelled(size, seed), "--config.methods.use=pseudo"]


def uda(size: int, seed: int) -> list[str]:
    changed = (f"augment={AUGMENTED}", "augment_share=1.0")
    flags = [f"--config.data.{flag}" for flag in changed]
    return [*unlabelled(size, seed), *flags, "--config.methods.use=uda"]


def contrastive(size: int, seed: int) -> list[str]:
    return [*plain(size, seed), "--config.methods.use=contrastive"]


# What a method adds to the command line; those that use the same rows in another way go here.
METHODS: dict[str, Callable[[int, int], list[str]]] = {
    "plain": plain,
    "augmented": augmented,
    "pseudo": pseudo,
    "uda": uda,
    "contrastive": contrastive,
}
GROWING = ("random", "active")


def common(seed: int, steps: int) -> list[str]:
    return [
        f"--config.train.seed={seed}",
        f"--config.train.steps={steps}",
        *("--config.train.batch_size=16", "--config.data.row_counts=1"),
        "--config.checkpoint.every_seconds=0.0",
        *("--config.data.dev=", "--config.eval.report=False", "--config.log.progress=False"),
    ]


def run(module: str, workdir: Path, flags: Sequence[str]) -> None:
    command = [sys.executable, "-m", module, f"--config={CONFIG}", f"--workdir={workdir}", *flags]
    subprocess.run(command, check=True)


def train(workdir: Path, flags: Sequence[str]) -> dict[str, Any]:
    """One run of the main program -> what its line says of it."""
    run("bert_ft.main", workdir, flags)
    result = json.loads((workdir / "result.json").read_text())
    test = result["eval"]["test/accuracy"]
    return {
        "accuracy": test["mean"],
        "n": test["n_examples"],
        "params_sha256": result["params_sha256"],
        "git_commit": result["git_commit"],
        "cores": os.cpu_count(),
    }


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    part = path.with_suffix(".part")
    part.write_text(whole, "utf-8")
    part.rename(path)


def first_rows(path: Path, seed: int) -> None:
    """Those of `plain` at the size START."""
    c = get_config()
    source = source_of(c, c.data.train)
    rows = FewShots(source, START // LABELS, seed, c.data.label).read()
    write_rows(path, [{k: v[i] for k, v in rows.columns.items()} for i in range(len(rows))])


def grown(
    path: Path, before: Path, workdir: Path, flags: Sequence[str], by: str, seed: int
) -> None:
    """Writes the rows of `before` and as many more, chosen by the run in `workdir`."""
    own, chosen = read(before), path.with_suffix(".chosen")
    chosen.unlink(missing_ok=True)  # of a run that was killed before it was used
    run(
        "bert_ft.select",
        workdir,
        [
            *(*flags, f"--pool={get_config().data.train}", f"--n={len(own)}", f"--by={by}"),
            *(f"--seed={seed}", f"--out={chosen}"),
        ],
    )
    more = [{k: v for k, v in row.items() if k in own[0]} for row in read(chosen)]
    chosen.unlink()
    write_rows(path, own + more)


def grow(args: argparse.Namespace, method: str, seed: int) -> Iterator[dict[str, Any]]:
    """The lines of a method that chooses its rows, size after size."""
    work = args.work / f"{method}-{args.by}-{args.steps}-{seed}"
    by = args.by if method == "active" else "random"
    own, workdir = common(seed, args.steps), work / "run"
    sizes = [START]
    while 2 * sizes[-1] <= max(args.sizes):
        sizes.append(2 * sizes[-1])
    lines = {size: expected(method, size, seed, [f"--by={by}", *own]) for size in sizes}
    there, like = read(args.results), whatever_versions if args.show else dict
    known = [line for what in lines.values() if (line := found(there, like(what)))]
    if args.show or len(known) == len(lines):  # then it needs no rows
        yield from known
        return
    for size, what in lines.items():
        rows = work / f"{size}.jsonl"
        if not rows.exists():
            if size == START:
                first_rows(rows, seed)
            else:
                before = work / f"{size // 2}.jsonl"
                flags = [*own, f"--config.data.train=files:{before}"]
                if not (workdir / "result.json").exists():
                    run("bert_ft.main", workdir, flags)
                grown(rows, before, workdir, flags, by, seed)
        # A run's checkpoints are large; what it has chosen is all that the next size needs.
        shutil.rmtree(workdir, ignore_errors=True)
        flags = [*own, f"--config.data.train=files:{rows}"]
        yield measured(args.results, what, functools.partial(train, workdir, flags))
    shutil.rmtree(workdir, ignore_errors=True)


def expected(method: str, size: int, seed: int, flags: list[str]) -> dict[str, Any]:
    """The part of a result's line that says what was run; equal parts need not run again."""
    what = {"method": method, "size": size, "seed": seed, "flags": flags}
    return {**what, "config": told(flat(get_config())), "versions": versions()}


def measure(args: argparse.Namespace, method: str, size: int, seed: int) -> dict[str, Any]:
    """The line of a method that takes the rows it is given."""
    flags = [*common(seed, args.steps), *METHODS[method](size, seed)]
    with tempfile.TemporaryDirectory() as scratch:
        make = functools.partial(train, Path(scratch, "run"), flags)
        return measured(args.results, expected(method, size, seed, flags), make, args.show)


def collected(args: argparse.Namespace, attempts: Attempts) -> list[dict[str, Any]]:
    """The lines of all runs that the arguments ask for, but for those that failed."""
    lines: list[dict[str, Any]] = []

    def keep(made: Iterable[dict[str, Any]]) -> None:
        for line in made:
            lines.append(line)

    for seed in args.seeds:
        for method in args.methods:
            if method in GROWING:
                growing = functools.partial(keep, grow(args, method, seed))
                attempts.of(f"{method}, seed {seed}", growing)
                continue
            for size in args.sizes:
                one = functools.partial(measure, args, method, size, seed)
                attempts.of(f"{method}, {size} rows, seed {seed}", lambda one=one: keep([one()]))
    return lines


def curves_of(lines: Sequence[dict[str, Any]]) -> dict[str, dict[int, list[float]]]:
    """{method: {size: per cent, a seed each}}."""
    out: dict[str, dict[int, list[float]]] = {}
    for line in lines:
        of = out.setdefault(line["method"], {}).setdefault(line["size"], [])
        of.append(100 * line["accuracy"])
    return {m: out[m] for m in (*METHODS, *GROWING) if m in out}


def table(curves: dict[str, dict[int, list[float]]], n: int) -> str:
    """In Markdown."""
    sizes = sorted({size for curve in curves.values() for size in curve})
    lines = [f"| rows | {' | '.join(curves)} |", "|---" * (len(curves) + 1) + "|"]
    for size in sizes:
        cells = [
            spread([v / 100 for v in curve[size]]) if size in curve else ""
            for curve in curves.values()
        ]
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return "\n".join(
        [*lines, f"\nTest accuracy, %, mean ± standard deviation over seeds; n = {n}."]
    )


def main() -> None:
    p = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    p.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 256, 1024])
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    every = [*METHODS, *GROWING]
    p.add_argument("--methods", nargs="+", choices=every, default=every)
    p.add_argument("--by", default="margin", help="of active: margin, entropy, badge, k_centre")
    p.add_argument("--steps", type=int, default=200, help="of each run, 16 examples each")
    p.add_argument("--results", type=Path, default=HERE / "learning_curves.jsonl")
    p.add_argument("--plot", type=Path, default=HERE / "learning_curves.svg")
    p.add_argument("--work", type=Path, default=Path("runs/learning_curves"))
    p.add_argument("--show", action="store_true", help=SHOW)
    args = p.parse_args()
    args.work = args.work.absolute()
    attempts = Attempts()
    lines = collected(args, attempts)
    others = {line["git_commit"] for line in lines} - {git_commit()}
    if others:
        print(f"some runs are kept from commits {', '.join(sorted(others))}")
    if lines:
        curves = curves_of(lines)
        print(table(curves, lines[-1]["n"]))
        args.plot.write_text(curve_chart("Test accuracy, %, by rows with labels", curves))
    attempts.end()


if __name__ == "__main__":
    main()
