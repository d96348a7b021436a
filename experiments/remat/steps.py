"""Time of a train step, by config.model.remat and config.model.layer_loop, on this machine.

python -m experiments.remat.steps [--rounds=9] [--rows=8] [--length=128]

MiniLM's sizes (6 layers, 384 wide) with a sequence head, AdamW, dropout 0.1; one example a row. A
step of each way by turns; the table has the ratio to the default way round by round, so that a
change of the machine's load falls on all.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bert_ft import config
from bert_ft.models.bert import EncoderConfig
from bert_ft.train.step import TrainState
from bert_ft.train.system import example_batch
from experiments.remat.measure import LOOPS, REMATS, plan_of, step_of

MINILM = EncoderConfig(
    hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    args = parser.parse_args()
    c, batch = config.default(), plan_of(args.rows, args.length, MINILM.vocab_size).batch(0)
    states, programs = {}, {}
    for way in itertools.product(LOOPS, REMATS):
        run, optimizer, model = step_of(c, MINILM, jnp.dtype("float32"), way[1], way[0])
        if not states:
            params = jax.jit(model.init)(jax.random.key(0), example_batch())["params"]
        programs[way] = jax.jit(run)
        states[way] = TrainState(jnp.int32(0), params, jax.jit(optimizer.init)(params))
        jax.block_until_ready(programs[way](states[way], batch))
    seconds = []
    for _ in range(args.rounds):
        times = []
        for way, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(states[way], batch))
            times.append(time.perf_counter() - began)
        seconds.append(times)
    ratios = np.array(seconds) / np.array(seconds)[:, :1]
    lines = [
        {
            "layer_loop": loop, "remat": remat, "rows": args.rows, "length": args.length,
            "ratio": round(float(np.median(r)), 2),
            "least": round(float(r.min()), 2), "most": round(float(r.max()), 2),
            "rounds": args.rounds, "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 1), "jax": jax.__version__,
        }
        for (loop, remat), r in zip(programs, ratios.T, strict=True)
    ]  # fmt: skip
    with (Path(__file__).parent / "steps.jsonl").open("a") as file:
        for line in lines:
            print(json.dumps(line))
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
