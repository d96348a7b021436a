"""Knowledge distillation (Hinton, Vinyals & Dean 2015, section 2): (1 - w) L + w T^2 KL(p || q), p
and q being what teacher and student say at temperature T, each by its logits / T.

The teacher is another run; it reads each training example once, without dropout, before the first
step (train/teacher.py), and what the task has told of its outputs are fields of the batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from bert_ft.methods.method import Method, Run, Sums
from bert_ft.models.bert import Batch

TEACHER = "teacher/"  # of a batch: float32 (B, …), under this and the name that the task gives it


def field_of(told: str) -> str:
    """Where an example has what a task tells as `told`: teacher/NAME; of a part PART/teacher/NAME,
    which is teacher/NAME in the batch as the part sees it."""
    part, slash, name = told.rpartition("/")
    return f"{part}{slash}{TEACHER}{name}"


class Distil(Method):
    """The divergence is the task's, which multiplies by T^2 where T means something."""

    name = "distil"
    of_part = True

    def objective(self, run: Run, task: Any, model: Any) -> Run:
        k = self.knobs

        def taught(params: Any, batch: Batch, rng: jax.Array | None) -> Sums:
            made = run(params, batch, rng)
            said = {k[len(TEACHER) :]: v for k, v in batch.items() if k.startswith(TEACHER)}
            teacher = {**made.outputs, **said}
            far = task.divergence(teacher, made.outputs, batch, k.temperature)
            total = (1 - k.weight) * made.total + k.weight * far
            extra = {**made.extra, "distil_divergence": far}
            return dataclasses.replace(made, total=total, extra=extra)

        return taught
