"""What a train step pays for fresh memory, and what `command_line.keep_freed_memory` saves of it.

python -m experiments.speed.page_faults

The train step of configs/sentiment.py, with that setting and without, in processes that take
turns. Each does the same steps on batches made beforehand, all of one shape. Linux with glibc; on
a machine where libtpu is installed the setting is off, and both columns are then the same.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.dot_chart import dot_chart

HERE = Path(__file__).parent
CASES = {"without": "memory given back", "with": "memory kept"}
WARMUP = 3  # steps not counted


def measure(case: str, steps: int) -> dict[str, float]:
    """Medians a step: minor page faults, system and user time (ms, over all threads), wall (ms)."""
    from bert_ft import command_line
    from configs.sentiment import get_config

    if case == "without":
        command_line.keep_freed_memory = lambda: None
    config = get_config()
    command_line.prepare_host(config)

    import jax

    from experiments.speed.demo_step import demo_step

    programs, state, batches, shape = demo_step(config, WARMUP + steps)
    seen: list[tuple[float, ...]] = []
    for batch in batches:
        before, since = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        state, metrics = programs(state, batch)
        jax.block_until_ready((state, metrics))
        wall, after = time.monotonic() - since, resource.getrusage(resource.RUSAGE_SELF)
        seen.append(
            (
                after.ru_minflt - before.ru_minflt,
                1e3 * (after.ru_stime - before.ru_stime),
                1e3 * (after.ru_utime - before.ru_utime),
                1e3 * wall,
            )
        )
    names = ("faults", "system_ms", "user_ms", "wall_ms")
    medians = map(statistics.median, zip(*seen[WARMUP:], strict=True))
    return {"rows": shape.rows, **{n: round(m, 1) for n, m in zip(names, medians, strict=True)}}


def in_a_process(case: str, steps: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.speed.page_faults"]
    command += [f"--measure={case}", f"--steps={steps}"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {"case": case, "steps": steps, **json.loads(done.stdout.splitlines()[-1])}


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Medians over the rounds, in Markdown."""
    out = [
        "| a step | minor page faults | system time, ms | user time, ms | wall time, ms |",
        "|---|---|---|---|---|",
    ]
    for case, name in CASES.items():
        rows = [x for x in lines if x["case"] == case]
        cells = [
            f"{statistics.median(x[key] for x in rows):,.0f}"
            for key in ("faults", "system_ms", "user_ms", "wall_ms")
        ]
        out.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(out)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--steps", type=int, default=20, help="counted a round")
    p.add_argument("--out", type=Path, default=HERE / "page_faults.jsonl", help="written anew")
    p.add_argument("--plot", type=Path, default=HERE / "page_faults.svg")
    p.add_argument("--measure", choices=list(CASES), help="one measurement, here; prints JSON")
    args = p.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.steps)))
        return
    from experiments.speed.trainer import versions

    about = {"cores": len(os.sched_getaffinity(0)), "versions": versions()}
    lines = []
    with args.out.open("w", encoding="utf-8") as file:
        for number in range(args.rounds):
            for case in CASES:
                line = {"round": number, **in_a_process(case, args.steps)}
                print(json.dumps(line), flush=True)
                lines.append({**line, "load_average": os.getloadavg(), **about})
                file.write(json.dumps(lines[-1]) + "\n")
                file.flush()
    print(table(lines))
    cases = {
        name: [x["wall_ms"] for x in lines if x["case"] == case] for case, name in CASES.items()
    }
    args.plot.write_text(dot_chart("A train step, ms", cases))


if __name__ == "__main__":
    main()
