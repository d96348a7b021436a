"""Where the time of a train step goes, forward and backward, and how near each part is to a limit.

python -m experiments.speed.anatomy [--steps=12] [--seconds=0.3]

The step of configs/sentiment.py under XLA's profiler. An instruction of the compiled step is put
down to a part of the model by its op_name, and to the backward pass where that has a `transpose(`;
one that fuses several bears the name of its result, but with a mask of dropout in it it is
dropout's. What has no name, and the loss, are "other".

An instruction's time is from its begin to its end: a call of the profiler ends before an operation
that is handed to other threads. Where several run at once, on several cores, each has its share of
the moment; a loop has what its body leaves. So the times add up to those in which something ran.
On one core (taskset -c 0) nothing overlaps.

The limit of a product is its time at the rate that its own shape has alone; of all else that of its
bytes, each operand and result of an instruction once, at the rate of a copy that no cache holds.
Both are measured in the same process before and after the steps; the better counts. So what other
fusion would save is no part of a limit, and a part whose data stay in the cache may be faster than
its own. To try it: --steps=1 --seconds=0.01
"""

from __future__ import annotations

import argparse
import glob
import gzip
import json
import math
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_ft import command_line
from configs.sentiment import get_config
from experiments.speed.hlo import CONTAINERS, Hlo, Instruction, Product, dims
from experiments.speed.turns import about

HERE = Path(__file__).parent
WARMUP = 3
COPIED = 2**25  # numbers, 128 MiB
PRODUCTS = (  # the first pattern that is found in an op_name
    ("feed-forward products", r"/(up|down)/dot_general"),
    ("projections", r"attention/(query|key|value|output)/dot_general"),
    ("attention's products", r"attention/"),
    ("products of the head", r""),
)
OTHERS = (
    ("clip and AdamW", r"^jit\(train_step\)/(jit\(_where\)/)?\w+$"),
    ("other", r"^(?!.*Model)"),
    ("embeddings", r"encoder/(word|position|type|add)\b"),
    ("LayerNorm", r"norm/"),
    ("biases, sums", r"(query|key|value|output|up|down)/|layer_\d+/(attention/)?add$"),
    ("transposes of heads", r"attention/transpose"),
    ("softmax and masks", r"attention/"),
    ("GELU", r"layer_\d+/"),
    ("other", r""),
)


def part_of(one: Instruction) -> tuple[str, str]:
    """(the part of the model, 'forward', 'backward' or 'update')."""
    named = [dot.op_name for dot in one.inside if dot.opcode == "dot"] or [one.op_name]
    name, opcodes = named[0], [i.opcode for i in one.inside]
    if not name:
        return "other", ""
    largest = max(math.prod(dims(i.shape)) for i in one.inside)
    rules = PRODUCTS if "dot" in opcodes else OTHERS
    part = next(part for part, pattern in rules if re.search(pattern, name))
    if part == "clip and AdamW":
        return part, "update"
    hashed = any(i.opcode == "xor" and math.prod(dims(i.shape)) == largest for i in one.inside)
    if hashed and "encoder/" in name:  # nothing else makes bits for every element (models/ops.py)
        part = "dropout, and what is fused with it"
    elif part == "softmax and masks" and "transpose" in opcodes:
        part = "transposes of heads"
    return part, "backward" if "transpose(" in name else "forward"


def intervals(events: Iterable[Mapping[str, Any]]) -> list[tuple[float, float, str]]:
    """(begin, end, instruction) in µs of each execution: the profiler marks an end of its own."""
    begun: dict[str, list[float]] = defaultdict(list)
    ended: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("args", {}).get("hlo_op"):
            begun[event["name"]].append(event["ts"])
        elif event.get("name", "").startswith("end: "):
            ended[event["name"].removeprefix("end: ")].append(event["ts"])
    return [
        (start, end, name)
        for name, starts in begun.items()
        for start, end in zip(sorted(starts), sorted(ended[name]), strict=True)
    ]


def shares(ran: Sequence[tuple[float, float, str]], containers: set[str]) -> dict[str, float]:
    """µs of each instruction: a moment is shared by all that run in it, loops aside."""
    points = sorted(
        [(start, 1, n) for n, (start, _, _) in enumerate(ran)]
        + [(end, -1, n) for n, (_, end, _) in enumerate(ran)]
    )
    spent: dict[str, float] = defaultdict(float)
    active: set[int] = set()
    for (at, kind, n), (until, _, _) in zip(points, points[1:], strict=False):
        (active.add if kind > 0 else active.discard)(n)
        names = [ran[n][2] for n in active]
        inner = [name for name in names if name not in containers] or names
        for name in inner:
            spent[name] += (until - at) / len(inner)
    return spent


def rates(products: Iterable[Product], seconds: float) -> dict[Product | str, float]:
    """Operations a second of each product alone, and bytes a second of a 'copy'; medians."""
    import jax
    import jax.numpy as jnp

    def median(run: Any, *given: Any) -> float:
        run(*given).block_until_ready()
        spent: list[float] = []
        stop = time.monotonic() + seconds
        while not spent or time.monotonic() < stop:
            began = time.perf_counter()
            run(*given).block_until_ready()
            spent.append(time.perf_counter() - began)
        return statistics.median(spent)

    found: dict[Product | str, float] = {}
    for product in products:
        left, right = (
            jax.random.normal(jax.random.key(0), s) for s in (product.left, product.right)
        )
        found[product] = product.flops / median(jax.jit(product), left, right)
    found["copy"] = 2 * 4 * COPIED / median(jax.jit(lambda x: x + 1), jnp.zeros(COPIED))
    return found


def profiled(programs: Any, state: Any, batches: Sequence[Any]) -> list[tuple[float, float, str]]:
    import jax

    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(scratch):
            for batch in batches:
                state, _ = programs(state, batch)
            jax.block_until_ready(state)
        (path,) = glob.glob(f"{scratch}/**/*.trace.json.gz", recursive=True)
        with gzip.open(path) as file:
            return intervals(json.load(file)["traceEvents"])


def measure(steps: int, seconds: float) -> dict[str, Any]:
    config = get_config()
    command_line.prepare_host(config)
    import jax

    from experiments.speed.demo_step import demo_step

    programs, state, batches, shape = demo_step(config, WARMUP + 2 * steps)
    hlo = Hlo(programs.text())
    known = {p: None for one in hlo.instructions.values() for p in hlo.products(one)}
    measured, wall = [rates(known, seconds)], []
    for batch in batches[: WARMUP + steps]:
        began = time.perf_counter()
        state, _ = programs(state, batch)
        jax.block_until_ready(state)
        wall.append(1e3 * (time.perf_counter() - began))
    ran = profiled(programs, state, batches[WARMUP + steps :])
    measured.append(rates(known, seconds))
    best = {key: max(found[key] for found in measured) for key in measured[0]}
    parts: dict[tuple[str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    containers = {i.name for i in hlo.instructions.values() if i.opcode in CONTAINERS}
    for name, us in shares(ran, containers).items():
        parts[part_of(hlo.instructions[name])]["ms"] += us / 1e3 / steps
    for _, _, name in ran:
        one, products = hlo.instructions[name], hlo.products(hlo.instructions[name])
        part = parts[part_of(one)]
        part["gflop"] += sum(p.flops for p in products) / 1e9 / steps
        part["limit_ms"] += sum(p.flops / best[p] for p in products) * 1e3 / steps
        if not products and name not in containers:
            part["mb"] += hlo.moved(one) / 1e6 / steps
            part["limit_ms"] += hlo.moved(one) / best["copy"] * 1e3 / steps
    by_time = sorted(parts.items(), key=lambda item: -item[1]["ms"])
    return {
        "places": shape.rows * shape.row_length,
        "wall_ms": statistics.median(wall[WARMUP:]),
        "span_ms": (max(e for _, e, _ in ran) - min(s for s, _, _ in ran)) / 1e3 / steps,
        "parts": [{"part": p, "pass": d, **found} for (p, d), found in by_time],
        "products": [{**vars(p), "gflop_s": [m[p] / 1e9 for m in measured]} for p in known],
        "copy_gb_s": [m["copy"] / 1e9 for m in measured],
        **about(),
    }


def table(m: Mapping[str, Any]) -> str:
    out = [
        "| part | | ms | share | GFLOP | MB | limit, ms | over it |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in m["parts"]:
        numbers = [f"{line[k]:.1f}" if line.get(k) else "" for k in ("gflop", "mb", "limit_ms")]
        cells = [
            line["part"],
            line["pass"],
            f"{line['ms']:.1f}",
            f"{line['ms'] / m['span_ms']:.0%}",
        ]
        over = f"{line['ms'] / line['limit_ms']:.1f}" if line["limit_ms"] else ""
        out.append(f"| {' | '.join([*cells, *numbers, over])} |")
    ran, limit = (sum(line[k] for line in m["parts"]) for k in ("ms", "limit_ms"))
    out.append(f"| nothing runs | | {m['span_ms'] - ran:.1f} | | | | | |")
    out.append(f"| all | | {m['span_ms']:.1f} | 100% | | | {limit:.1f} | {ran / limit:.1f} |")
    copies = " and ".join(f"{rate:.1f}" for rate in m["copy_gb_s"])
    out.append(
        f"\nA step takes {m['wall_ms']:.0f} ms in the median, {m['span_ms']:.0f} under the "
        f"profiler. The limits together are {limit:.0f} ms; {m['wall_ms'] - limit:.0f} remain. A "
        f"copy moves {copies} GB/s, before and after."
    )
    return "\n".join(out)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--steps", type=int, default=12)
    p.add_argument("--seconds", type=float, default=0.3, help="of each rate, twice")
    p.add_argument("--out", type=Path, default=HERE / "anatomy.json")
    args = p.parse_args()
    measured = measure(args.steps, args.seconds)
    args.out.write_text(json.dumps(measured, indent=1) + "\n")
    print(table(measured))


if __name__ == "__main__":
    main()
