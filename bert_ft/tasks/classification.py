"""Single-label classification of a text, or of a pair of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded, tokenize
from bert_ft.data.sources import Rows
from bert_ft.errors import InputError
from bert_ft.evals import metrics
from bert_ft.models.bert import Batch
from bert_ft.models.heads import Outputs, SequenceHead


def _sorted_labels(values: set[str]) -> list[str]:
    """Numbers by value (then by their text, '1' before '1.0'), other labels by their text. One
    order for one set of labels: every process numbers them alike."""
    try:
        numbers = {v: float(v) for v in values}
    except ValueError:
        return sorted(values)
    if any(math.isnan(n) for n in numbers.values()):
        return sorted(values)
    return sorted(values, key=lambda v: (numbers[v], v))


class Classification:
    """Labels are the values of `data.label` in the training rows, numbers in numerical order, others
    in alphabetical; `task.label_names` gives them other names, in that order."""

    name = "classification"
    metric = "accuracy"  # the one that 'best' means

    def __init__(self, config: ConfigDict):
        self.text, self.pair, self.label = (
            config.data.text,
            config.data.text_pair,
            config.data.label,
        )
        self.names = [n.strip() for n in config.task.label_names.split(",") if n.strip()]

    def signature(self) -> dict[str, Any]:
        return {"task": self.name, "columns": self.columns(), "names": self.names}

    def columns(self) -> list[str]:
        return [c for c in (self.text, self.pair, self.label) if c]

    def fit(self, rows: Rows) -> dict[str, Any]:
        labels = _sorted_labels({str(v) for v in rows.column(self.label)})
        if len(labels) < 2:
            raise InputError(
                f"{rows.origin}: column {self.label!r} has one label only ({labels[0]!r}); at least 2"
            )
        if self.names and len(self.names) != len(labels):
            raise InputError(
                f"config.task.label_names gives {len(self.names)} names ({', '.join(self.names)}) for "
                f"{len(labels)} labels of {rows.origin}: {', '.join(labels[:20])}"
            )
        return {"labels": labels, "names": self.names or labels}

    def texts(self, rows: Rows, column: str) -> list[str]:
        texts = rows.column(column)
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"{rows.where(i)}: column {column!r} is {text!r}, not a text")
        return texts

    def encode(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        pairs = self.texts(rows, self.pair) if self.pair else None
        tokens, types, offsets, truncated = tokenize(
            tokenizer, self.texts(rows, self.text), pairs, max_length
        )
        fields = {}
        if self.label in rows.columns:
            number = {label: i for i, label in enumerate(fitted["labels"])}
            labels = [str(v) for v in rows.column(self.label)]
            for i, label in enumerate(labels):
                if label not in number:
                    raise InputError(
                        f"{rows.where(i)}: label {label!r} is not among the training labels: "
                        f"{', '.join(map(repr, fitted['labels'][:20]))}"
                    )
            fields["label"] = np.asarray([number[label] for label in labels], np.int32)
        row = np.arange(len(rows), dtype=np.int64)
        return Encoded(tokens, types, offsets, row, truncated, fields, {}, 1, fitted, len(rows))

    def head(self, fitted: Mapping[str, Any]) -> partial:
        return partial(SequenceHead, len(fitted["labels"]))

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over examples of the cross entropy, their number, sums of further train metrics)."""
        logits, weight = outputs["logits"], batch["weight"]
        log_p = jax.nn.log_softmax(logits)
        nll = -jnp.take_along_axis(log_p, batch["label"][:, None], axis=1)[:, 0]
        right = (jnp.argmax(logits, axis=1) == batch["label"]).astype(jnp.float32)
        return jnp.sum(nll * weight), jnp.sum(weight), {"accuracy": jnp.sum(right * weight)}

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Arrays of one entry an example, computed on the device."""
        return {"probabilities": jax.nn.softmax(outputs["logits"])}

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        """{metric: value} over the whole set; predicted arrays are in the set's order."""
        p, label = predicted["probabilities"], np.asarray(data.fields["label"])
        guess, classes = p.argmax(axis=1), p.shape[1]
        confusion = metrics.confusion_matrix(label, guess, classes)
        scores = {
            "accuracy": metrics.accuracy(label, guess),
            "f1_macro": metrics.macro_f1(confusion),
            "mcc": metrics.matthews_correlation(confusion),
            "ece": metrics.calibration(label, p).ece,
            "loss": metrics.negative_log_likelihood(label, p),
        }
        if classes == 2:
            scores["f1"] = metrics.binary_f1(label, guess)
        return scores

    def answers(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, rows: Rows
    ) -> list[dict[str, Any]]:
        """One JSON-able object a source row, in its order: text, prediction, probabilities, truncated,
        and the label where the row has one."""
        names, out = data.fitted["names"], []
        columns = [c for c in (self.text, self.pair) if c]
        for i, p in enumerate(predicted["probabilities"]):
            answer = {c: rows.columns[c][data.row[i]] for c in columns}
            if "label" in data.fields:
                answer["label"] = names[int(data.fields["label"][i])]
            answer["prediction"] = names[int(p.argmax())]
            answer["probabilities"] = {n: round(float(v), 6) for n, v in zip(names, p, strict=True)}
            answer["truncated"] = bool(data.truncated[i])
            out.append(answer)
        return out

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        text = str(answer[self.text])
        shown = text if len(text) <= 90 else text[:89] + "…"
        sure = answer["probabilities"][answer["prediction"]]
        return f"{answer['prediction']} ({sure:.0%}; label {answer.get('label', '-')}): {shown}"
