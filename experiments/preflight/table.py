"""BERT-base and -large, lengths 128 and 512, on five slices under each preset: does the training
step compile, what does a chip hold, and what is the bound?

python -m experiments.preflight.table                compiles what table.jsonl lacks, hours in all
python -m experiments.preflight.table --effort=full  the same with the compiler's full effort
python -m experiments.preflight.table --show         the table of README, from table.jsonl

4,096 tokens a chip in full rows: 32 examples of 128 tokens or 8 of 512, times the chips, whatever
the preset; 'tensor' is over 4 chips. Only the training step.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from bert_ft import config
from bert_ft.preflight import examine, system_for, topology_devices
from bert_ft.train.chips import CHIPS, slice_of
from bert_ft.train.record import versions
from experiments.lines import append, read

FILE = Path(__file__).with_name("table.jsonl")
SLICES = ("v5e-8", "v4-32", "v5p-16", "v6e-16", "v5e-256")
PRESETS = ("replicate", "fsdp", "tensor")
CASES = (("base", 128), ("large", 128), ("base", 512), ("large", 512))
TOKENS = 4096  # a chip
KEY = ("slice", "model", "length", "preset", "effort")


def measure(name: str, model: str, length: int, preset: str, effort: str) -> dict[str, Any]:
    kind, shape = slice_of(name)
    devices = topology_devices(kind, shape)
    c = config.default()
    c.preflight.model, c.preflight.topology = model, f"{kind}:{shape}"
    c.preflight.effort = effort
    c.data.max_length = length
    c.train.batch_size = TOKENS // length * len(devices)
    c.train.steps = 1
    c.mesh.preset = preset
    if preset == "tensor":
        c.mesh.tensor = 4
    system, _ = system_for(c, devices, print)
    report = examine(system, CHIPS[kind], evaluation=False)
    return {
        **dict(zip(KEY, (name, model, length, preset, effort), strict=True)),
        "topology": f"{kind}:{shape}",
        **report,
        "versions": versions(),
    }


def cell(r: dict[str, Any] | None) -> str:
    if r is None:
        return "not compiled yet"
    held = f"{r['bytes']['total'] / 2**30:.1f} GiB"
    if not r["fits"]:
        return f"does not fit ({held})"
    b = r["bound"]
    return f"{held}, {b['ms']:.1f} ms by {b['by']}, {b['examples_per_s']:,.0f}/s"


def show() -> None:
    done = {tuple(r[k] for k in KEY): r for r in read(FILE)}
    print("| | | replicate | fsdp | tensor |\n|---|---|---|---|---|")
    for (model, length), name in itertools.product(CASES, SLICES):
        first = f"{model}, {length}" if name == SLICES[0] else ""
        keys = [(name, model, length, preset) for preset in PRESETS]
        cells = [cell(done.get((*k, "quick"), done.get((*k, "full")))) for k in keys]
        print(f"| {first} | {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--effort", choices=("quick", "full"), default="quick")
    args = parser.parse_args()
    if args.show:
        return show()
    for (model, length), name, preset in itertools.product(CASES, SLICES, PRESETS):
        key = (name, model, length, preset, args.effort)
        if any(tuple(r[k] for k in KEY) == key for r in read(FILE)):
            continue
        made = measure(*key)
        append(FILE, [made])
        print(*key, f"{made['compile_s']:.0f} s", made["bytes"]["total"], made["bound"], flush=True)


if __name__ == "__main__":
    main()
