"""Regression: a number for a text or a pair of texts, such as a similarity or a rating."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded
from bert_ft.data.sources import Rows
from bert_ft.errors import InputError
from bert_ft.evals import metrics
from bert_ft.models.bert import Batch
from bert_ft.models.heads import Outputs, SequenceHead
from bert_ft.tasks.sequence import SequenceTask, number_in, range_of, shortest

FINEST = 1e-3  # of the labels' standard deviation: what their rounding to float32 may be


class Regression(SequenceTask):
    """Squared error of `data.label`, a number within `task.range`.

    The model's own unit is the label less `mean`, over `scale`. Under
    `task.label_scaling='standard'` those are of the training rows, so that the head begins at the
    mean and no learning rate depends on the label's unit. Scores and answers are in that unit;
    predictions are not clipped to the range. So are the outputs of an exported model, and a head of
    one output that a run begins with is taken to be; an adapter in the form of peft keeps the
    model's own unit, and export.json has both numbers.
    """

    name = "regression"
    metric = "pearson"
    problem_type = "regression"  # to transformers
    chosen_by: tuple[str, ...] = ("k_centre",)

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.low, self.high = range_of(config.task.range)
        self.scaling = config.task.label_scaling

    def signature(self) -> dict[str, Any]:
        # As text: infinities are no JSON.
        return {**super().signature(), "range": f"{self.low},{self.high}", "scaling": self.scaling}

    def numbers(self, rows: Rows) -> np.ndarray:
        """float64 (N,)."""
        values = enumerate(rows.column(self.label))
        return np.asarray(
            [number_in(rows, self.label, i, v, self.low, self.high) for i, v in values]
        )

    def fit(self, rows: Rows) -> dict[str, Any]:
        numbers = self.numbers(rows)
        if (numbers == numbers[0]).all():
            raise InputError(
                f"{rows.origin}: column {self.label!r} has one value only ({numbers[0]:g})"
            )
        most, spread = np.abs(numbers).max(), numbers.std()
        if (step := np.spacing(np.float32(most))) > FINEST * spread:
            raise InputError(
                f"{rows.origin}: column {self.label!r} has numbers up to {most:g} "
                f"that differ by {spread:g} (standard deviation), and float32 keeps them to "
                f"{step:g}; accepted: the same numbers less what they have in common, such as "
                f"{numbers.mean():g}"
            )
        if self.scaling == "none":
            return {"mean": 0.0, "scale": 1.0}
        return {"mean": float(numbers.mean()), "scale": float(spread)}

    def targets(self, rows: Rows, fitted: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """label, in its own unit, and target, in the model's: float32 (N,)."""
        numbers = self.numbers(rows)
        target = (numbers - fitted["mean"]) / fitted["scale"]
        return {"label": numbers.astype(np.float32), "target": target.astype(np.float32)}

    def head(self, fitted: Mapping[str, Any]) -> partial:
        return partial(SequenceHead, 1)

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over examples of the squared error in the model's unit, their number, {})."""
        error, weight = outputs["logits"][:, 0] - batch["target"], batch["weight"]
        return jnp.sum(jnp.square(error) * weight), jnp.sum(weight), {}

    def divergence(
        self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0
    ) -> jax.Array:
        """Sum over examples of the squared difference, which no temperature changes."""
        far = jnp.square(p["logits"] - q["logits"])[:, 0]
        return jnp.sum(far * batch["weight"])

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """value float32 (B,), in the model's unit."""
        return {"value": outputs["logits"][:, 0]}

    def beliefs(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """As classification's, but a number is no probability."""
        return {"pooled": outputs["pooled"]}

    def values(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> np.ndarray:
        """float64 (N,): predictions in the label's unit."""
        fitted = data.fitted
        return predicted["value"].astype(np.float64) * fitted["scale"] + fitted["mean"]

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        return number_scores(np.asarray(data.fields["label"]), self.values(predicted, data))

    def label_of(self, data: Encoded, i: int) -> float:
        return shortest(data.fields["label"][i])

    def guess_of(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, i: int
    ) -> dict[str, Any]:
        value = self.values({"value": predicted["value"][i : i + 1]}, data)[0]
        # All digits: rounded, values that hardly differ correlate otherwise.
        return {"prediction": float(value)}

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        return (
            f"{brief(answer['prediction'])} (label {answer.get('label', '-')}): "
            f"{self.shown(answer)}"
        )


def brief(value: float) -> str:
    """For a line of the terminal: 3.81, or 4.86e-07."""
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.3g}"


def number_scores(labels: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Pearson and Spearman correlation, RMSE and MAE, over the whole set."""
    return {
        "pearson": metrics.pearson(labels, values),
        "spearman": metrics.spearman(labels, values),
        "rmse": metrics.rmse(labels, values),
        "mae": metrics.mae(labels, values),
    }
