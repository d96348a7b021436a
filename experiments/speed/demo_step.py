"""The train step of configs/sentiment.py, compiled, with batches of one shape made beforehand."""

from __future__ import annotations

import tempfile
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_ft.data.batches import Shape
from bert_ft.train import loop, optim
from bert_ft.train.sharding import place
from bert_ft.train.start import checkpoints, initial_state
from bert_ft.train.step import Programs, TrainState
from bert_ft.train.system import assemble


def demo_step(config: ConfigDict, count: int) -> tuple[Programs, TrainState, list[Any], Shape]:
    """(the compiled step, its first state, `count` batches, their shape: the most common one)."""

    def quiet(_: str) -> None:
        pass

    system = assemble(config, quiet, sets=("train",))
    total = loop.total_steps(config, len(system.sets["train"]))
    plan = loop.batch_plan(system, total)
    rows = Counter(plan.shape(s).rows for s in range(total)).most_common(1)[0][0]
    alike = list(islice((s for s in range(total) if plan.shape(s).rows == rows), count))
    with (
        tempfile.TemporaryDirectory() as scratch,
        checkpoints(config, Path(scratch), quiet) as saved,
    ):
        state, _ = initial_state(system, optim.make_optimizer(config, total), saved, quiet)
    programs = loop.train_programs(system, total, state)
    batches = [
        place(lambda mine, step=step: plan.batch(step, mine), plan.shape(step), system.mesh)
        for step in alike
    ]
    programs.compile(state, batches[0])
    return programs, state, batches, plan.shape(alike[0])
