"""Re-ranking what a bi-encoder found: a cross-encoder, which reads question and candidate together
(Nogueira & Cho 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded, tokenize
from bert_ft.data.sources import Rows
from bert_ft.data.texts import pack_texts, text_at
from bert_ft.errors import InputError
from bert_ft.evals.ranking import ranking_scores, ranks_among
from bert_ft.models.bert import Batch
from bert_ft.models.heads import ChoiceHead, Outputs, SequenceHead
from bert_ft.tasks.candidates import (
    COLUMN,
    asked_of,
    drawn_negatives,
    first_right,
    hard_negatives,
    listed,
    numbered,
    right_answers,
    texts_of,
)


class CrossEncoder:
    """`data.text` is a question, `data.text_pair` a right answer, `candidates` what was found.

    A training example is one question with its right answer and `task.negatives` wrong ones: the
    best of its candidates, or, where the rows have none, answers of other rows; the loss is the
    cross entropy of the right one among them (Gao, Dai & Callan 2021). A scored set is its distinct
    questions, each with its candidates: asked of others it is another question. With
    `task.multiple_choice` the head is that of transformers' …ForMultipleChoice: a question, its
    choices, one of them right.
    """

    name = "cross_encoder"
    metric = "mrr"

    def __init__(self, config: ConfigDict):
        self.text, self.pair = config.data.text, config.data.text_pair
        self.negatives, self.top_k = config.task.negatives, config.task.top_k
        self.made = ChoiceHead if config.task.multiple_choice else SequenceHead

    def signature(self) -> dict[str, Any]:
        about = {"task": self.name, "columns": self.columns()}
        lists = "a question and its candidates"
        return {**about, "negatives": self.negatives, "top_k": self.top_k, "lists": lists}

    def columns(self) -> list[str]:
        return [self.text, self.pair]

    def fit(self, rows: Rows) -> dict[str, Any]:
        answers = set(texts_of(rows, self.pair))
        if len(answers) < 2:
            raise InputError(f"{rows.origin}: column {self.pair!r} has one answer only; at least 2")
        return {"answers": len(answers)}

    def encode_training(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        """A question with its right answer, then with its wrong ones."""
        questions, answers = texts_of(rows, self.text), texts_of(rows, self.pair)
        if COLUMN in rows.columns:
            wrong = hard_negatives(rows, questions, answers, self.negatives, apart=True)
        else:
            wrong = drawn_negatives(rows, questions, answers, self.negatives)
        pieces = 1 + self.negatives
        first = [q for q in questions for _ in range(pieces)]
        second = [t for a, w in zip(answers, wrong, strict=True) for t in (a, *w)]
        tokens, types, offsets, truncated = tokenize(tokenizer, first, second, max_length)
        row = np.arange(len(rows), dtype=np.int64)
        cut = np.any(truncated.reshape(-1, pieces), axis=1)
        return Encoded(tokens, types, offsets, row, cut, {}, {}, pieces, fitted, len(rows))

    def encode(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        """A set to score."""
        return self._lists(rows, texts_of(rows, self.pair), tokenizer, max_length, fitted)

    def encode_unlabelled(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        """Rows to predict for: what answers they have play no part."""
        return self._lists(rows, None, tokenizer, max_length, fitted)

    def _lists(
        self,
        rows: Rows,
        answers: list[str] | None,
        tokenizer: Any,
        max_length: int,
        fitted: Mapping[str, Any],
    ) -> Encoded:
        """An example for each distinct question and each of its candidates, question by question.
        aside: question, place (from 1) and right, (N,); rights (Q,): how many right answers a
        question has, listed or not."""
        questions = texts_of(rows, self.text, blank=answers is None)
        lists = [texts[: self.top_k] for texts in listed(rows)]
        keys = asked_of(questions, lists)
        asked, first = numbered(keys)
        right = right_answers(keys, answers) if answers else {key: set() for key in asked}
        of_example = [i for i, at in enumerate(first) for _ in lists[at]]
        texts = [t for at in first for t in lists[at]]
        names = list(asked)
        tokens, types, offsets, truncated = tokenize(
            tokenizer, [questions[first[i]] for i in of_example], texts, max_length
        )
        packed, text_offsets = pack_texts(texts)
        aside = {
            "question_of_row": np.asarray([asked[key] for key in keys], np.int64),
            "question": np.asarray(of_example, np.int64),
            "place": np.asarray([p + 1 for at in first for p in range(len(lists[at]))], np.int64),
            "right": np.asarray(
                [t in right[names[i]] for i, t in zip(of_example, texts, strict=True)], bool
            ),
            "rights": np.asarray([len(right[key]) for key in asked], np.int64),
            "candidates": packed,
            "candidate_offsets": text_offsets,
        }
        row = np.asarray([first[i] for i in of_example], np.int64)
        return Encoded(
            tokens, types, offsets, row, truncated, {}, {}, 1, fitted, len(rows), aside=aside
        )

    def head(self, fitted: Mapping[str, Any]) -> partial:
        return partial(self.made, 1)

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over examples of the cross entropy, their number, {'accuracy': found ones})."""
        weight = batch["weight"]
        logits_BxP = outputs["logits"].reshape(len(weight), -1)
        loss = -jax.nn.log_softmax(logits_BxP, axis=1)[:, 0]
        hit = logits_BxP[:, 0] > jnp.max(logits_BxP[:, 1:], axis=1)  # a tie is no hit
        return jnp.sum(loss * weight), jnp.sum(weight), {"accuracy": jnp.sum(hit * weight)}

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """value float32 (B,): the logit of a question with a candidate."""
        return {"value": outputs["logits"][:, 0]}

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        """Ranking scores after re-ranking, and those of the first stage's order ('first_stage_…').
        A right answer that the first stage did not list has no rank: it counts as not found."""
        aside = {k: np.asarray(data.aside[k]) for k in ("question", "place", "right", "rights")}
        question, right = aside["question"], aside["right"]
        listed_rights = np.bincount(question[right], minlength=len(aside["rights"]))
        missed = np.repeat(np.arange(len(aside["rights"])), aside["rights"] - listed_rights)
        owner = np.concatenate([question[right], missed])
        never = np.full(len(missed), np.inf)
        value = predicted["value"]
        ahead = np.concatenate([wrong_ahead(question, value, right), never])
        ranks = ranks_among(owner, ahead, np.concatenate([value[right], -never]))
        after = ranking_scores(owner, ranks)
        before = ranking_scores(owner, np.concatenate([aside["place"][right], never]))
        sizes = {"questions": float(len(aside["rights"])), "pairs": float(len(question))}
        return {**after, **{f"first_stage_{k}": v for k, v in before.items()}, **sizes}

    def sizes(self, data: Encoded, scores: Mapping[str, float]) -> dict[str, int]:
        """{metric: how many questions it is a mean over}."""
        return dict.fromkeys(scores, len(data.aside["rights"]))

    @staticmethod
    def _candidate(aside: Mapping[str, np.ndarray], i: int) -> str:
        return text_at(aside["candidates"], aside["candidate_offsets"], int(i))

    def answers(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, rows: Rows
    ) -> list[dict[str, Any]]:
        """One JSON-able object a source row: its texts, the best candidate, and all in their new
        order with their logits and former places."""
        aside, value = data.aside, predicted["value"]
        question = np.asarray(aside["question"])
        edges = np.searchsorted(question, np.arange(len(aside["rights"]) + 1))
        out = []
        for row, asked in enumerate(np.asarray(aside["question_of_row"]).tolist()):
            answer = {c: rows.columns[c][row] for c in self.columns() if c in rows.columns}
            own = np.arange(edges[asked], edges[asked + 1])
            order = own[np.argsort(-value[own], kind="stable")]
            candidates = [
                {
                    "text": self._candidate(aside, i),
                    "score": round(float(value[i]), 6),
                    "first_stage": int(aside["place"][i]),
                }
                for i in order
            ]
            if aside["rights"][asked] and self.pair in answer:
                own_right = np.asarray(aside["right"])[own]
                ahead = wrong_ahead(question[own], value[own], own_right)
                ranks = ranks_among(np.zeros(len(ahead)), ahead, value[own][own_right])
                rank_of = {
                    self._candidate(aside, i): int(rank)
                    for i, rank in zip(own[own_right], ranks, strict=True)
                }
                answer["rank"] = rank_of.get(answer[self.pair])
            answer |= {
                "prediction": candidates[0]["text"],
                "candidates": candidates,
                "truncated": bool(np.asarray(data.truncated)[own].any()),
            }
            out.append(answer)
        return out

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        shown = [" ".join(str(t).split()) for t in (answer[self.text], answer["prediction"])]
        question, found = (t if len(t) <= 60 else t[:59] + "…" for t in shown)
        score = answer["candidates"][0]["score"]
        return f"{question} -> {found} ({score:.2f}{first_right(answer)})"


def wrong_ahead(question: np.ndarray, value: np.ndarray, right: np.ndarray) -> np.ndarray:
    """int64 (right ones,): how many wrong candidates of the same question score as high or higher
    than each right one. All arrays (N,), a question's examples next to each other."""
    out = []
    for i in np.flatnonzero(right):
        low, high = np.searchsorted(question, [question[i], question[i] + 1])
        own = slice(low, high)
        out.append(int((value[own][~right[own]] >= value[i]).sum()))
    return np.asarray(out, np.int64)
