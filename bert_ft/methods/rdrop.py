"""R-Drop (Liang et al. 2021, eq. 2 to 4): each example is read twice under different dropout, and
the two outputs p and q are pulled together: (L_p + L_q) / 2 + alpha (D(p, q) + D(q, p)) / 2.

The paper adds L_p and L_q; their mean, which its code for classification takes, leaves the learning
rate as it was. D is the task's `divergence`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from bert_ft.methods.method import Method, Run, Sums
from bert_ft.models.bert import Batch

STREAM = 0x5244  # of the step's rng: what no other method draws from


class RDrop(Method):
    """Two passes a step."""

    name = "rdrop"

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        alpha = self.knobs.alpha

        def twice(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
            assert rng is not None
            p = run(params, batch, rng)
            q = run(params, batch, jax.random.fold_in(rng, STREAM))
            far = task.divergence(p.outputs, q.outputs, batch)
            far = (far + task.divergence(q.outputs, p.outputs, batch)) / 2
            extra = jax.tree.map(lambda a, b: (a + b) / 2, p.extra, q.extra)
            total = (p.total + q.total) / 2 + alpha * far
            extra = {**extra, "rdrop_divergence": far}
            return dataclasses.replace(p, total=total, extra=extra)

        return twice
