"""Recommendation: how much a user likes an item, from texts, ids and numbers; ranked lists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded
from bert_ft.data.rows import written
from bert_ft.data.sources import Rows
from bert_ft.errors import InputError
from bert_ft.evals import metrics
from bert_ft.evals.ranking_by_user import by_user, ranks
from bert_ft.models.bert import Batch
from bert_ft.models.fusion import FusionHead
from bert_ft.models.heads import Outputs
from bert_ft.tasks import features
from bert_ft.tasks.regression import Regression, brief, number_scores

BETWEEN = " | "  # the texts that are joined as one


def names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


class Recommend(Regression):
    """`data.label` is a rating, a number within `task.range`; the text is `task.text_columns` or
    `data.text`, with `data.text_pair` as the second where there is one.

    objective 'rating': squared error, as in `Regression`. objective 'bpr' (Rendle et al. 2009,
    section 4): -ln sigmoid(x_ui - x_uj) over pairs of an item i that user u liked and a worse one
    j. A pair is one training example of two sequences: so a batch stays `batch_size` examples of
    f(seed, step), and its loss a sum over examples, however they are packed or split over devices.
    Pairs within a batch would depend on who shares it, and few users would be in one twice.

    Dev and test are rows, not pairs, under both. Categories that the training rows lack are read
    as 'unknown'; the scores of items and users that are new to the model are also given apart.
    """

    name = "recommend"
    chosen_by = ()  # by the texts alone rows would be chosen as if users were alike

    def __init__(self, config: ConfigDict):
        super().__init__(config)
        t = config.task
        self.user, self.item, self.objective = t.user, t.item, t.objective
        self.shown_columns = names(t.text_columns) or [self.text]
        self.joined = bool(names(t.text_columns))
        self.categorical, self.numeric = names(t.categorical), names(t.numeric)
        self.liked, self.worse, self.pairs = t.liked, t.worse, t.pairs
        self.fused = (t.table_width, t.fusion_width, t.table_rate, t.id_dropout)
        self.draws = bool(self.categorical) and t.id_dropout > 0
        self.metric = "ndcg@10" if self.user else "pearson"

    def signature(self) -> dict[str, Any]:
        return {
            **super().signature(),
            "roles": [self.user, self.item, self.shown_columns, self.categorical, self.numeric],
            "objective": [self.objective, self.liked, self.worse, self.pairs],
            "read": features.READ,
        }

    def columns(self) -> list[str]:
        asked = [*self.shown_columns, self.pair, *self.categorical, *self.numeric]
        return list(dict.fromkeys(c for c in (*asked, self.user, self.item, self.label) if c))

    def fit(self, rows: Rows) -> dict[str, Any]:
        """{mean, scale} of the label, {categories}, {numbers}: see features.py."""
        for column in self.columns():
            rows.column(column)
        if self.user and (self.numbers(rows) < self.liked).all():
            raise InputError(
                f"{rows.origin}: no row has {self.label} of config.task.liked ({self.liked:g}) or "
                "more, so no list has a score; accepted: what divides liked rows from others, or "
                "task.user=''"
            )
        unit = super().fit(rows) if self.objective == "rating" else {"mean": 0.0, "scale": 1.0}
        known = dict.fromkeys([*self.categorical, self.user, self.item])
        return {
            **unit,
            "categories": features.fit_categories(rows, [c for c in known if c]),
            "numbers": features.fit_numbers(rows, self.numeric),
        }

    def encode(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        """One example a row, of one sequence. Fields: categories (N, 1, C), numbers (N, 1, F), and
        label and target where there are labels. Aside: group int64 (N,), the number of the user
        within this set; cold bool (N, 2), whether training lacks the row's user, and its item."""
        data = super().encode(self._with_text(rows), tokenizer, max_length, fitted)
        fields = {
            "categories": features.categories(rows, fitted["categories"], self.categorical),
            "numbers": features.numbers(rows, fitted["numbers"], self.numeric),
        }
        aside = {"cold": np.zeros((len(rows), 2), bool)}
        for k, column in enumerate((self.user, self.item)):
            if column:
                number = features.categories(rows, fitted["categories"], [column])[:, 0]
                aside["cold"][:, k] = number == features.UNKNOWN
        if self.user:
            aside["group"] = features.group_of(features.values_of(rows, self.user))
        fields = {k: v[:, None, :] for k, v in fields.items()}
        return dataclasses.replace(data, fields={**data.fields, **fields}, aside=aside)

    def encode_training(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        """The rows, or under 'bpr' the pairs: two sequences an example, the better one first; its
        `row` is that of the better."""
        if self.objective == "rating":
            return self.encode(rows, tokenizer, max_length, fitted)
        user = features.group_of(features.values_of(rows, self.user))
        item = features.group_of(features.values_of(rows, self.item))
        liked = self.numbers(rows) >= self.liked
        texts = [*self.shown_columns, self.pair]
        if self.worse == "rated":
            better, worse = features.rated_pairs(user, liked, self.pairs)
        else:
            better, worse = features.unseen_pairs(user, item, liked, self.pairs)
        if not len(better):
            raise InputError(
                f"{rows.origin}: no pair to rank: no {self.user} has a row with {self.label} of "
                f"config.task.liked ({self.liked:g}) or more, and one that is worse "
                f"({self.worse!r})"
            )
        first = rows.take(better.tolist())
        if self.worse == "rated":
            second = rows.take(worse.tolist())
        else:
            more = [*self.categorical, *self.numeric]
            second = features.with_other_item(
                rows, self.user, self.item, texts, better, worse, more
            )
        made = [self.encode(r, tokenizer, max_length, fitted) for r in (first, second)]
        return dataclasses.replace(_side_by_side(*made), row=better)

    def _with_text(self, rows: Rows) -> Rows:
        """The rows with the texts of text_columns as their first text."""
        if not self.joined:
            return rows
        texts = [self.texts(rows, column) for column in self.shown_columns]
        joined = [BETWEEN.join(t for t in parts if t) for parts in zip(*texts, strict=True)]
        return dataclasses.replace(rows, columns={**rows.columns, self.text: joined})

    def head(self, fitted: Mapping[str, Any]) -> partial:
        tables = tuple(len(fitted["categories"][c]) + 1 for c in self.categorical)
        return partial(FusionHead, tables, len(self.numeric), *self.fused)

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over examples, their number, sums of further train metrics): the squared error in
        the model's unit, or of a pair -ln sigmoid(better - worse)."""
        score, weight = outputs["score"], batch["weight"]
        if self.objective == "rating":
            error = score[:, 0] - batch["target"]
            return jnp.sum(jnp.square(error) * weight), jnp.sum(weight), {}
        gap = score[:, 0] - score[:, 1]
        right = {"pair_accuracy": jnp.sum((gap > 0) * weight)}
        return -jnp.sum(jax.nn.log_sigmoid(gap) * weight), jnp.sum(weight), right

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """value float32 (B,), in the model's unit."""
        return {"value": outputs["score"][:, 0]}

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        """Of all rows: rating errors (not under 'bpr', whose scores have no unit) and the scores of
        the users' lists. Of the rows whose item, or user, training lacks: rmse, mae, and the lists
        that those rows alone make; with their number, n_cold_item and n_cold_user."""
        label, value = np.asarray(data.fields["label"]), self.values(predicted, data)
        rating = self.objective == "rating"
        scores = number_scores(label, value) if rating else {}
        group = np.asarray(data.aside["group"]) if self.user else None
        if group is not None:
            scores |= by_user(group, label >= self.liked, value)
        for k, (column, side) in enumerate(((self.user, "user"), (self.item, "item"))):
            if not column:
                continue
            cold = np.asarray(data.aside["cold"])[:, k]
            scores[f"n_cold_{side}"] = float(cold.sum())
            if not cold.any():
                continue
            apart = {}
            if rating:
                apart = {"rmse": metrics.rmse(label[cold], value[cold])}
                apart["mae"] = metrics.mae(label[cold], value[cold])
            if group is not None:
                lists = by_user(group[cold], label[cold] >= self.liked, value[cold])
                apart |= {m: v for m, v in lists.items() if not np.isnan(v)}
            scores |= {f"{m}_cold_{side}": v for m, v in apart.items()}
        return scores

    def sizes(self, data: Encoded, scores: Mapping[str, float]) -> dict[str, int]:
        """{metric: the users, or of cold rows' errors the rows, that it is a mean over}."""
        out: dict[str, int] = {}
        for end in ("", "_cold_item", "_cold_user"):
            if f"n{end}" in scores:
                out |= dict.fromkeys((f"rmse{end}", f"mae{end}"), int(scores[f"n{end}"]))
            if f"users{end}" in scores:
                users = int(scores[f"users{end}"])
                every = users + int(scores[f"users_none_liked{end}"])
                out |= dict.fromkeys((f"ndcg@10{end}", f"mrr@10{end}"), users)
                out[f"auc{end}"] = every - int(scores[f"users_one_kind{end}"])
        return out

    def answers(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, rows: Rows
    ) -> list[dict[str, Any]]:
        """One object a row: user, item, texts, label where there is one, prediction (a rating, or
        under 'bpr' a score without a unit), rank in the user's list of this set, 1 being the best,
        and which of its user and item are new to the model."""
        values = self.values(predicted, data)
        place = ranks(np.asarray(data.aside["group"]), values) if self.user else None
        shown = [c for c in (self.user, self.item, *self.shown_columns, self.pair) if c]
        out = []
        for i, value in enumerate(values):
            answer = {c: rows.columns[c][i] for c in dict.fromkeys(shown)}
            if "label" in data.fields:
                answer["label"] = self.label_of(data, i)
            answer["prediction"] = float(value)
            if place is not None:
                answer["rank"] = int(place[i])
            sides = zip((self.user, self.item), data.aside["cold"][i], strict=True)
            answer["unknown"] = [column for column, cold in sides if cold]
            answer["truncated"] = bool(data.truncated[i])
            out.append(answer)
        return out

    def lists(self, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Prediction's lines (whose `label` is the prediction) -> one object a user, in the order
        in which users first appear: {user, ranked: [{item or texts, label}, …]}, the best first."""
        if not self.user:
            return []
        of_user: dict[str, list[Mapping[str, Any]]] = {}
        for line in lines:
            of_user.setdefault(written(line[self.user]), []).append(line)
        shown = ("id", self.item, *self.shown_columns, self.pair, "label")
        return [
            {
                self.user: of[0][self.user],
                "ranked": [
                    {k: line[k] for k in shown if k in line}
                    for line in sorted(of, key=lambda line: line["rank"])
                ],
            }
            for of in of_user.values()
        ]

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        text = BETWEEN.join(str(answer[c]) for c in self.shown_columns)
        who = f"{self.user} {answer[self.user]}, rank {answer['rank']}: " if self.user else ""
        cut = text if len(text) <= 90 else text[:89] + "…"
        return f"{brief(answer['prediction'])} (label {answer.get('label', '-')}): {who}{cut}"


def _side_by_side(first: Encoded, second: Encoded) -> Encoded:
    """Two sets of N examples of one sequence -> N examples of two."""
    count = len(first)
    order = np.arange(2 * count).reshape(2, count).T.reshape(-1)  # 0, N, 1, N + 1, …
    lengths = np.concatenate([np.diff(first.offsets), np.diff(second.offsets)])
    begins = np.concatenate([first.offsets[:-1], second.offsets[:-1] + len(first.tokens)])
    lengths, begins = lengths[order], begins[order]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    source = np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], lengths)
    fields = {
        name: np.concatenate([first.fields[name], second.fields[name]], axis=1)
        for name in ("categories", "numbers")
    }
    return dataclasses.replace(
        first,
        tokens=np.concatenate([first.tokens, second.tokens])[source],
        types=np.concatenate([first.types, second.types])[source],
        offsets=offsets,
        truncated=first.truncated | second.truncated,
        fields=fields,
        aside={},
        pieces=2,
    )
