"""What adversarial and consistent training buy: the clean score, the score under misspellings, and
the time of a step, method by method on the demo; beside them, training on misspelt texts.

python -m experiments.methods.adversarial

Trains what adversarial.jsonl does not hold yet with the same settings and versions, one run at a
time, attacks it, prints the table and draws adversarial.svg. A run stays under --workdirs until it
has been attacked; one that fails is noted, and the others go on. A method may be given other knobs:
--methods plain pgd:epsilon=3,step=1.5
`misspelt` is no method of the loss: of half of the texts each word is misspelt by chance, with the
probability 0.3 (bert_ft/data/noise.py, `typos`), which is not drawn as the attack searches.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_ft.evals.attack import attack, unbroken
from bert_ft.train.record import git_commit
from experiments.attempts import Attempts
from experiments.dot_chart import dot_chart
from experiments.lines import SHOW, measured, median, shown, spread, versions
from experiments.methods.reading import attacked_texts, scorer
from experiments.parity.tasks import Task
from experiments.runs import result_of, settings_of

HERE = Path(__file__).parent
METHODS = ("plain", "fgm", "pgd", "freelb", "smart", "rdrop", "misspelt")
# What is no method of the loss, by its settings.
OF_DATA = {"plain": (), "misspelt": ("data.augment=typos:0.3",)}


def used(case: str) -> str:
    """config.methods.use of a case."""
    return "" if case in OF_DATA else case.partition(":")[0]


def task_of(case: str, flags: Sequence[str]) -> Task:
    """'plain', 'misspelt', 'NAME' or 'NAME:KNOB=VALUE,...', and flags of the main program."""
    name, knobs = used(case), case.partition(":")[2]
    own = [f"methods.{name}.{knob}" for knob in knobs.split(",") if knob]
    words = [f"methods.use={name}", *own, *OF_DATA.get(case, ())]
    words += [flag.removeprefix("--config.") for flag in flags]
    return Task("configs/sentiment.py", "test/accuracy", tuple(map(override, words)))


def override(words: str) -> tuple[str, Any]:
    """'KEY=VALUE', the value in Python's notation or as it stands."""
    key, _, value = words.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def what(task: Task, seed: int, texts: int, edits: int) -> dict[str, Any]:
    """The part of a line that says what was run; equal parts need not run again."""
    trained = {"seed": seed, "config": settings_of(task, seed), "versions": versions()}
    return {**trained, "attacked": texts, "of_the_set": "evenly", "edits": edits}


def measure(
    workdirs: Path, case: str, task: Task, seed: int, texts: int, edits: int
) -> dict[str, Any]:
    """One run, or what is there of it, and an attack on `texts` of its test texts."""
    digest = hashlib.sha256(json.dumps(settings_of(task, seed)).encode()).hexdigest()
    workdir = workdirs / f"{case.partition(':')[0]}-{seed}-{digest[:8]}"
    result = result_of(task, seed, workdir)
    found = attack(*attacked_texts(workdir, texts), scorer(workdir), edits)
    shutil.rmtree(workdir)  # checkpoints are large
    test = result["eval"]["test/accuracy"]
    return {
        "method": case,
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
        step = shown(median([row["step_ms"] for row in rows]))
        lines.append(f"| {name} | {' | '.join(scores)} | {step} |")
    first = next(iter(runs.values()))
    sizes = f"test n = {first[0]['n']}, attacked n = {first[0]['attacked_n']}"
    seeds = ", ".join(str(row["seed"]) for row in first)
    lines.append(f"\nMean ± standard deviation over seeds {seeds}; {sizes}. Steps: medians.")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--methods", nargs="+", default=METHODS)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--texts", type=int, default=200, help="of the test set that are attacked")
    p.add_argument("--edits", type=int, default=3)
    p.add_argument(
        "--flags", type=str.split, default=[], help="--flags='--config.a=1 …', as main has them"
    )
    p.add_argument("--workdirs", type=Path, default=Path("runs/adversarial"))
    p.add_argument("--results", type=Path, default=HERE / "adversarial.jsonl")
    p.add_argument("--plot", type=Path, default=HERE / "adversarial.svg")
    p.add_argument("--show", action="store_true", help=SHOW)
    args = p.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {}
    attempts = Attempts()
    for seed in args.seeds:
        for case in args.methods:
            how = (task_of(case, args.flags), seed, args.texts, args.edits)
            make = functools.partial(measure, args.workdirs, case, *how)
            wanted = functools.partial(measured, args.results, what(*how), make, args.show)
            line = attempts.of(f"{case}, seed {seed}", wanted)
            if line is not None:
                runs.setdefault(case, []).append(line)
    if runs:
        print(table(runs))
        cases = {name: [100 * row["unbroken"] for row in rows] for name, rows in runs.items()}
        title = f"Correct and unbroken by {args.edits} edits, %"
        args.plot.write_text(dot_chart(title, cases, statistics.fmean, from_zero=False))
    attempts.end()


if __name__ == "__main__":
    main()
