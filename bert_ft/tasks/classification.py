"""Single-label classification of a text, or of a pair of texts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded
from bert_ft.data.rows import Rows, labels_in, require_apart
from bert_ft.errors import InputError
from bert_ft.evals import metrics
from bert_ft.models.bert import Batch
from bert_ft.models.heads import Outputs, SequenceHead
from bert_ft.tasks import divergence
from bert_ft.tasks.sequence import SequenceTask, shortest


def sorted_labels(values: set[str]) -> list[str]:
    """Numbers by value (then by their text, '1' before '1.0'), other labels by their text. One
    order for one set of labels: every process numbers them alike."""
    return sorted(values, key=lambda v: (float(v), v)) if are_numbers(values) else sorted(values)


def are_numbers(labels: Iterable[str]) -> bool:
    """Whether each can be read as a number other than NaN."""
    try:
        return not any(math.isnan(float(label)) for label in labels)
    except ValueError:
        return False


def every(fitted: Mapping[str, Any], key: str) -> list[str]:
    """The 'labels' or 'names' of training, and of some rows those that it lacks."""
    return [*fitted[key], *fitted.get("unseen", ())]


def effective_number(counts: np.ndarray, beta: float) -> np.ndarray:
    """(1 - beta^n) / (1 - beta): of n examples, as many as do not overlap (Cui et al. 2019, eq. 3);
    between 1, for beta 0, and n, for beta near 1."""
    return (1 - beta ** np.asarray(counts, np.float64)) / (1 - beta)


def class_weights(
    text: str, counts: np.ndarray, total: int, labels: list[str], beta: float
) -> list[float]:
    """task.class_weights -> a weight a label; [] is none. 'balanced' is total / (labels x count)
    (King & Zeng 2001; scikit-learn's rule), so that every label has the same share of the loss;
    'effective' is in proportion to 1 / effective_number, of the mean 1 (Cui et al. 2019, 3.3).
    Raises InputError where their number is not that of the labels."""
    if not text:
        return []
    if text == "effective":
        inverse = 1 / effective_number(counts, beta)
        return [float(w) for w in inverse * len(labels) / inverse.sum()]
    if text == "balanced":
        return [float(total / (len(counts) * c)) for c in counts]
    weights = [float(part) for part in text.split(",")]
    if len(weights) != len(labels):
        raise InputError(
            f"config.task.class_weights gives {len(weights)} weights for {len(labels)} labels: "
            f"{', '.join(labels[:20])}"
        )
    return weights


def cross_entropy(
    logits_BxC: jax.Array,
    labels_B: jax.Array,
    weights: jax.Array | None,
    smoothing: jax.Array | float,
) -> tuple[jax.Array, jax.Array]:
    """(loss, weight) of each example, float32 (B,): sum(loss) / sum(weight) is the mean of torch's
    `cross_entropy(logits, labels, weights, label_smoothing=smoothing)`.

    Smoothing (Szegedy et al. 2016, section 7) mixes the one-hot target with the uniform one; a
    class weight multiplies its own term of the sum over classes, and an example counts as much as
    its label's weight.
    """
    log_p = jax.nn.log_softmax(logits_BxC)
    loss = -jnp.take_along_axis(log_p, labels_B[:, None], axis=1)[:, 0]
    counted = jnp.ones_like(loss)
    if weights is not None:
        counted = weights[labels_B]
        loss = loss * counted
    if isinstance(smoothing, jax.Array) or smoothing:  # a trial's own is an array
        terms = log_p if weights is None else log_p * weights
        loss = (1 - smoothing) * loss - smoothing * jnp.mean(terms, axis=1)
    return loss, counted


class Classification(SequenceTask):
    """Labels are the values of `data.label` in the training rows, numbers in numerical order,
    others in alphabetical; `task.label_names` gives numbers names, in that order."""

    name = "classification"
    metric = "accuracy"  # the one that 'best' means
    problem_type = "single_label_classification"  # to transformers
    chosen_by = ("margin", "entropy", "badge", "k_centre")
    knobs: ClassVar = {"task.label_smoothing": "smoothing"}  # that trials may differ in

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.names = [n.strip() for n in config.task.label_names.split(",") if n.strip()]
        self.weighting, self.beta = config.task.class_weights, config.task.class_beta
        self.smoothing = config.task.label_smoothing
        self.positive = config.task.positive_label
        self.score_unseen = config.task.unseen_labels == "score"

    def signature(self) -> dict[str, Any]:
        more: dict[str, Any] = {"weights": self.weighting, "positive": self.positive}
        more["beta"] = self.beta if self.weighting == "effective" else 0
        more["unseen"] = self.score_unseen
        return {**super().signature(), "names": self.names, **{k: v for k, v in more.items() if v}}

    def _labels(self, rows: Rows) -> list[str]:
        return [str(v) for v in labels_in(rows, self.label)]

    def fit(self, rows: Rows) -> dict[str, Any]:
        values = self._labels(rows)
        labels = sorted_labels(set(values))
        require_apart(labels, f"{rows.origin}: column {self.label!r}")
        if len(labels) < 2:
            raise InputError(
                f"{rows.origin}: column {self.label!r} has one label only ({labels[0]!r}); "
                "at least 2"
            )
        if self.names and len(self.names) != len(labels):
            raise InputError(
                f"config.task.label_names gives {len(self.names)} names ({', '.join(self.names)}) "
                f"for {len(labels)} labels of {rows.origin}: {', '.join(labels[:20])}"
            )
        if self.names and not are_numbers(labels) and self.names != labels:
            raise InputError(
                f"config.task.label_names is {', '.join(self.names)}, names for numbers; the "
                f"labels of {rows.origin} have their own: {', '.join(labels[:20])}; set "
                "config.task.label_names='' to keep them"
            )
        names = self.names or labels
        if len(set(names)) < len(names):
            raise InputError(
                f"config.task.label_names is {', '.join(names)}; accepted: another name for each "
                f"of the labels {', '.join(labels[:20])}"
            )
        fitted = {"labels": labels, "names": names}
        self._require_positive(fitted)
        count = Counter(values)
        counts = np.asarray([count[label] for label in labels])
        weights = class_weights(self.weighting, counts, len(values), labels, self.beta)
        return {**fitted, "weights": weights} if weights else fitted

    def about(self, rows: Rows, fitted: Mapping[str, Any]) -> Mapping[str, Any]:
        """With 'unseen', where those are scored: the labels of these rows that training lacks."""
        self._require_positive(fitted)  # of an evaluation it may be another
        if not self.score_unseen or self.label not in rows.columns:
            return fitted
        unseen = sorted({*self._labels(rows)} - {*fitted["labels"]})
        if alike := [label for label in unseen if label in fitted["names"]]:
            raise InputError(
                f"{rows.origin}: label {alike[0]!r} is not among the training labels "
                f"({', '.join(fitted['labels'][:20])}), but the name of one of them; accepted: "
                "their labels, or other config.task.label_names"
            )
        return {**fitted, "unseen": unseen}

    def _require_positive(self, fitted: Mapping[str, Any]) -> None:
        if self.positive and self.positive not in fitted["names"]:
            raise InputError(
                f"config.task.positive_label is {self.positive!r}; accepted: "
                f"{', '.join(map(repr, fitted['names'][:20]))}"
            )

    def targets(self, rows: Rows, fitted: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """label int32 (N,): its number, from len(fitted['labels']) on where training lacks it."""
        number = {label: i for i, label in enumerate(every(fitted, "labels"))}
        labels = self._labels(rows)
        require_apart(
            sorted({*number, *labels}), f"{rows.origin}: column {self.label!r}, with training's"
        )
        for i, label in enumerate(labels):
            if label not in number:
                raise InputError(
                    f"{rows.where(i)}: label {label!r} is not among the training labels: "
                    f"{', '.join(map(repr, fitted['labels'][:20]))}; with "
                    "config.task.unseen_labels='score' it counts as wrong"
                )
        return {"label": np.asarray([number[label] for label in labels], np.int32)}

    def head(self, fitted: Mapping[str, Any]) -> partial:
        weights = tuple(fitted.get("weights", ()))
        return partial(SequenceHead, len(fitted["labels"]), class_weights=weights)

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over examples of the cross entropy, their number, sums of further train metrics).
        With class weights an example counts as much as its label's weight, in all three: one of a
        label that weighs 0 has no loss, though smoothing would give it some."""
        logits, weights = outputs["logits"], outputs.get("class_weights")
        loss, counted = cross_entropy(logits, batch["label"], weights, self.smoothing)
        right = (jnp.argmax(logits, axis=1) == batch["label"]).astype(jnp.float32)
        name = "accuracy" if weights is None else "weighted_accuracy"
        loss = jnp.where(counted > 0, loss, 0.0) * batch["weight"]
        counted = counted * batch["weight"]
        # A batch of such examples alone has the loss 0, not 0/0; one of none has the number 0, by
        # which several tasks know that it is not theirs.
        count = jnp.maximum(jnp.sum(counted), 1e-6 * jnp.sum(batch["weight"]))
        return jnp.sum(loss), count, {name: jnp.sum(right * counted)}

    def log_likelihoods(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(log p of the label, weight), float32 (B,) each: without smoothing the loss is minus the
        sum of their products."""
        log_p = jax.nn.log_softmax(outputs["logits"])
        of_label = jnp.take_along_axis(log_p, batch["label"][:, None], axis=1)[:, 0]
        return of_label, self._counted(outputs, batch)

    def _counted(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """float32 (B,): for how many an example counts."""
        weights = outputs.get("class_weights")
        return batch["weight"] if weights is None else weights[batch["label"]] * batch["weight"]

    def divergence(
        self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0
    ) -> jax.Array:
        """Sum over examples, counted as in the loss, of KL(p || q)."""
        far = divergence.categorical(p["logits"], q["logits"], temperature)
        return jnp.sum(far * self._counted(q, batch))

    def guesses_of(self, outputs: Outputs) -> tuple[jax.Array, jax.Array]:
        """(log p of the likeliest side of each decision, float32 (B, decisions), here one: the
        likeliest label; what a decision counts in the loss, float32 ())."""
        log_p = jax.nn.log_softmax(outputs["logits"])
        return jnp.max(log_p, axis=1, keepdims=True), jnp.float32(1.0)

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Arrays of one entry an example, computed on the device."""
        return {"probabilities": jax.nn.softmax(outputs["logits"])}

    def beliefs(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """What rows to label are chosen by, in one of the ways `chosen_by`: 'probabilities' (B, C),
        or (B, decisions, C), and the vectors that the last layer reads, 'pooled' (B, H)."""
        return {**self.predict(outputs, batch), "pooled": outputs["pooled"]}

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        """{metric: value} over the whole set; predicted arrays are in the set's order. A label that
        training lacks is wrong whatever is predicted, a class of its own in f1_macro, and not in
        the loss and brier; 'unseen' counts them. Of two labels, or a positive one, f1 and auc, the
        area under the ROC curve, too."""
        p, label = predicted["probabilities"], np.asarray(data.fields["label"])
        guess, classes = p.argmax(axis=1), p.shape[1]
        confusion = metrics.confusion_matrix(label, guess, len(every(data.fitted, "names")))
        seen = label < classes
        loss, brier = math.nan, math.nan
        if seen.any():
            loss = metrics.negative_log_likelihood(label[seen], p[seen])
            brier = metrics.brier(label[seen], p[seen])
        scores = {
            "accuracy": metrics.accuracy(label, guess),
            "f1_macro": metrics.macro_f1(confusion),
            "mcc": metrics.matthews_correlation(confusion),
            "ece": metrics.calibration(label, p).ece,
            "brier": brier,
            "loss": loss,
        }
        if self.score_unseen:
            scores["unseen"] = float(np.sum(~seen))
        names = list(data.fitted["names"])
        if classes == 2 or self.positive:
            positive = names.index(self.positive) if self.positive else 1
            scores["f1"] = metrics.binary_f1(label, guess, positive)
            scores["auc"] = metrics.auc(label == positive, p[:, positive])
        return scores

    def label_of(self, data: Encoded, i: int) -> str:
        return every(data.fitted, "names")[int(data.fields["label"][i])]

    def guess_of(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, i: int
    ) -> dict[str, Any]:
        names, p = data.fitted["names"], predicted["probabilities"][i]
        # All digits of a float32: rounded ones are alike where a model is sure, and AUC another.
        probabilities = {n: shortest(v) for n, v in zip(names, p, strict=True)}
        return {"prediction": names[int(p.argmax())], "probabilities": probabilities}

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        sure = answer["probabilities"][answer["prediction"]]
        label = answer.get("label", "-")
        return f"{answer['prediction']} ({sure:.0%}; label {label}): {self.shown(answer)}"
