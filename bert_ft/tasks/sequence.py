"""What the tasks share that say something about a whole text, or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded, tokenize
from bert_ft.data.sources import Rows
from bert_ft.errors import InputError


class SequenceTask:
    """One example a row: `data.text`, and `data.text_pair` where there is one, with token types.

    A task of this kind adds `fit`, `targets` (rows, and what `about` says of them -> fields an
    example), `head`, `loss`, `predict`, `score`, and of its answers `label_of` and `guess_of`.
    """

    name: str
    told_names: tuple[str, ...] = ("logits",)  # what `told` gives
    chosen_by: tuple[str, ...] = ()  # the ways of active learning that have its `beliefs`
    predictions_have_a_mean = True  # probabilities or values: an ensemble's are the mean

    def __init__(self, config: ConfigDict):
        self.text, self.pair, self.label = (
            config.data.text,
            config.data.text_pair,
            config.data.label,
        )

    def signature(self) -> dict[str, Any]:
        """What of the config changes the encoding or what is learnt from the training rows."""
        return {"task": self.name, "columns": self.columns()}

    def columns(self) -> list[str]:
        return [c for c in (self.text, self.pair, self.label) if c]

    def texts(self, rows: Rows, column: str) -> list[str]:
        """The texts of a column; a list of words is those words joined by single blanks."""
        texts = []
        for i, text in enumerate(rows.column(column)):
            if isinstance(text, list) and all(isinstance(word, str) for word in text):
                text = " ".join(text)
            if not isinstance(text, str):
                raise InputError(f"{rows.where(i)}: column {column!r} is {text!r}, not a text")
            texts.append(text)
        return texts

    def targets(self, rows: Rows, fitted: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The field `label`, and others that the loss wants, (N, …). Raises InputError with
        file:line on a label that can't be."""
        raise NotImplementedError

    def about(self, rows: Rows, fitted: Mapping[str, Any]) -> Mapping[str, Any]:
        """`fitted`, and what these rows add to it."""
        return fitted

    def encode(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        pairs = self.texts(rows, self.pair) if self.pair else None
        tokens, types, offsets, truncated = tokenize(
            tokenizer, self.texts(rows, self.text), pairs, max_length
        )
        about = self.about(rows, fitted)
        fields = self.targets(rows, about) if self.label in rows.columns else {}
        row = np.arange(len(rows), dtype=np.int64)
        return Encoded(tokens, types, offsets, row, truncated, fields, {}, 1, about, len(rows))

    def told(self, outputs: Any, batch: Any) -> dict[str, Any]:
        """By example, (B, …): what of a teacher's outputs its students learn from, which
        `divergence` reads in the place of outputs."""
        return {"logits": outputs["logits"]}

    def label_of(self, data: Encoded, i: int) -> Any:
        """Example i's label as its answer shows it, JSON-able."""
        raise NotImplementedError

    def guess_of(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, i: int
    ) -> dict[str, Any]:
        """{'prediction': …} of example i, and what else its answer says, JSON-able."""
        raise NotImplementedError

    def answers(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, rows: Rows
    ) -> list[dict[str, Any]]:
        """One JSON-able object a source row, in its order: the texts, the label where the row has
        one, the prediction, and whether the text was truncated."""
        out = []
        for i, row in enumerate(data.row):
            answer = {c: rows.columns[c][row] for c in (self.text, self.pair) if c}
            if "label" in data.fields:
                answer["label"] = self.label_of(data, i)
            answer |= self.guess_of(predicted, data, i)
            answer["truncated"] = bool(data.truncated[i])
            out.append(answer)
        return out

    def shown(self, answer: Mapping[str, Any]) -> str:
        """The text of an answer, short enough for a line of the terminal."""
        text = str(answer[self.text])
        return text if len(text) <= 90 else text[:89] + "…"


def number_in(
    rows: Rows, column: str, i: int, value: Any, low: float = -np.inf, high: float = np.inf
) -> float:
    """Row i's value as a number that float32 has, within low and high, both included; else an
    InputError that names the row, the value and what is accepted."""
    try:
        number = np.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):  # of an integer beyond float64
        number = np.nan
    if abs(number) <= float(np.finfo(np.float32).max) and low <= number <= high:
        return number
    bounded = np.isfinite(low) or np.isfinite(high)
    accepted = f"a number from {low:g} to {high:g}" if bounded else "a finite number"
    shown = repr(value) if len(str(value)) <= 40 else f"{str(value)[:39]}…"
    raise InputError(f"{rows.where(i)}: {column} is {shown}; accepted: {accepted}")


def shortest(value: np.float32) -> float:
    """A float32 as the shortest decimal that stands for it: 3.8, not 3.799999952316284."""
    return float(str(np.float32(value)))


def range_of(text: str) -> tuple[float, float]:
    """task.range, 'LOW,HIGH' -> (low, high); '' is unbounded. ValueError for anything else."""
    if not text:
        return -np.inf, np.inf
    low, high = (float(part) for part in text.split(","))
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(text)
    return low, high
