"""Parts of a multi-task run that share their rows: one example carries the labels of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bert_ft.data.encode import Encoded, ReadsBoth, encoder_to_predict
from bert_ft.data.sources import Rows
from bert_ft.errors import InputError
from bert_ft.tasks.sequence import SequenceTask


class Joint(ReadsBoth):
    """`parts`: {name: task}; `uris`: {'train': URI, …}. An `Encoder` of data/encode.py, whose
    fields are named PART/FIELD; PART/weight is 1 where an example counts for a part.

    The tokens are those of the first part that is not about a whole text, if there is one: tags
    stand on words, and say where these are. checks.py sees that all parts read its columns. What is
    about a whole text then reads the first window of its row, and is truncated where there are
    more."""

    def __init__(self, parts: Mapping[str, Any], uris: Mapping[str, str]):
        self.parts, self.uris = dict(parts), dict(uris)
        names = sorted(self.parts, key=lambda p: isinstance(self.parts[p], SequenceTask))
        self.carrier = names[0]

    def signature(self) -> dict[str, Any]:
        parts = {part: task.signature() for part, task in self.parts.items()}
        return {"joint": parts, "truncated": "rows of several windows too"}

    def texts(self) -> list[str]:
        """The columns that the tokens are of."""
        carrier = self.parts[self.carrier]
        return [column for column in carrier.columns() if column != carrier.label]

    def columns(self) -> list[str]:
        """Of the texts, as the carrier has them, and of every label."""
        own = self.parts[self.carrier].columns()
        labels = [t.label for t in self.parts.values() if getattr(t, "label", "")]
        return list(dict.fromkeys([*own, *labels]))

    def fit(self, rows: Rows) -> dict[str, Any]:
        return {part: task.fit(rows) for part, task in self.parts.items()}

    def encode(
        self,
        rows: Rows,
        tokenizer: Any,
        max_length: int,
        fitted: Mapping[str, Any],
        labelled: bool = True,
    ) -> Encoded:
        def encoded(part: str) -> Encoded:
            task = self.parts[part]
            own = task.encode if labelled else encoder_to_predict(task)
            return own(rows, tokenizer, max_length, fitted[part])

        carrier, data = self.parts[self.carrier], encoded(self.carrier)
        about = {**fitted, self.carrier: dict(data.fitted)}
        made = {self.carrier: dict(data.fields)}
        token_fields = {f"{self.carrier}/{k}": v for k, v in data.token_fields.items()}
        aside = {f"{self.carrier}/{k}": v for k, v in data.aside.items()}
        weight = {self.carrier: np.ones(len(data), np.float32)}
        truncated = np.asarray(data.truncated)
        for part, task in self.parts.items():
            if part == self.carrier:
                continue
            if isinstance(task, SequenceTask) and not isinstance(carrier, SequenceTask):
                # Once a row, at its first window.
                first = np.diff(data.row, prepend=-1) != 0
                about[part] = task.about(rows, fitted[part])
                fields = task.targets(rows, about[part]) if task.label in rows.columns else {}
                made[part] = {k: np.asarray(v)[data.row] for k, v in fields.items()}
                weight[part] = first.astype(np.float32)
                windows = np.bincount(data.row, minlength=len(rows))
                truncated = truncated | (first & (windows[data.row] > 1))
                continue
            other = encoded(part)
            if not (
                np.array_equal(other.tokens, data.tokens)
                and np.array_equal(other.offsets, data.offsets)
            ):
                raise InputError(
                    f"{rows.origin}: parts {self.carrier!r} and {part!r} read other texts of the "
                    "same rows; give both the same data.text, data.text_pair, task.stride, "
                    "task.words and task.max_question"
                )
            about[part], made[part] = dict(other.fitted), dict(other.fields)
            token_fields |= {f"{part}/{k}": v for k, v in other.token_fields.items()}
            aside |= {f"{part}/{k}": v for k, v in other.aside.items()}
            weight[part] = np.ones(len(data), np.float32)
        fields = {f"{p}/{k}": v for p, own in made.items() for k, v in own.items()}
        fields |= {f"{part}/weight": values for part, values in weight.items()}
        return Encoded(
            data.tokens,
            data.types,
            data.offsets,
            data.row,
            truncated,
            fields,
            token_fields,
            data.pieces,
            about,
            len(rows),
            aside=aside,
        )
