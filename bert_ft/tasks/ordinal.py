"""Ordinal regression: ranks, such as ratings of 1 to 5, by CORAL (Cao et al. 2020)."""

from __future__ import annotations

from collections import Counter
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
from bert_ft.models.heads import CoralHead, Outputs
from bert_ft.tasks import divergence
from bert_ft.tasks.regression import number_scores
from bert_ft.tasks.sequence import SequenceTask, number_in, range_of


class Ordinal(SequenceTask):
    """Ranks are the distinct numbers of `data.label` in the training rows, rising; with
    `task.range` all whole numbers within it, whether a training row has them or not. Answers have
    them as text, which probabilities are named by."""

    name = "ordinal"
    metric = "accuracy"
    chosen_by = ("margin", "entropy", "k_centre")

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.low, self.high = range_of(config.task.range)

    def signature(self) -> dict[str, Any]:
        return {**super().signature(), "range": f"{self.low},{self.high}"}

    def numbers(self, rows: Rows) -> list[float]:
        values = enumerate(rows.column(self.label))
        return [number_in(rows, self.label, i, v, self.low, self.high) for i, v in values]

    def fit(self, rows: Rows) -> dict[str, Any]:
        """ranks: their values, rising. biases: of a head that says of every text what share of the
        training rows has a higher rank, each rank counted once more than it occurs (Laplace)."""
        numbers = self.numbers(rows)
        ranks = sorted(set(numbers))
        if np.isfinite(self.low):
            ranks = [float(r) for r in range(int(np.ceil(self.low)), int(self.high) + 1)]
        if len(ranks) < 2:
            raise InputError(
                f"{rows.origin}: column {self.label!r} has fewer than two ranks ({ranks}), which "
                "are its values or the whole numbers within config.task.range"
            )
        self.places(rows, ranks)
        count = Counter(numbers)
        counts = np.asarray([count[r] + 1 for r in ranks], np.float64)
        above = 1 - np.cumsum(counts)[:-1] / counts.sum()
        return {"ranks": ranks, "biases": [float(b) for b in np.log(above / (1 - above))]}

    def places(self, rows: Rows, ranks: list[float]) -> np.ndarray:
        """int32 (N,): each row's place among the ranks; InputError on a number that is none."""
        place = {rank: i for i, rank in enumerate(ranks)}
        numbers = self.numbers(rows)
        for i, number in enumerate(numbers):
            if number not in place:
                accepted = ", ".join(map(name_of, ranks[:20]))
                more = (
                    "; with config.task.range='LOW,HIGH' all whole numbers within it are ranks"
                    if np.isinf(self.low)
                    else ""
                )
                raise InputError(
                    f"{rows.where(i)}: {self.label} is {name_of(number)}; accepted: the ranks "
                    f"{accepted}{more}"
                )
        return np.asarray([place[n] for n in numbers], np.int32)

    def targets(self, rows: Rows, fitted: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """label int32 (N,): the place of its rank."""
        return {"label": self.places(rows, fitted["ranks"])}

    def head(self, fitted: Mapping[str, Any]) -> partial:
        return partial(CoralHead, tuple(fitted["biases"]))

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over examples of equation 4 with all importances 1, their number, sums of hits): the
        binary cross entropies of 'the rank is above k', summed over k."""
        logits, label, weight = outputs["logits"], batch["label"], batch["weight"]
        above = (label[:, None] > jnp.arange(logits.shape[1])).astype(jnp.float32)
        terms = above * jax.nn.log_sigmoid(logits) + (1 - above) * jax.nn.log_sigmoid(-logits)
        right = jnp.sum(logits > 0, axis=1) == label
        total = -jnp.sum(jnp.sum(terms, axis=1) * weight)
        return total, jnp.sum(weight), {"accuracy": jnp.sum(right * weight)}

    def divergence(
        self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0
    ) -> jax.Array:
        """Sum over examples of KL(p || q) of 'the rank is above k', summed over k."""
        far = jnp.sum(divergence.bernoulli(p["logits"], q["logits"], temperature), axis=1)
        return jnp.sum(far * batch["weight"])

    def guesses_of(self, outputs: Outputs) -> tuple[jax.Array, jax.Array]:
        """As classification's: each 'the rank is above k' is a decision, of which the loss has the
        sum."""
        return jax.nn.log_sigmoid(jnp.abs(outputs["logits"])), jnp.float32(1.0)

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """above float32 (B, ranks - 1): P(rank > k), falling in k."""
        return {"above": jax.nn.sigmoid(outputs["logits"])}

    def beliefs(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """As classification's, of the ranks. The ranks share the last layer's weights, so there is
        no gradient of a rank's own, which BADGE asks for."""
        above = jax.nn.sigmoid(outputs["logits"])
        ends = jnp.pad(jnp.pad(above, ((0, 0), (1, 0)), constant_values=1.0), ((0, 0), (0, 1)))
        return {"probabilities": ends[:, :-1] - ends[:, 1:], "pooled": outputs["pooled"]}

    def guesses(self, predicted: Mapping[str, np.ndarray]) -> np.ndarray:
        """int64 (N,): the rank's place, how many of P(rank > k) are above one half (eq. 1)."""
        return (predicted["above"] > 0.5).sum(axis=1)

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        ranks = np.asarray(data.fitted["ranks"])
        label, guess = np.asarray(data.fields["label"]), self.guesses(predicted)
        confusion = metrics.confusion_matrix(label, guess, len(ranks))
        return {
            "accuracy": metrics.accuracy(label, guess),
            "f1_macro": metrics.macro_f1(confusion),
            **number_scores(ranks[label], ranks[guess]),
        }

    def label_of(self, data: Encoded, i: int) -> str:
        return name_of(data.fitted["ranks"][int(data.fields["label"][i])])

    def guess_of(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, i: int
    ) -> dict[str, Any]:
        names = [name_of(r) for r in data.fitted["ranks"]]
        above = predicted["above"][i].astype(np.float64)
        p = -np.diff(np.concatenate([[1.0], above, [0.0]]))
        guess = names[int(self.guesses({"above": predicted["above"][i : i + 1]})[0])]
        probabilities = {n: round(float(v), 6) for n, v in zip(names, p, strict=True)}
        return {"prediction": guess, "probabilities": probabilities}

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        return f"{answer['prediction']} (label {answer.get('label', '-')}): {self.shown(answer)}"


def name_of(rank: float) -> str:
    """The shortest decimal that is this number and no other: '4', '2.5'."""
    return str(int(rank)) if float(rank).is_integer() else repr(float(rank))
