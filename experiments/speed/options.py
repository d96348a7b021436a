"""What compiler options do to a train step on a CPU: by turns in one process.

python -m experiments.speed.options [--rounds=30]

The step of MiniLM's sizes on 32 short texts, packed, float32, dropout and AdamW; compiled with
XLA's defaults and with other options.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from bert_ft import command_line, config
from experiments.speed.turns import about, by_turns, ratios, spread, write

HERE = Path(__file__).parent
CONCURRENT = {"xla_cpu_enable_concurrency_optimized_scheduler": True}
EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}
OPTIONS: dict[str, dict[str, Any]] = {
    "XLA's defaults": {},
    "concurrency-optimised scheduler": CONCURRENT,
    "vectors of 512 bits": {"xla_cpu_prefer_vector_width": 512},
    "products by Eigen, not YNNPACK": EIGEN,
    "this scheduler and Eigen": {**CONCURRENT, **EIGEN},
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--rounds", type=int, default=30)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--out", type=Path, default=HERE / "options.jsonl", help="written anew")
    args = p.parse_args()
    command_line.prepare_host(config.default())
    from bert_ft.models.bert import EncoderConfig
    from experiments.speed.made import Step, data_of

    sizes = EncoderConfig(
        hidden_size=384, num_hidden_layers=args.layers, intermediate_size=1536, vocab_size=30522
    )
    lengths = np.random.default_rng(0).gamma(4.0, 6.75, 32).astype(int).clip(3, 80)
    cases = {}
    for name, options in OPTIONS.items():
        data = data_of(lengths, sizes.vocab_size)
        cases[name] = Step(sizes, data, 32, 80, packed=True, options=options).run()
    seconds = by_turns(cases, args.rounds)
    first = next(iter(seconds.values()))
    print("| | ms a step | of the defaults' |\n|---|---|---|")
    for name, spent in seconds.items():
        median = 1e3 * statistics.median(spent)
        print(f"| {name} | {median:.0f} | {spread(ratios(spent, first))} |")
    write(args.out, [{"options": n, "seconds": s, **about()} for n, s in seconds.items()])


if __name__ == "__main__":
    main()
