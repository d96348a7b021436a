"""What a run pays for fresh memory, and what `command_line.keep_freed_memory` saves of it.

python -m experiments.speed.page_faults [--rounds=3] [--steps=100]

The main program on configs/sentiment.py, without that setting, with its small pages alone, and with
it, in processes that take turns. Page faults and processor time are those of the whole run: start,
compilation from the cache, steps, the last checkpoint; the time of a step is that in metrics.jsonl,
its first ones not counted. Linux with glibc; where a TPU is attached the setting is off, and all
lines are the same.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_ft import command_line
from experiments.dot_chart import dot_chart
from experiments.speed.trainer import step_ends
from experiments.speed.turns import about, write

HERE = Path(__file__).parent
CASES = {
    "without": "memory given back",
    "small": "memory kept",
    "huge": "memory kept, pages of 2 MiB",
}
WARMUP = 3  # steps not counted


def run_main(case: str, words: Sequence[str]) -> int:
    """The main program in this process, by its own flags."""
    keep = command_line.keep_freed_memory
    kept = {"without": lambda: None, "small": lambda: keep(huge_pages=False), "huge": keep}
    command_line.keep_freed_memory = kept[case]
    from bert_ft import main as program

    return program.main([sys.argv[0], *words])


def measure(case: str, steps: int) -> dict[str, Any]:
    """A run in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        words = ["--config=configs/sentiment.py", f"--workdir={scratch}/run"]
        words += [
            f"--config.train.steps={WARMUP + steps}",
            "--config.data.dev=",
            "--config.data.test=",
        ]
        words += ["--config.log.every_steps=1", "--config.log.progress=False"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "experiments.speed.page_faults", f"--run={case}", *words],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        ended = step_ends(Path(scratch) / "run" / "metrics.jsonl")
    return {
        "faults": after.ru_minflt - before.ru_minflt,
        "system_s": after.ru_stime - before.ru_stime,
        "user_s": after.ru_utime - before.ru_utime,
        "step_ms": [
            1e3 * (ended[step + 1] - ended[step]) for step in range(WARMUP, WARMUP + steps)
        ],
    }


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Medians over the rounds, in Markdown."""
    out = [
        "| | minor page faults | system time, s | user time, s | a step, ms: mean | median |",
        "|---|---|---|---|---|---|",
    ]
    for case, name in CASES.items():
        rows = [x for x in lines if x["case"] == case]
        whole = [
            statistics.median(x[key] for x in rows) for key in ("faults", "system_s", "user_s")
        ]
        mean, median = (
            statistics.median(of(x["step_ms"]) for x in rows)
            for of in (statistics.fmean, statistics.median)
        )
        faults, system, user = whole
        out.append(
            f"| {name} | {faults:,.0f} | {system:.1f} | {user:.0f} | {mean:.0f} | {median:.0f} |"
        )
    return "\n".join(out)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=100, help="counted a round")
    p.add_argument("--out", type=Path, default=HERE / "page_faults.jsonl", help="written anew")
    p.add_argument("--plot", type=Path, default=HERE / "page_faults.svg")
    p.add_argument("--run", choices=list(CASES), help="the main program, by flags that follow")
    args, words = p.parse_known_args()
    if args.run:
        sys.exit(run_main(args.run, words))
    lines: list[dict[str, Any]] = []
    for number in range(args.rounds):
        for case in CASES:
            found = measure(case, args.steps)
            lines.append({"round": number, "case": case, "steps": args.steps, **found, **about()})
            write(args.out, lines)
            mean = statistics.fmean(found["step_ms"])
            print(f"round {number}, {CASES[case]}: {mean:.0f} ms a step", flush=True)
    print(table(lines))
    cases = {
        name: [statistics.fmean(x["step_ms"]) for x in lines if x["case"] == case]
        for case, name in CASES.items()
    }
    args.plot.write_text(dot_chart("A train step, mean ms", cases))


if __name__ == "__main__":
    main()
