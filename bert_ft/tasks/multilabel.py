"""Multi-label classification: any number of labels for a text, each with a threshold of its own."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import tokenize
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded
from bert_ft.data.rows import require_apart
from bert_ft.data.sources import Rows
from bert_ft.errors import InputError
from bert_ft.evals import metrics
from bert_ft.models.bert import Batch
from bert_ft.models.heads import Outputs, SequenceHead
from bert_ft.tasks import divergence
from bert_ft.tasks.classification import class_weights, effective_number, every, sorted_labels
from bert_ft.tasks.sequence import SequenceTask

READ = 2  # part of a cached set's key: raise it when the same cells are read as other labels


class MultiLabel(SequenceTask):
    """`data.label` holds a list of labels (JSON), or one string of them with `task.label_delimiter`
    between; an empty one is a text that no label fits.

    With `task.unseen_labels='score'` a label of dev or test that training lacks is one that is
    never predicted: a miss in f1_micro, recall and exact_match, a label of F1 0 in f1_macro; it is
    not in the loss, and 'unseen' counts how often it stands there.

    A label is predicted where its sigmoid reaches its threshold. `tune` chooses the thresholds on
    dev once training is over, and they are kept with the model; until then, and without a dev set,
    they are 0.5.
    """

    name = "multilabel"
    metric = "f1_micro"
    problem_type = "multi_label_classification"  # to transformers
    chosen_by = ("margin", "entropy", "badge", "k_centre")

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        self.delimiter = config.task.label_delimiter
        self.weighting, self.beta = config.task.class_weights, config.task.class_beta
        self.score_unseen = config.task.unseen_labels == "score"

    def signature(self) -> dict[str, Any]:
        more = {"delimiter": self.delimiter, "weights": self.weighting, "read": READ}
        if self.weighting == "effective":
            more["beta"] = self.beta
        if self.score_unseen:
            more["unseen"] = True
        return {**super().signature(), **more}

    def label_sets(self, rows: Rows) -> list[set[str]]:
        """Each row's labels. Raises InputError where a row's are neither a list nor a string."""
        out = []
        for i, value in enumerate(rows.column(self.label)):
            said = value
            if isinstance(value, str) and re.fullmatch(r"\s*\[.*\]\s*", value, re.DOTALL):
                value = _written_list(value)
            elif isinstance(value, str):
                value = value.split(self.delimiter)
            if not isinstance(value, list) or not all(isinstance(v, str | int) for v in value):
                raise InputError(
                    f"{rows.where(i)}: {self.label} is {said!r}; accepted: a list of labels, as "
                    "JSON or Python write it where it is a cell's text, or a string of them with "
                    f"{self.delimiter!r} between (config.task.label_delimiter)"
                )
            out.append({str(v).strip() for v in value} - {""})
        return out

    def fit(self, rows: Rows) -> dict[str, Any]:
        sets = self.label_sets(rows)
        labels = sorted_labels(set().union(*sets))
        if not labels:
            raise InputError(f"{rows.origin}: column {self.label!r} has no label in any row")
        require_apart(labels, f"{rows.origin}: column {self.label!r}")
        count = Counter(label for s in sets for label in s)
        counts = np.asarray([count[label] for label in labels])
        # Of a label's own two classes: its positives weigh as much as its negatives.
        text, misses = self.weighting, len(sets) - counts
        if text == "balanced":
            text = ",".join(
                str(miss / hit or 1.0) for miss, hit in zip(misses, counts, strict=True)
            )
        elif text == "effective":
            ratio = effective_number(misses, self.beta) / effective_number(counts, self.beta)
            text = ",".join(str(r or 1.0) for r in ratio)
        weights = class_weights(text, counts, len(sets), labels, self.beta)
        fitted = {"labels": labels, "weights": weights}
        return {**fitted, "positives": (counts / len(sets)).tolist()} if weights else fitted

    def about(self, rows: Rows, fitted: Mapping[str, Any]) -> Mapping[str, Any]:
        """As classification's."""
        if not self.score_unseen or self.label not in rows.columns:
            return fitted
        unseen = sorted(set().union(*self.label_sets(rows)) - {*fitted["labels"]})
        return {**fitted, "unseen": unseen}

    def targets(self, rows: Rows, fitted: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """label int8 (N, labels): 1 where a row has the label; those that training lacks stand
        behind the others."""
        number = {label: i for i, label in enumerate(every(fitted, "labels"))}
        sets = self.label_sets(rows)
        new = sorted(set().union(*sets) - {*fitted["labels"]})
        where = f"{rows.origin}: column {self.label!r}, with training's"
        require_apart([*fitted["labels"], *new], where)
        out = np.zeros((len(rows), len(number)), np.int8)
        for i, labels in enumerate(sets):
            for label in sorted(labels):
                if label not in number:
                    raise InputError(
                        f"{rows.where(i)}: label {label!r} is not among the training labels: "
                        f"{', '.join(map(repr, fitted['labels'][:20]))}; with "
                        "config.task.unseen_labels='score' it counts as missed"
                    )
                out[i, number[label]] = 1
        return {"label": out}

    def head(self, fitted: Mapping[str, Any]) -> partial:
        weights = tuple(fitted.get("weights", ()))
        return partial(SequenceHead, len(fitted["labels"]), class_weights=weights)

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over examples of the mean over labels of the binary cross entropy, their number,
        {}): torch's `binary_cross_entropy_with_logits`, class weights being its `pos_weight`."""
        log_p, weight = self.log_likelihoods(outputs, batch)
        return -jnp.sum(jnp.sum(log_p * weight, axis=1)), jnp.sum(batch["weight"]), {}

    def log_likelihoods(self, outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """(log p of each label's being there or not, as it is, and its weight), float32 (B, labels)
        each: the loss is minus the sum of their products."""
        logits, there = outputs["logits"], batch["label"] > 0
        log_p = jax.nn.log_sigmoid(jnp.where(there, logits, -logits))
        weights = outputs.get("class_weights", jnp.float32(1.0))
        share = batch["weight"][:, None] / logits.shape[1]
        return log_p, jnp.where(there, weights, 1.0) * share

    def divergence(
        self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0
    ) -> jax.Array:
        """Sum over examples of the mean over labels of KL(p || q)."""
        far = jnp.mean(divergence.bernoulli(p["logits"], q["logits"], temperature), axis=1)
        return jnp.sum(far * batch["weight"])

    def guesses_of(self, outputs: Outputs) -> tuple[jax.Array, jax.Array]:
        """As classification's: each label is a decision, there or not, of which the loss has the
        mean."""
        logits = outputs["logits"]
        return jax.nn.log_sigmoid(jnp.abs(logits)), jnp.float32(1 / logits.shape[1])

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        return {"probabilities": jax.nn.sigmoid(outputs["logits"])}

    def beliefs(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """As classification's: each label is a decision, not there or there."""
        there = self.predict(outputs, batch)["probabilities"]
        probabilities = jnp.stack([1 - there, there], axis=-1)
        return {"probabilities": probabilities, "pooled": outputs["pooled"]}

    def tune(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, Any]:
        """{'thresholds': one a label}: the ones of the best F1 on these data."""
        label = np.asarray(data.fields["label"])
        p = predicted["probabilities"]
        return {"thresholds": [best_threshold(label[:, k], p[:, k]) for k in range(p.shape[1])]}

    def guesses(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> np.ndarray:
        """bool (N, labels): which labels are predicted."""
        p = predicted["probabilities"]
        return p >= np.asarray(data.fitted.get("thresholds", [0.5] * p.shape[1]))

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        label, p = np.asarray(data.fields["label"]) > 0, predicted["probabilities"]
        known, unseen = np.split(label, [p.shape[1]], axis=1)
        guess = np.hstack([self.guesses(predicted, data), np.zeros_like(unseen)])
        hits, extra, missed = (
            (a & b).sum(axis=0) for a, b in ((label, guess), (~label, guess), (label, ~guess))
        )
        f1 = metrics.precision_recall_f1
        precision, recall, micro = f1(hits.sum(), extra.sum(), missed.sum())
        right = np.where(known, p, 1 - p.astype(np.float64))
        scores = {
            "f1_micro": float(micro),
            "f1_macro": float(f1(hits, extra, missed)[2].mean()),
            "precision": float(precision),
            "recall": float(recall),
            "exact_match": float((label == guess).all(axis=1).mean()),
            "loss": float(-np.log(np.maximum(right, np.finfo(np.float32).eps)).mean()),
        }
        if self.score_unseen:
            scores["unseen"] = float(unseen.sum())
        return scores

    def label_of(self, data: Encoded, i: int) -> list[str]:
        names = every(data.fitted, "labels")
        return [n for n, y in zip(names, data.fields["label"][i], strict=True) if y]

    def guess_of(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, i: int
    ) -> dict[str, Any]:
        names, p = data.fitted["labels"], predicted["probabilities"][i]
        guess = self.guesses({"probabilities": p[None]}, data)[0]
        return {
            "prediction": [n for n, y in zip(names, guess, strict=True) if y],
            "probabilities": {n: round(float(v), 6) for n, v in zip(names, p, strict=True)},
        }

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        said = ", ".join(answer["prediction"]) or "none"
        label = ", ".join(answer["label"]) or "none" if "label" in answer else "-"
        return f"{said} (label {label}): {self.shown(answer)}"


def best_threshold(labels: np.ndarray, p: np.ndarray) -> float:
    """The threshold (p >= threshold is positive) of the highest F1: of those midway between
    neighbouring values of p, and 0.5. Among equals the one nearest 0.5; 0.5 where no label is 1.

    labels (N,) 0 or 1; p (N,) within 0..1.
    """
    labels, p = np.asarray(labels) > 0, np.asarray(p, np.float64)
    if not labels.any():
        return 0.5
    seen = np.unique(p)
    choices = np.append((seen[1:] + seen[:-1]) / 2, [0.5, seen[0]])
    hits_above = np.concatenate([np.cumsum(labels[np.argsort(-p, kind="stable")]), [0]])
    predicted = (len(p) - np.searchsorted(np.sort(p), choices, side="left")).astype(int)
    hits = np.where(predicted > 0, hits_above[predicted - 1], 0)
    f1 = metrics.precision_recall_f1(hits, predicted - hits, labels.sum() - hits)[2]
    return float(choices[np.lexsort((np.abs(choices - 0.5), -f1))[0]])


def _written_list(cell: str) -> Any:
    """The list of a cell that holds one as JSON or as Python writes it, as tables do that pandas
    has saved. None for what is neither: NumPy's ['good' 'film'], which to Python is one string."""
    cell = cell.strip()
    with contextlib.suppress(ValueError):
        return json.loads(cell)
    try:
        value = ast.literal_eval(cell)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    words = tokenize.generate_tokens(io.StringIO(cell).readline)
    joined = sum(word.type == tokenize.STRING for word in words) > len(value)
    return None if joined else value
