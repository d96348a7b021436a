"""Where the time of a train step goes, and how near its matrix products are to the machine's limit.

python -m experiments.speed.anatomy

The step of configs/sentiment.py under XLA's profiler. Each operation's time is put down to the part
of the model in its name; a fusion bears the name of its last operation, so what is fused with a
product counts as that product's. The limit is measured in the same process, before and after: one
product of the feed-forward's shape, over and over.
"""

from __future__ import annotations

import argparse
import glob
import gzip
import json
import re
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bert_ft import command_line
from configs.sentiment import get_config

HERE = Path(__file__).parent
WARMUP = 3
GROUPS = (  # the first pattern that is found in an operation's name
    ("feed-forward products", r"/(up|down)/dot_general"),
    ("projections", r"attention/(query|key|value|output)/dot_general"),
    ("attention core", r"attention/(?!norm)"),
    ("embeddings", r"encoder/(word|position|type)"),
    ("LayerNorm, GELU, dropout, sums", r"Model"),
    ("clip and AdamW", r""),
)


def group_of(name: str) -> str:
    return next(group for group, pattern in GROUPS if re.search(pattern, name))


def op_names(hlo: str) -> dict[str, str]:
    """What each instruction of a compiled program was in the model: its op_name."""
    found = re.finditer(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name="([^"]*)"', hlo, re.MULTILINE)
    return {m[1]: m[2] for m in found}


def products_gflop(config: Any, places: int, sequences: int) -> dict[str, float]:
    """Of the two groups of products, forward and backward (three products each); the last layer
    takes keys and values of all places and the rest of each sequence's first token only."""
    h, i, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    whole, last = (layers - 1) * places, sequences
    return {
        "feed-forward products": 3 * 2 * 2 * h * i * (whole + last) / 1e9,
        "projections": 3 * 2 * h * h * (4 * whole + 2 * places + 2 * last) / 1e9,
    }


def limit_gflops(places: int, hidden: int, inner: int, seconds: float = 3.0) -> float:
    """Median rate of a (places, hidden) x (hidden, inner) product in float32."""
    import jax
    import jax.numpy as jnp

    a, b = jnp.ones((places, hidden)), jnp.ones((hidden, inner))
    product = jax.jit(jnp.dot)
    product(a, b).block_until_ready()
    rates, stop = [], time.monotonic() + seconds
    while time.monotonic() < stop:
        began = time.perf_counter()
        product(a, b).block_until_ready()
        rates.append(2 * places * hidden * inner / (time.perf_counter() - began) / 1e9)
    return statistics.median(rates)


def measure(steps: int) -> dict[str, Any]:
    """{'ms': {group: a step}, 'wall_ms': median, 'gflop': {group: …}, 'limit': [before, after]}."""
    config = get_config()
    command_line.prepare_host(config)
    import jax

    from bert_ft.models import hf
    from bert_ft.train.system import cache_dir
    from experiments.speed.demo_step import demo_step

    programs, state, batches, shape = demo_step(config, WARMUP + 2 * steps)
    sizes = hf.read_config(hf.directory(config.model.pretrained, cache_dir(config)))
    places = shape.rows * shape.row_length
    limit = [limit_gflops(places, sizes.hidden_size, sizes.intermediate_size)]
    wall = []
    for batch in batches[: WARMUP + steps]:
        began = time.perf_counter()
        state, _ = programs(state, batch)
        jax.block_until_ready(state)
        wall.append(1e3 * (time.perf_counter() - began))
    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(scratch):
            for batch in batches[WARMUP + steps :]:
                state, _ = programs(state, batch)
            jax.block_until_ready(state)
        (path,) = glob.glob(f"{scratch}/**/*.trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
    limit.append(limit_gflops(places, sizes.hidden_size, sizes.intermediate_size))
    names = op_names(programs.text())
    spent: Counter[str] = Counter()
    for event in events:
        if op := event.get("args", {}).get("hlo_op"):
            spent[group_of(names.get(op, ""))] += event["dur"] / 1e3 / steps
    return {
        "places": places,
        "wall_ms": statistics.median(wall[WARMUP:]),
        "ms": dict(spent.most_common()),
        "gflop": products_gflop(sizes, places, shape.examples),
        "limit_gflops": limit,
    }


def table(m: dict[str, Any]) -> str:
    limit, total = statistics.mean(m["limit_gflops"]), sum(m["ms"].values())
    out = ["| part | ms | share | GFLOP | GFLOP/s |", "|---|---|---|---|---|"]
    for group, ms in m["ms"].items():
        flop = m["gflop"].get(group)
        more = f"{flop:.1f} | {1e3 * flop / ms:.0f}" if flop else "|"
        out.append(f"| {group} | {ms:.0f} | {ms / total:.0%} | {more} |")
    products = sum(m["gflop"].values())
    out.append(f"| all | {total:.0f} | 100% | {products:.1f} | |")
    out.append(
        f"\nA product alone: {limit:.0f} GFLOP/s; at that rate the step's products would take "
        f"{1e3 * products / limit:.0f} of the {m['wall_ms']:.0f} ms that the median step takes "
        "without the profiler."
    )
    return "\n".join(out)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--out", type=Path, default=HERE / "anatomy.json")
    args = p.parse_args()
    measured = measure(args.steps)
    args.out.write_text(json.dumps(measured, indent=1) + "\n")
    print(table(measured))


if __name__ == "__main__":
    main()
