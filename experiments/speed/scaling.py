"""How the cost of an example grows with batch, length, layers and trials, one at a time.

python -m experiments.speed.scaling [--rounds=5] [--width=64]

A narrow model, full rows, float32, dropout and AdamW. Each line is a step's time an example (and a
trial), by turns with the first of its axis, so that the ratio to it survives a change of load; a
turn is as many steps as take 0.3 s. Trials are those of the product: each has its batch, and on a
CPU they follow each other. To try it: --most=4 --width=32 --rounds=1 --seconds=0.02
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from bert_ft import command_line, config
from experiments.attempts import Attempts
from experiments.speed.turns import CLOCKS, about, by_turns, ratios, repeated, spread, write

HERE = Path(__file__).parent
BASE = {"batch": 8, "length": 64, "layers": 2, "trials": 1}
AXES = {
    "batch": (8, 32, 128, 512),
    "length": (64, 128, 256, 512),
    "layers": (2, 4, 8, 12, 24),
    "trials": (1, 4, 16),
}


def step_of(width: int, case: dict[str, int], on_trials: bool) -> Any:
    from bert_ft.models.bert import EncoderConfig
    from experiments.speed.made import Step, Trials, data_of

    sizes = EncoderConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=case["layers"],
        num_attention_heads=max(width // 32, 1),
        intermediate_size=4 * width,
        max_position_embeddings=512,
    )
    data = data_of(np.full(case["batch"], case["length"]), sizes.vocab_size)
    if on_trials:  # the first of them, too
        return Trials(sizes, data, case["batch"], case["length"], case["trials"])
    return Step(sizes, data, case["batch"], case["length"])


def measure(axis: str, args: argparse.Namespace, attempts: Attempts) -> list[dict[str, Any]]:
    """A line for each value of an axis that can be made."""
    steps, cases, times = {}, {}, {}
    for value in AXES[axis]:
        if value > args.most:
            continue

        def made(value: int = value) -> Any:
            step = step_of(args.width, {**BASE, axis: value}, axis == "trials")
            return step, *repeated(step.run(), args.seconds, args.clock)

        if found := attempts.of(f"{axis} {value}", made):
            steps[value], cases[str(value)], times[value] = found
    seconds = by_turns(cases, args.rounds, args.clock, warm=False) if cases else {}
    lines = []
    for value, step in steps.items():
        of_a_step = [s / times[value] for s in seconds[str(value)]]
        line = {"axis": axis, "value": value, "flops": step.flops, "examples": step.examples}
        line |= {"seconds_an_example": [s / step.examples for s in of_a_step]}
        line |= {"steps_a_turn": times[value], "width": args.width, "clock": args.clock}
        line |= {"gflop_s": step.flops / statistics.median(of_a_step) / 1e9}
        lines.append({**line, **about()})
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--most", type=int, default=512, help="leaves out values above")
    p.add_argument("--seconds", type=float, default=0.3, help="of a turn, about")
    p.add_argument("--clock", choices=list(CLOCKS), default="wall")
    p.add_argument("--out", type=Path, default=HERE / "scaling.jsonl", help="written anew")
    args = p.parse_args()
    command_line.prepare_host(config.default())
    lines: list[dict[str, Any]] = []
    attempts = Attempts()
    print("| | ms an example | of the first | GFLOP an example | GFLOP/s |\n|---|---|---|---|---|")
    for axis in AXES:
        found = attempts.of(axis, lambda axis=axis: measure(axis, args, attempts)) or []
        for line in found:
            cost = line["seconds_an_example"]
            print(
                f"| {axis} {line['value']} | {1e3 * statistics.median(cost):.3g} | "
                f"{spread(ratios(cost, found[0]['seconds_an_example']))} | "
                f"{line['flops'] / line['examples'] / 1e9:.3g} | {line['gflop_s']:.3g} |",
                flush=True,
            )
        lines += found
        write(args.out, lines)
    attempts.end()


if __name__ == "__main__":
    main()
