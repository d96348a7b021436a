"""Exact evaluation: every example once, on any number of devices; the number seen is asserted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bert_ft.data.batches import EvalPlan
from bert_ft.data.prefetch import prefetch
from bert_ft.train import phases, preemption
from bert_ft.train.sharding import place
from bert_ft.train.step import Programs


def results(
    programs: Programs, params: Any, plan: EvalPlan, mesh: Mesh, depth: int = 2
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(the examples of a step, -1 for none; what the program gives for them), step by step.

    The results of one step are fetched after the next was dispatched, so the device never waits.
    """
    preemption.leave_if_due()
    with (
        phases.within("compilation", "the compilation of the evaluation step"),
        closing(_batches(plan, mesh, range(1), 1)) as batches,
    ):
        programs.compile(params, next(batches))
    seen = np.zeros(len(plan.data), np.int32)

    def fetched(step: int, result: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        examples = plan.order[step]
        np.add.at(seen, examples[examples >= 0], 1)
        return examples, jax.device_get(dict(result))

    last = None
    with (
        phases.within("evaluation", f"an evaluation of {len(plan.data)} examples"),
        closing(_batches(plan, mesh, range(plan.steps), depth)) as batches,
    ):
        for step, batch in enumerate(batches):
            preemption.leave_if_due()
            result = programs(params, batch)
            if last is not None:
                yield fetched(*last)
            last = (step, result)
        if last is not None:
            yield fetched(*last)
    assert (seen == 1).all(), (
        f"{(seen != 1).sum()} of {len(seen)} examples were not evaluated exactly once"
    )


def predictions(
    programs: Programs, params: Any, plan: EvalPlan, mesh: Mesh, depth: int = 2
) -> dict[str, np.ndarray]:
    """What the task predicts for each example of the plan's data, (N, …), in the data's order."""
    out: dict[str, np.ndarray] = {}
    for examples, found in results(programs, params, plan, mesh, depth):
        real = examples >= 0
        for name, value in found.items():
            if name not in out:
                out[name] = np.zeros((len(plan.data), *value.shape[1:]), value.dtype)
            out[name][examples[real]] = value[real]
    return out


def _batches(plan: EvalPlan, mesh: Mesh, steps: range, depth: int) -> Any:
    return prefetch(
        lambda step: place(lambda rows: plan.batch(step, rows), plan.shape, mesh), steps, depth
    )
