"""Matching a question to the best stored answer: a bi-encoder (Reimers & Gurevych 2019)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded, tokenize
from bert_ft.data.sources import Rows, Source, source_of
from bert_ft.data.texts import pack_texts, text_at
from bert_ft.errors import InputError
from bert_ft.evals.ranking import ranking_scores, ranks_among
from bert_ft.models.bert import Batch
from bert_ft.models.heads import MASKED, EmbeddingHead, Outputs
from bert_ft.tasks.candidates import first_right, hard_negatives, numbered, texts_of
from bert_ft.tasks.ranking import rank


def pair_loss(
    vectors_BxPxH: jax.Array,
    text_BxP: jax.Array,
    weight_B: jax.Array,
    temperature: float,
    symmetric: bool,
) -> tuple[jax.Array, jax.Array]:
    """(loss, whether its own answer scores highest) of each pair, float32 (B,).

    Of an example's P unit vectors the first is its question, the second its right answer, the rest
    hard negatives; text_BxP numbers their texts. Cross entropy of the right answer among all B
    right answers and all hard negatives of the global batch, by cosine over temperature (van den
    Oord et al. 2018; Henderson et al. 2017, section 4.4). A text that the batch shows to be
    a right answer to the question, and the question's own text, are no negatives to it.
    `symmetric`: the mean of that and of the right question's among the B questions.
    """
    count, pieces, width = vectors_BxPxH.shape
    # Right answers first: column i is the right one of question i.
    columns_CxH = vectors_BxPxH[:, 1:].swapaxes(0, 1).reshape(-1, width)
    of_column_C = text_BxP[:, 1:].T.reshape(-1)
    question_B, answer_B = text_BxP[:, 0], text_BxP[:, 1]
    # At full precision: a TPU would take bfloat16 products otherwise.
    logits_BxC = jnp.matmul(vectors_BxPxH[:, 0], columns_CxH.T, precision="highest") / temperature

    same_BxB = (question_B[:, None] == question_B).astype(jnp.float32)
    answers_BxC = (answer_B[:, None] == of_column_C).astype(jnp.float32)
    right_BxC = (same_BxB @ answers_BxC > 0) | (question_B[:, None] == of_column_C)
    own_BxC = jnp.arange(count)[:, None] == jnp.arange(count * (pieces - 1))
    real_C = jnp.tile(weight_B > 0, pieces - 1)
    logits_BxC = jnp.where(own_BxC | (real_C & ~right_BxC), logits_BxC, MASKED)

    loss_B = -jnp.diagonal(jax.nn.log_softmax(logits_BxC, axis=1))
    hit_B = (jnp.argmax(logits_BxC, axis=1) == jnp.arange(count)).astype(jnp.float32)
    if symmetric:
        back_BxB = jnp.where(weight_B[:, None] > 0, logits_BxC[:, :count], MASKED)
        loss_B = (loss_B - jnp.diagonal(jax.nn.log_softmax(back_BxB, axis=0))) / 2
    return loss_B, hit_B


class Matching:
    """`data.text` is a question, `data.text_pair` a right answer to it.

    A training example is a pair, and `task.negatives` hard negatives from the row's `candidates`.
    A scored set is its distinct questions and candidates, each embedded once: those of
    `data.candidates`, or else the set's own answers; rows to predict for have those of
    `data.candidates`, or else all answers of data.train, dev and test.
    """

    name = "matching"
    metric = "mrr"

    def __init__(self, config: ConfigDict):
        self.config, t = config, config.task
        self.text, self.pair = config.data.text, config.data.text_pair
        self.pooling, self.temperature, self.symmetric = t.pooling, t.temperature, t.symmetric
        self.negatives, self.top_k = t.negatives, t.top_k

    def _source(self, uri: str, bad_rows: str) -> Source:
        return source_of(self.config, uri, bad_rows)

    @functools.cached_property
    def _stored(self) -> Source | None:
        """A candidate that can't be read is never skipped but at the URI's own bad_rows=skip."""
        uri = self.config.data.candidates
        return self._source(uri, "stop") if uri else None

    def signature(self) -> dict[str, Any]:
        stored = self._stored.fingerprint() if self._stored else ""
        about = {"task": self.name, "columns": self.columns(), "candidates": stored}
        return {**about, "negatives": self.negatives}

    def columns(self) -> list[str]:
        return [self.text, self.pair]

    def fit(self, rows: Rows) -> dict[str, Any]:
        answers = set(texts_of(rows, self.pair))
        if len(answers) < 2:
            raise InputError(
                f"{rows.origin}: column {self.pair!r} has one answer only; at least 2, as the "
                "others of a batch are the wrong ones"
            )
        return {"answers": len(answers)}

    def encode_training(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        """The pairs. Field text int32 (N, pieces): one number for each text."""
        questions, answers = texts_of(rows, self.text), texts_of(rows, self.pair)
        hard: list[list[str]] = [[] for _ in questions]
        if self.negatives:
            hard = hard_negatives(rows, questions, answers, self.negatives)
        texts = [t for q, a, h in zip(questions, answers, hard, strict=True) for t in (q, a, *h)]
        pieces, number = 2 + self.negatives, numbered(texts)[0]
        text = np.asarray([number[t] for t in texts], np.int32).reshape(-1, pieces)
        tokens, types, offsets, truncated = tokenize(tokenizer, texts, None, max_length)
        row = np.arange(len(rows), dtype=np.int64)
        cut = np.any(truncated.reshape(-1, pieces), axis=1)
        return Encoded(
            tokens, types, offsets, row, cut, {"text": text}, {}, pieces, fitted, len(rows)
        )

    def encode(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        """A set to score: every question has a right answer among the candidates."""
        questions, answers = texts_of(rows, self.text), texts_of(rows, self.pair)
        if self._stored is None:
            number, first = numbered(answers)
            where = np.asarray(first, np.int64)
        else:
            number = self._read(self._stored)
            where = np.full(len(number), -1, np.int64)
            for i, answer in enumerate(answers):
                if answer not in number:
                    raise InputError(
                        f"{rows.where(i)}: its {self.pair} is not among the {len(number):,} "
                        f"candidates of {self._stored.uri}"
                    )
        right = [number[answer] for answer in answers]
        return self._ranked(questions, number, where, right, tokenizer, max_length, fitted)

    def encode_unlabelled(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        """Rows to predict for: what answers they have play no part. `skipped` are answers that
        can't be read."""
        questions = texts_of(rows, self.text, blank=True)
        if self._stored is not None:
            sources = [self._stored]
        else:
            d = self.config.data
            uris = filter(None, (d.train, d.dev, d.test))
            sources = [self._source(uri, d.bad_rows) for uri in uris]
        if not sources:
            raise InputError("config.data.candidates is '', and no set has answers: set it")
        read = [source.read() for source in sources]
        number, _ = numbered([text for own in read for text in texts_of(own, self.pair)])
        where = np.full(len(number), -1, np.int64)
        skipped = tuple(line for own in read for line in own.skipped)
        made = self._ranked(questions, number, where, [], tokenizer, max_length, fitted)
        return dataclasses.replace(made, skipped=skipped)

    def _read(self, source: Source) -> dict[str, int]:
        return numbered(texts_of(source.read(), self.pair))[0]

    def _ranked(
        self,
        questions: list[str],
        number: Mapping[str, int],
        where: np.ndarray,
        right: list[int],
        tokenizer: Any,
        max_length: int,
        fitted: Mapping[str, Any],
    ) -> Encoded:
        """Distinct questions, then distinct candidates. number: {candidate: its number}; where: the
        row of each, -1 for none; right: the number of each row's answer, none in prediction."""
        asked, first = numbered(questions)
        of_row = np.asarray([asked[q] for q in questions], np.int64)
        tokens, types, offsets, truncated = tokenize(tokenizer, [*asked, *number], None, max_length)
        right_of_row = np.asarray(right, np.int64)
        pairs = np.unique(np.stack([of_row[: len(right)], right_of_row], axis=1), axis=0)
        # To a question that is labelled with others, its own text is no candidate.
        barred = np.full(len(asked), -1, np.int64)
        if right:
            known = set(map(tuple, pairs.tolist()))
            for text, i in asked.items():
                if text in number and (i, number[text]) not in known:
                    barred[i] = number[text]
        packed, text_offsets = pack_texts(list(number))
        aside = {
            "question_of_row": of_row,
            "right_of_row": right_of_row,
            "pairs": pairs,
            "barred": barred,
            "candidates": packed,
            "candidate_offsets": text_offsets,
        }
        row = np.concatenate([np.asarray(first, np.int64), where])
        return Encoded(
            tokens, types, offsets, row, truncated, {}, {}, 1, fitted, len(questions), aside=aside
        )

    def head(self, fitted: Mapping[str, Any]) -> partial:
        return partial(EmbeddingHead, self.pooling)

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over pairs of `pair_loss`, their number, {'accuracy': own answers found})."""
        text, weight, vectors = batch["text"], batch["weight"], outputs["embedding"]
        vectors_BxPxH = vectors.reshape(*text.shape, -1)
        loss, hit = pair_loss(vectors_BxPxH, text, weight, self.temperature, self.symmetric)
        return jnp.sum(loss * weight), jnp.sum(weight), {"accuracy": jnp.sum(hit * weight)}

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """embedding float32 (B, H), of scored sets."""
        return {"embedding": outputs["embedding"]}

    def ranked(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, k: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(scores (Q, k), candidates (Q, k), rank (P,) of each of the aside's pairs)."""
        vectors, aside = predicted["embedding"], data.aside
        count, pairs = len(aside["barred"]), np.asarray(aside["pairs"])
        questions, candidates = vectors[:count], vectors[count:]
        right = pairs[:, 0], pairs[:, 1]
        barred = np.asarray(aside["barred"])
        scores, best, ahead, own = rank(questions, candidates, right, barred, k)
        return scores, best, ranks_among(pairs[:, 0], ahead, own)

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        """Means over the distinct questions, each against all candidates; and how many of both."""
        questions = len(data.aside["barred"])
        ranks = self.ranked(predicted, data, 1)[2]
        scores = ranking_scores(np.asarray(data.aside["pairs"])[:, 0], ranks)
        sizes = {"questions": float(questions), "candidates": float(len(data) - questions)}
        return {**scores, **sizes}

    def sizes(self, data: Encoded, scores: Mapping[str, float]) -> dict[str, int]:
        """{metric: how many questions it is a mean over}."""
        return dict.fromkeys(scores, len(data.aside["barred"]))

    def answers(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, rows: Rows
    ) -> list[dict[str, Any]]:
        """One JSON-able object a source row: its texts, the rank of its right answer where the set
        is a scored one, the best candidate, and the `task.top_k` best with their cosines."""
        aside = data.aside
        scores, best, ranks = self.ranked(predicted, data, self.top_k)
        pairs = map(tuple, np.asarray(aside["pairs"]).tolist())
        rank_of = dict(zip(pairs, ranks.tolist(), strict=True))
        out = []
        for row, question in enumerate(np.asarray(aside["question_of_row"]).tolist()):
            answer = {c: rows.columns[c][row] for c in self.columns() if c in rows.columns}
            if len(aside["right_of_row"]):
                answer["rank"] = int(rank_of[question, int(aside["right_of_row"][row])])
            candidates = [
                {
                    "text": text_at(aside["candidates"], aside["candidate_offsets"], int(i)),
                    "score": round(float(score), 6),
                }
                for score, i in zip(scores[question], best[question], strict=True)
                if i >= 0
            ]
            answer |= {
                "prediction": candidates[0]["text"] if candidates else "",
                "candidates": candidates,
                "truncated": bool(data.truncated[question]),
            }
            out.append(answer)
        return out

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        score = answer["candidates"][0]["score"] if answer["candidates"] else float("nan")
        shown = [str(answer[self.text]), answer["prediction"]]
        shown = [" ".join(t.split()) for t in shown]
        question, found = (t if len(t) <= 60 else t[:59] + "…" for t in shown)
        return f"{question} -> {found} ({score:.2f}{first_right(answer)})"
