"""Several tasks on one encoder: several labels of the same rows, several data sets, or both.

Parts whose data.train, dev and test are the same share their rows (`joint.py`); groups of parts
with other files are mixed in the batches (data/mixing.py). Losses are joined by `weighting.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded, ReadsBoth
from bert_ft.data.epochs import Order
from bert_ft.data.mixing import Mixture
from bert_ft.data.sources import Rows
from bert_ft.errors import InputError
from bert_ft.methods.method import Method, Run, Sums
from bert_ft.models.bert import Batch
from bert_ft.models.multi import MultiHead
from bert_ft.tasks import weighting
from bert_ft.tasks.joint import Joint
from bert_ft.tasks.parted import both, merged, single

SETS = ("train", "dev", "test")


class MultiTask(ReadsBoth):
    """`parts`: {name: task}. A set's `fitted` is {name: what that task learnt}; its example fields
    are PART/FIELD, its metrics PART/METRIC, and 'mean' is the mean of the parts' own metrics."""

    name = "multi"
    metric = "mean"
    knobs: ClassVar = {"task.weights": "weights"}

    def __init__(self, config: ConfigDict, parts: Mapping[str, tuple[Any, ConfigDict]]):
        self.parts = {part: task for part, (task, _) in parts.items()}
        t = config.task
        self.weighting, self.weight_rate, self.asymmetry = t.weighting, t.weight_rate, t.asymmetry
        self.mixing, self.temperature = t.mixing, t.mixing_temperature
        self.weights = weighting.fixed_weights(config, list(parts))
        # Kendall et al.: a squared error is the likelihood of a Gaussian times two.
        self.factors = [0.5 if task.name == "regression" else 1.0 for task in self.parts.values()]
        self.chance: list[float] = []
        by_source: dict[tuple[str, ...], dict[str, Any]] = {}
        for part, (task, own) in parts.items():
            by_source.setdefault(tuple(own.data[s] for s in SETS), {})[part] = task
        self.groups = [
            Joint(tasks, dict(zip(SETS, uris, strict=True))) for uris, tasks in by_source.items()
        ]
        self.labels = [t.label for t in self.parts.values() if getattr(t, "label", "")]

    def merge(self, sets: Sequence[Encoded | None]) -> Encoded:
        """One set of those of the groups, None where a group has none: their examples one after
        the other. `aside` has the groups' sizes, 'examples' and 'rows'."""
        there = [data for data in sets if data is not None]
        if len({data.pieces for data in there}) > 1:
            raise InputError(
                "config.task.parts mixes tasks of one text and of several sequences an example; "
                "such tasks need runs of their own"
            )
        fitted = {part: about for data in there for part, about in data.fitted.items()}
        tokens, rows = 0, 0
        offsets, row = [np.zeros(1, np.int64)], []
        for data in there:
            offsets.append(np.asarray(data.offsets[1:]) + tokens)
            row.append(np.asarray(data.row) + rows)
            tokens, rows = tokens + int(data.offsets[-1]), rows + data.source_rows
        prints = ",".join(data.fingerprint for data in there)
        aside = {k: v for data in there for k, v in data.aside.items()}
        aside["examples"] = np.asarray([0 if d is None else len(d) for d in sets])
        aside["rows"] = np.asarray([0 if d is None else d.source_rows for d in sets])
        return Encoded(
            tokens=np.concatenate([data.tokens for data in there]),
            types=np.concatenate([data.types for data in there]),
            offsets=np.concatenate(offsets),
            row=np.concatenate(row),
            truncated=np.concatenate([data.truncated for data in there]),
            fields=_joined([data.fields for data in there], [len(data) for data in there]),
            token_fields=_joined(
                [data.token_fields for data in there], [len(data.tokens) for data in there]
            ),
            pieces=there[0].pieces,
            fitted=fitted,
            source_rows=rows,
            skipped=tuple(line for data in there for line in data.skipped),
            fingerprint=hashlib.sha256(prints.encode()).hexdigest(),
            read_from=",".join(data.read_from for data in there),
            aside=aside,
            order=there[0].order if len(there) == 1 else None,
        )

    def encode(
        self,
        rows: Rows,
        tokenizer: Any,
        max_length: int,
        fitted: Mapping[str, Any],
        labelled: bool = True,
    ) -> Encoded:
        """The same rows for every group whose texts they have. Raises InputError where that is
        none."""
        there = [all(c in rows.columns for c in group.texts()) for group in self.groups]
        if not any(there):
            wanted = " or ".join(", ".join(map(repr, group.texts())) for group in self.groups)
            seen = ", ".join(map(repr, rows.columns))
            raise InputError(f"{rows.origin}: its columns are {seen}; a part reads {wanted}")
        return self.merge(
            [
                group.encode(
                    rows, tokenizer, max_length, {p: fitted[p] for p in group.parts}, labelled
                )
                if reads
                else None
                for group, reads in zip(self.groups, there, strict=True)
            ]
        )

    def mixture(self, data: Encoded, batch_size: int) -> Order:
        if data.order:
            return data.order
        sizes = tuple(int(n) for n in data.aside["examples"])
        return Mixture(sizes, self.mixing, self.temperature, batch_size)

    def head(self, fitted: Mapping[str, Any]) -> partial:
        heads = tuple((part, task.head(fitted[part])) for part, task in self.parts.items())
        self.chance = [
            weighting.chance_loss(task, part, fitted[part]) for part, task in self.parts.items()
        ]
        if self.weighting == "gradnorm" and not all(math.isfinite(c) for c in self.chance):
            part = next(p for p, c in zip(self.parts, self.chance, strict=True) if c != c)
            raise InputError(
                "config.task.weighting is 'gradnorm', which needs the loss of a guess at chance; "
                f"that of part {part!r} ({self.parts[part].name}) is not known: use 'uncertainty'"
            )
        return partial(MultiHead, heads, weighting.LEARNT[self.weighting], self.weight_rate)

    def sums(
        self,
        outputs: Mapping[str, Any],
        batch: Batch,
        methods: Sequence[Method] = (),
        model: Any = None,
        usual: Mapping[str, jax.Array] | None = None,
    ) -> dict[str, Sums]:
        """{part: the sums of its loss}, changed by those of the methods that are of a part; `usual`
        as Sums have it."""
        found = {}
        for part, task in self.parts.items():
            run: Run = partial(_told, task, outputs[part], usual[part] if usual else None)
            for method in (m for m in methods if m.of_part):
                run = method.objective(run, task, model)
            found[part] = run(None, _own(batch, part), None)
        return found

    @property
    def told_names(self) -> list[str]:
        return [f"{part}/{name}" for part, task in self.parts.items() for name in task.told_names]

    def told(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """{PART/NAME: what a part's students learn from}."""
        return {
            f"{part}/{name}": value
            for part, task in self.parts.items()
            for name, value in task.told(outputs[part], _own(batch, part)).items()
        }

    def loss_and_gradient(self, *given: Any) -> tuple[dict[str, jax.Array], Any]:
        """See weighting.py; stands in for step.loss_and_gradient."""
        return weighting.loss_and_gradient(self, *given)

    def divergence(self, p: Mapping[str, Any], q: Mapping[str, Any], batch: Batch) -> jax.Array:
        return weighting.divergence(self, p, q, {part: _own(batch, part) for part in self.parts})

    def predict(self, outputs: Mapping[str, Any], batch: Batch) -> dict[str, jax.Array]:
        """{PART/NAME: …} of the parts that the set has examples of."""
        return {
            f"{part}/{name}": value
            for part, task in self.parts.items()
            if f"{part}/weight" in batch
            for name, value in task.predict(outputs[part], _own(batch, part)).items()
        }

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        scores: dict[str, float] = {}
        own = []
        for part, task in self.parts.items():
            view, there = self.view(data, part)
            if not len(there):
                continue
            values = task.score(_of(predicted, part, there), view)
            own.append(values[task.metric])
            scores |= {f"{part}/{name}": value for name, value in values.items()}
        return {"mean": float(np.mean(own)), **scores}

    def sizes(self, data: Encoded, scores: Mapping[str, float]) -> dict[str, int]:
        """{metric: what it is over}, of a part the rows of a set that it is scored on."""
        out: dict[str, int] = {}
        for part, task in self.parts.items():
            view, at = self.view(data, part)[0], f"{part}/"
            own = {m.removeprefix(at): v for m, v in scores.items() if m.startswith(at)}
            counted = task.sizes(view, own) if hasattr(task, "sizes") else {}
            out |= {at + metric: counted.get(metric, view.source_rows) for metric in own}
        return out

    def tune(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, Any]:
        """Of the parts that choose something on dev: {part: that}."""
        chosen = {}
        for part, task in self.parts.items():
            view, there = self.view(data, part)
            if hasattr(task, "tune") and len(there):
                chosen[part] = task.tune(_of(predicted, part, there), view)
        return chosen

    def group_of(self, part: str) -> int:
        return next(g for g, group in enumerate(self.groups) if part in group.parts)

    def view(self, data: Encoded, part: str) -> tuple[Encoded, np.ndarray]:
        """(a part's examples as its task knows them, their places in `data`)."""
        weight = data.fields.get(f"{part}/weight")  # none where its group has no such set
        there = np.flatnonzero(np.zeros(0) if weight is None else np.asarray(weight) > 0)
        group = self.group_of(part)
        own = np.zeros(len(data), bool)
        own[there] = True
        tokens = np.repeat(own, data.lengths.sum(axis=1))
        view = dataclasses.replace(
            data,
            tokens=np.asarray(data.tokens)[tokens],
            types=np.asarray(data.types)[tokens],
            offsets=np.concatenate([[0], np.cumsum(data.lengths[there])]),
            row=np.asarray(data.row)[there] - data.aside["rows"][:group].sum(),
            truncated=np.asarray(data.truncated)[there],
            fields={k: np.asarray(v)[there] for k, v in _own(data.fields, part, "").items()},
            token_fields={
                k: np.asarray(v)[tokens] for k, v in _own(data.token_fields, part, "").items()
            },
            fitted=data.fitted.get(part, {}),
            source_rows=int(data.aside["rows"][group]),
            aside=_own(data.aside, part, ""),
        )
        return view, there

    def answers(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, rows: Rows | Sequence[Rows]
    ) -> list[dict[str, Any]]:
        """One object a row, those of each group's `rows` after each other, or, where all groups
        read the same `rows`, one with the answers of those whose texts they have. {'text', …,
        'label', 'prediction', …: {part: …}, 'truncated'}, the keys of PARTED by part."""
        out: list[dict[str, Any]] = []
        for g, group in enumerate(self.groups):
            own = rows if isinstance(rows, Rows) else rows[g]
            by_part = {}
            for part in group.parts:
                view, there = self.view(data, part)
                if len(there):
                    said = _of(predicted, part, there)
                    by_part[part] = self.parts[part].answers(said, view, own)
            if not by_part:
                continue
            answers = [
                merged({part: said[i] for part, said in by_part.items()})
                for i in range(len(next(iter(by_part.values()))))
            ]
            if isinstance(rows, Rows) and out:
                out = [both(a, b) for a, b in zip(out, answers, strict=True)]
            else:
                out += answers
        return out

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        there = [part for part in self.parts if part in answer["prediction"]]
        return "; ".join(f"{p}: {self.parts[p].sentence(single(answer, p))}" for p in there)


def _told(
    task: Any, outputs: Any, usual: jax.Array | None, _params: Any, batch: Batch, _rng: Any
) -> Sums:
    """A part's `Run`, the model having run already for all."""
    total, count, extra = task.loss(outputs, batch)
    return Sums(total, count, extra, outputs, usual=usual)


def _joined(
    fields: Sequence[Mapping[str, np.ndarray]], counts: Sequence[int]
) -> dict[str, np.ndarray]:
    """Each field over all groups; zeros where a group lacks it."""
    out = {}
    for name in dict.fromkeys(name for own in fields for name in own):
        like = next(np.asarray(own[name]) for own in fields if name in own)
        out[name] = np.concatenate(
            [
                np.asarray(own[name]) if name in own else np.zeros((n, *like.shape[1:]), like.dtype)
                for own, n in zip(fields, counts, strict=True)
            ]
        )
    return out


def _own(fields: Mapping[str, Any], part: str, weight: str = "weight") -> dict[str, Any]:
    """A batch, or the fields of a set, as a part sees it: its own fields by their own names, and
    in a batch those of no part. An example that does not count for the part has the weight 0."""
    prefix = f"{part}/"
    shared = {k: v for k, v in fields.items() if "/" not in k} if weight else {}
    own = {k[len(prefix) :]: v for k, v in fields.items() if k.startswith(prefix)}
    counts = own.pop("weight", 1.0)
    if weight:
        own["weight"] = fields[weight] * counts
    return {**shared, **own}


def _of(predicted: Mapping[str, np.ndarray], part: str, there: np.ndarray) -> dict[str, np.ndarray]:
    return {k: np.asarray(v)[there] for k, v in _own(predicted, part, "").items()}
