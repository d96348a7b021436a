"""What adversarial and consistent training buy: the clean score, the score under misspellings, and
the time of a step, method by method on the demo.

python -m experiments.methods.adversarial

Trains what adversarial.jsonl does not hold yet with the same settings and versions, one run at a
time, attacks it, prints the table and draws adversarial.svg.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_ft.config import config_hash
from bert_ft.evals.attack import attack, unbroken
from bert_ft.train.record import git_commit
from configs.sentiment import get_config
from experiments.dot_chart import dot_chart
from experiments.lines import measured, spread, versions
from experiments.methods.reading import attacked_texts, scorer, train

HERE = Path(__file__).parent
METHODS = ("", "fgm", "pgd", "freelb", "smart", "rdrop")


def name_of(method: str) -> str:
    return method or "plain"


def what(method: str, seed: int, flags: Sequence[str], texts: int, edits: int) -> dict[str, Any]:
    """The part of a line that says what was run; equal parts need not run again."""
    c = get_config()
    c.train.seed, c.methods.use = seed, method
    return {
        "method": name_of(method),
        "seed": seed,
        "flags": list(flags),
        "attacked": texts,
        "edits": edits,
        "config_hash": config_hash(c),
        "versions": versions(),
    }


def measure(method: str, seed: int, flags: Sequence[str], texts: int, edits: int) -> dict[str, Any]:
    """One run in a fresh workdir, and an attack on its first `texts` test texts."""
    with tempfile.TemporaryDirectory() as scratch:
        workdir = Path(scratch, "run")
        own = [f"--config.train.seed={seed}", f"--config.methods.use={method}", *flags]
        result = train("configs/sentiment.py", workdir, own)
        found = attack(*attacked_texts(workdir, texts), scorer(workdir), edits)
    test = result["eval"]["test/accuracy"]
    return {
        "accuracy": test["mean"],
        "n": test["n_examples"],
        "clean": statistics.fmean(one.right for one in found),
        "unbroken": unbroken(found),
        "attacked_n": len(found),
        "step_ms": result["speed"]["step_ms_p50"],
        "git_commit": git_commit(),
    }


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [
        "| | test accuracy, % | of the attacked, clean, % | correct and unbroken, % | step, ms |",
        "|---|---|---|---|---|",
    ]
    for name, rows in runs.items():
        scores = [spread([row[key] for row in rows]) for key in ("accuracy", "clean", "unbroken")]
        step = statistics.median(row["step_ms"] for row in rows)
        lines.append(f"| {name} | {' | '.join(scores)} | {step:.0f} |")
    first = next(iter(runs.values()))
    sizes = f"test n = {first[0]['n']}, attacked n = {first[0]['attacked_n']}"
    seeds = ", ".join(str(row["seed"]) for row in first)
    lines.append(f"\nMean ± standard deviation over seeds {seeds}; {sizes}. Steps: medians.")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--methods", nargs="+", default=[name_of(m) for m in METHODS])
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--texts", type=int, default=200, help="of the test set that are attacked")
    p.add_argument("--edits", type=int, default=3)
    p.add_argument("--flags", type=str.split, default=[], help="of the main program, in quotes")
    p.add_argument("--results", type=Path, default=HERE / "adversarial.jsonl")
    p.add_argument("--plot", type=Path, default=HERE / "adversarial.svg")
    args = p.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in args.methods}
    for seed in args.seeds:
        for name in args.methods:
            how = ("" if name == "plain" else name, seed, args.flags, args.texts, args.edits)
            line = measured(args.results, what(*how), lambda how=how: measure(*how))
            runs[name].append(line)
    print(table(runs))
    cases = {name: [100 * row["unbroken"] for row in rows] for name, rows in runs.items()}
    title = f"Correct and unbroken by {args.edits} edits, %"
    args.plot.write_text(dot_chart(title, cases, statistics.fmean, from_zero=False))


if __name__ == "__main__":
    main()
