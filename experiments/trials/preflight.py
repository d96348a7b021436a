"""BERT-base with batches of 32 on v5e-256: what does a slice make of one run, and of 32 trials?

python -m experiments.trials.preflight           compiles what preflight.jsonl lacks, minutes each
python -m experiments.trials.preflight --show    the table of README, from preflight.jsonl

Full rows of 128 tokens; only the training step, with quick effort (config.preflight.effort).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bert_ft import config, trials
from bert_ft.preflight import examine, on_devices, system_for, topology_devices
from bert_ft.train.chips import CHIPS, slice_of
from bert_ft.train.group import make_group
from bert_ft.train.record import versions
from experiments.lines import append, read

FILE = Path(__file__).with_name("preflight.jsonl")
SLICE, BATCH, LENGTH = "v5e-256", 32, 128
# Trials, and the parts of the mesh that they are split into.
CASES = {"one run": (1, 1), "32 trials": (32, 32)}


def measure(case: str) -> dict[str, Any]:
    (count, axis), (kind, shape) = CASES[case], slice_of(SLICE)
    devices = topology_devices(kind, shape)
    c = config.default()
    c.preflight.model, c.preflight.effort = "base", "quick"
    c.data.max_length, c.train.batch_size, c.train.steps = LENGTH, BATCH, 1
    c.mesh.trial = axis
    if count > 1:
        c.trials = json.dumps({"seed": list(range(count))})
    system = on_devices(system_for(c, devices, print)[0], devices)
    group = make_group(system, c, trials.settings(c), list(range(count))) if count > 1 else None
    report = examine(system, CHIPS[kind], evaluation=False, group=group)
    # Rows are dealt to the chips in equal parts, the empty ones last; each text fills a row.
    shards = len(devices) // axis
    filled = -(-BATCH // -(-BATCH // shards))
    return {"case": case, "slice": SLICE, "busy": axis * filled, **report, "versions": versions()}


def show() -> None:
    print("| | chips with real rows | a chip holds | bound of a step | examples/s, all trials |")
    print("|---|---|---|---|---|")
    for r in read(FILE):
        b, held = r["bound"], r["bytes"]["total"] / 2**30
        print(
            f"| {r['case']} | {r['busy']} of {r['devices']} | {held:.1f} GiB "
            f"| {b['ms']:.2f} ms by {b['by']} | {b['examples_per_s']:,.0f} |"
        )


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--show", action="store_true")
    if p.parse_args().show:
        return show()
    for case in CASES:
        if any(r["case"] == case for r in read(FILE)):
            continue
        made = measure(case)
        append(FILE, [made])
        print(case, f"{made['compile_s']:.0f} s", made["bytes"], made["bound"], flush=True)
    show()


if __name__ == "__main__":
    main()
