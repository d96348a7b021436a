"""Memory and compile time of a train step, by config.model.remat and config.model.layer_loop.

python -m experiments.remat.measure [--platform=tpu] [--lengths=128,512]

BERT-base with a sequence head, AdamW, dropout 0.1, 32 rows of one example each a device. On a CPU
in float32, one device; with --platform=tpu for a v5e chip in bfloat16, eight of them under data
parallelism, compiled ahead of time by libtpu (no TPU is needed, `pip install libtpu` is). Nothing
is run: the bytes are the compiler's own (`memory_analysis`), of one device. Seconds are processor
seconds of all threads, which other work on the machine does not count into. One line a case is
appended to compiled.jsonl; a case that is there is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
REMATS, LOOPS = ("none", "dots", "layer"), ("loop", "scan")
ROWS = 32


def plan_of(rows: int, length: int, vocab: int) -> Any:
    """Batches of `rows` examples that fill a row each."""
    from bert_ft.data.batches import BatchPlan
    from bert_ft.data.encode import Encoded

    data = Encoded(
        tokens=np.random.default_rng(0).integers(1, vocab, rows * length).astype(np.int32),
        types=np.zeros(rows * length, np.int8),
        offsets=np.arange(rows + 1, dtype=np.int64) * length,
        row=np.arange(rows, dtype=np.int64),
        truncated=np.zeros(rows, bool),
        fields={"label": np.zeros(rows, np.int32)},
        token_fields={},
        pieces=1,
        fitted={"labels": ["0", "1"], "names": ["0", "1"]},
        source_rows=rows,
    )
    return BatchPlan(data, rows, 100, length, seed=0, at_most=1)


def step_of(c: Any, sizes: Any, dtype: Any, remat: str, loop: str) -> Any:
    """(the train step of (state, batch), its optimizer, its model)."""
    from bert_ft.models.heads import Model, SequenceHead
    from bert_ft.tasks.classification import Classification
    from bert_ft.train import optim
    from bert_ft.train.step import train_step

    model = Model(sizes, partial(SequenceHead, 2), dtype, remat, loop)
    optimizer = optim.make_optimizer(c, 100)
    run = partial(
        train_step,
        model=model,
        task=Classification(c),
        optimizer=optimizer,
        schedule=optim.schedule(c, 100),
        rate=0.1,
        seed=0,
        accumulate=1,
    )
    return run, optimizer, model


def compiled(platform: str, length: int, remat: str, loop: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import AxisType, Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from bert_ft import config
    from bert_ft.mesh_rules import AXES
    from bert_ft.models.bert import EncoderConfig
    from bert_ft.train.sharding import ROWS as ROW_AXES
    from bert_ft.train.sharding import abstract, replicated, row_shards
    from bert_ft.train.step import TrainState
    from bert_ft.train.system import example_batch

    devices = jax.devices()[:1]
    if platform == "tpu":
        devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    mesh = Mesh(np.asarray(devices).reshape(1, -1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 4)
    c, sizes = config.default(), EncoderConfig()
    run, optimizer, model = step_of(
        c, sizes, jnp.dtype("bfloat16" if platform == "tpu" else "float32"), remat, loop
    )
    plan = plan_of(ROWS * row_shards(mesh), length, sizes.vocab_size)

    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    moments = jax.eval_shape(optimizer.init, shapes)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), shapes, moments)
    state = abstract(state, mesh, "replicate")
    by_row, whole = NamedSharding(mesh, P(ROW_AXES)), replicated(mesh)
    batch = {
        k: jax.ShapeDtypeStruct(
            v.shape, v.dtype, sharding=by_row if k in plan.shape(0).row_arrays else whole
        )
        for k, v in plan.batch(0).items()
    }
    out = (jax.tree.map(lambda s: s.sharding, state), whole)
    began = time.process_time()
    lowered = jax.jit(run, out_shardings=out, donate_argnums=0).lower(state, batch)
    traced = time.process_time()
    times = {"trace_cpu_s": round(traced - began, 1)}
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as e:  # libtpu knows the chip's memory
        needed = re.search(r"temporaries \(([\d.]+)G\) exceeds", str(e))
        if needed is None:
            raise
        return times | {"temporary_bytes": int(float(needed[1]) * 2**30), "fits": False}
    memory = done.memory_analysis()
    return times | {
        "compile_cpu_s": round(time.process_time() - traced, 1),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "instructions": done.as_text().count(" = "),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--platform", choices=("cpu", "tpu"), default="cpu")
    parser.add_argument("--lengths", default="128,512")
    args = parser.parse_args()
    # The process itself stays on the CPU; libtpu only compiles. What it says of the chip's memory
    # where a step doesn't fit is kept: 'fits' is then false.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    import jax

    out = HERE / "compiled.jsonl"
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    for length, loop, remat in itertools.product(map(int, args.lengths.split(",")), LOOPS, REMATS):
        case = {"platform": args.platform, "length": length, "remat": remat, "layer_loop": loop}
        if any(case.items() <= line.items() for line in known):
            continue
        line = case | compiled(**{("loop" if k == "layer_loop" else k): v for k, v in case.items()})
        line |= {"rows": ROWS, "jax": jax.__version__, "load": round(os.getloadavg()[0], 1)}
        print(json.dumps(line), flush=True)
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
