"""How the cost of an example grows with batch, length, layers and trials, one at a time.

python -m experiments.speed.scaling [--rounds=5] [--width=64]

A narrow model, full rows, float32, dropout and AdamW. Each line is a step's time an example (and a
trial), by turns with the first of its row, so that the ratio to it survives a change of load.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from bert_ft import command_line, config
from experiments.speed.turns import CLOCKS, about, by_turns, ratios, spread, write

HERE = Path(__file__).parent
BASE = {"batch": 8, "length": 64, "layers": 2, "trials": 1}
AXES = {
    "batch": (8, 32, 128, 512),
    "length": (64, 128, 256, 512),
    "layers": (2, 4, 8, 12, 24),
    "trials": (1, 4, 16),
}


def step_of(width: int, case: dict[str, int]) -> Any:
    from bert_ft.models.bert import EncoderConfig
    from experiments.speed.made import Step, data_of

    sizes = EncoderConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=case["layers"],
        num_attention_heads=max(width // 32, 1),
        intermediate_size=4 * width,
        max_position_embeddings=512,
    )
    data = data_of(np.full(case["batch"], case["length"]), sizes.vocab_size)
    return Step(sizes, data, case["batch"], case["length"], trials=case["trials"])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--most", type=int, default=512, help="leaves out values above")
    p.add_argument("--clock", choices=list(CLOCKS), default="wall")
    p.add_argument("--out", type=Path, default=HERE / "scaling.jsonl", help="written anew")
    args = p.parse_args()
    command_line.prepare_host(config.default())
    lines = []
    print("| | ms an example | of the first | GFLOP an example | GFLOP/s |\n|---|---|---|---|---|")
    for axis, values in AXES.items():
        steps = {v: step_of(args.width, {**BASE, axis: v}) for v in values if v <= args.most}
        cases = {str(v): step.run() for v, step in steps.items()}
        seconds = by_turns(cases, args.rounds, args.clock)
        first = [s / BASE["batch"] for s in seconds[str(values[0])]]
        for value, step in steps.items():
            each = step.examples * step.trials
            cost = [s / each for s in seconds[str(value)]]
            rate = step.flops / statistics.median(seconds[str(value)]) / 1e9
            line = {"axis": axis, "value": value, "seconds_an_example": cost, "flops": step.flops}
            line |= {"width": args.width, "clock": args.clock, "gflop_s": rate}
            lines.append({**line, **about()})
            print(
                f"| {axis} {value} | {1e3 * statistics.median(cost):.3g} | "
                f"{spread(ratios(cost, first))} | {step.flops / each / 1e9:.3g} | {rate:.3g} |",
                flush=True,
            )
    write(args.out, lines)


if __name__ == "__main__":
    main()
