"""Extractive question answering: the answer is a span of the context, or, as in SQuAD 2.0, none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded, ReadsBoth
from bert_ft.data.sources import Rows
from bert_ft.data.texts import pack_texts, text_at
from bert_ft.data.windows import find_span, make_windows
from bert_ft.errors import InputError
from bert_ft.evals import squad
from bert_ft.models.bert import Batch
from bert_ft.models.heads import MASKED, Outputs, SpanHead
from bert_ft.tasks import divergence
from bert_ft.tasks.span_candidates import (
    Candidate,
    best_null_threshold,
    gold_answers,
    rounded,
    with_probabilities,
)


class SpanAnswers(ReadsBoth):
    """`data.text` is the column of the question, `data.text_pair` of the context, `data.label` of
    the answers: a list of {"text", "start"}, start in characters of the context, empty where the
    context holds no answer. Training takes the first answer of a row, scoring all of them.

    An example is a window: the question and a slice of the context. It counts as truncated where
    the question is cut, or where no window holds the first answer, longer than what windows share,
    whole, so that all of them point to [CLS]. For scores the encoded set has `aside`, which no
    batch holds: `characters` int32 (T, 2), the characters of its context that each token is; the
    texts of contexts (`context`, `context_offsets`, and `context_of` by row) and of gold answers
    (`gold`, `gold_offsets`; row r has those from `gold_of`[r] to [r + 1])."""

    name = "span"
    metric = "f1"
    told_names = ("start", "end")

    def __init__(self, config: ConfigDict):
        d, t = config.data, config.task
        self.question, self.context, self.label = d.text, d.text_pair, d.label
        self.stride, self.max_question = t.stride, t.max_question
        self.max_answer, self.n_best = t.max_answer, t.n_best
        self.null_threshold, self.choose_null = t.null_threshold, t.choose_null

    def signature(self) -> dict[str, Any]:
        windows = {"stride": self.stride, "max_question": self.max_question}
        return {"task": self.name, "columns": self.columns(), **windows}

    def columns(self) -> list[str]:
        return [self.question, self.context, self.label]

    def fit(self, rows: Rows) -> dict[str, Any]:
        """{'unanswerable': whether a training question has no answer}: else none is predicted."""
        return {"unanswerable": any(not golds for golds in self._golds(rows))}

    def _name(self, rows: Rows, i: int) -> str:
        known = f": question {rows.columns['id'][i]}" if "id" in rows.columns else ""
        return rows.where(i) + known

    def _texts(self, rows: Rows, column: str, blank: bool = False) -> list[str]:
        texts = rows.column(column)
        for i, text in enumerate(texts):
            if not isinstance(text, str) or not (blank or text.strip()):
                seen = "is empty" if isinstance(text, str) else f"is {text!r}, not a text"
                raise InputError(f"{self._name(rows, i)}: column {column!r} {seen}")
        return texts

    def _golds(self, rows: Rows) -> list[list[tuple[str, int]]]:
        """The answers of each row; raises InputError for one that is not in its context."""
        all_golds, contexts = [], self._texts(rows, self.context)
        for i, value in enumerate(rows.column(self.label)):
            try:
                golds = gold_answers(value)
            except ValueError as e:
                raise InputError(f"{self._name(rows, i)}: column {self.label!r}: {e}") from None
            for text, start in golds:
                if not text.strip() or start < 0 or not contexts[i].startswith(text, start):
                    there = contexts[i][max(start, 0) : max(start, 0) + max(len(text), 10)]
                    raise InputError(
                        f"{self._name(rows, i)}: answer {text[:60]!r} is not in its context at "
                        f"character {start}: there is {there[:60]!r}"
                    )
            all_golds.append(golds)
        return all_golds

    def encode(
        self,
        rows: Rows,
        tokenizer: Any,
        max_length: int,
        fitted: Mapping[str, Any],
        labelled: bool = True,
    ) -> Encoded:
        """Of rows to predict for a blank question, or context, has an empty answer."""
        blank = not labelled
        questions, contexts = (self._texts(rows, c, blank) for c in (self.question, self.context))
        w = make_windows(tokenizer, questions, contexts, max_length, self.max_question, self.stride)
        w.context[[not questions[row].strip() for row in w.row]] = 0
        for i in np.flatnonzero(w.context[:, 1] == 0) if not blank else ():
            at = self._name(rows, int(w.row[i]))
            raise InputError(f"{at}: column {self.context!r} has no character that is a token")
        number = {text: i for i, text in enumerate(dict.fromkeys(contexts))}
        packed, offsets = pack_texts(list(number))
        aside = {"characters": w.characters, "context": packed, "context_offsets": offsets}
        aside["context_of"] = np.asarray([number[text] for text in contexts], np.int32)
        fields, truncated = {"context": w.context}, w.cut
        if self.label in rows.columns:
            golds = self._golds(rows)
            aside["gold"], aside["gold_offsets"] = pack_texts([t for g in golds for t, _ in g])
            aside["gold_of"] = np.cumsum([0, *map(len, golds)], dtype=np.int64)
            first = np.asarray([g[0][1] if g else -1 for g in golds], np.int64)
            after = np.asarray([g[0][1] + len(g[0][0]) if g else -1 for g in golds], np.int64)
            fields["answer"] = find_span(w, first, after)
            held = np.zeros(len(rows), bool)
            held[w.row[fields["answer"][:, 1] > 0]] = True
            truncated = truncated | ((first >= 0) & ~held)[w.row]
        return Encoded(
            w.tokens, w.types, w.offsets, w.row, truncated, fields, {}, 1, fitted, len(rows),
            aside=aside,
        )  # fmt: skip

    def head(self, fitted: Mapping[str, Any]) -> partial:
        return partial(SpanHead)

    def _cross_entropy(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """float32 (B,): the mean of the start's and the end's over the tokens of the example."""
        sides = [
            -jnp.take_along_axis(jax.nn.log_softmax(outputs[side]), index[:, None], axis=1)[:, 0]
            for side, index in (("start", batch["answer"][:, 0]), ("end", batch["answer"][:, 1]))
        ]
        return (sides[0] + sides[1]) / 2

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over windows of the cross entropy, their number, sums of further train metrics); a
        window without its answer points to its first token, [CLS] (Devlin et al. 2019, 4.3)."""
        weight = batch["weight"]
        guess_Bx2 = jnp.stack([jnp.argmax(outputs[side], 1) for side in ("start", "end")], 1)
        right = jnp.all(guess_Bx2 == batch["answer"], axis=1).astype(jnp.float32)
        nll = self._cross_entropy(outputs, batch)
        return jnp.sum(nll * weight), jnp.sum(weight), {"windows_right": jnp.sum(right * weight)}

    def divergence(
        self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0
    ) -> jax.Array:
        """Sum over windows of KL(p || q), the mean of the start's and the end's."""
        start, end = (
            divergence.categorical(p[side], q[side], temperature) for side in ("start", "end")
        )
        return jnp.sum((start + end) / 2 * batch["weight"])

    def told(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """As a SequenceTask's: the scores of each token, float32 (B, L)."""
        return {side: outputs[side] for side in ("start", "end")}

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """The best `task.n_best` spans of each window among all of at most `task.max_answer`
        tokens: `start`, `end` int32 (B, k) in tokens of the window, `score` float32 (B, k), MASKED
        where there are fewer; `null` (B,), the score of [CLS]; `loss` (B,) with known answers."""
        start_BxL, end_BxL = outputs["start"], outputs["end"]
        length = start_BxL.shape[1]
        width = min(self.max_answer, length)
        at = jnp.arange(length)
        ends_LxA = at[:, None] + jnp.arange(width)
        score_BxLxA = start_BxL[:, :, None] + end_BxL[:, jnp.minimum(ends_LxA, length - 1)]
        first_Bx1, after_Bx1 = batch["context"][:, :1], batch["context"][:, 1:]
        opens_BxL = (at >= first_Bx1) & (at < after_Bx1)
        allowed_BxLxA = opens_BxL[:, :, None] & (ends_LxA < after_Bx1[..., None])
        flat_BxN = jnp.where(allowed_BxLxA, score_BxLxA, MASKED).reshape(len(start_BxL), -1)
        score, place = jax.lax.top_k(flat_BxN, min(self.n_best, flat_BxN.shape[1]))
        start = place // width
        out = {"start": start, "end": start + place % width, "score": score}
        out["null"] = start_BxL[:, 0] + end_BxL[:, 0]
        if "answer" in batch:
            out["loss"] = self._cross_entropy(outputs, batch)
        return out

    def candidates(
        self, predicted: Mapping[str, np.ndarray], data: Encoded
    ) -> Iterator[tuple[str, list[Candidate]]]:
        """(context, its candidates, the answer first) of each source row. Where the training set
        had questions without an answer, '' is one of them, and comes first where its score exceeds
        the best other one's by more than `threshold` (4.3)."""
        threshold = self.threshold(data.fitted)
        for context, listed, null in self._found(predicted, data):
            if not listed:
                listed = [null]
            elif data.fitted["unanswerable"]:
                first = null.score - listed[0].score > threshold
                listed = [null, *listed] if first else [listed[0], null, *listed[1:]]
            yield context, with_probabilities(listed)

    def threshold(self, fitted: Mapping[str, Any]) -> float:
        """`task.null_threshold`, or with `task.choose_null` what `tune` chose."""
        chosen = fitted if self.choose_null else {}
        return chosen.get("null_threshold", self.null_threshold)

    def tune(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, Any]:
        """{'null_threshold': the one of the best F1 on these data}, where there are questions
        without an answer and `task.choose_null`."""
        if not (self.choose_null and data.fitted["unanswerable"] and "gold_of" in data.aside):
            return {}
        apart: list[float] = []
        said: list[float] = []
        silent: list[float] = []
        for (_, listed, null), golds in zip(
            self._found(predicted, data), _gold_texts(data), strict=True
        ):
            if listed:  # else nothing is answered whatever the threshold
                apart.append(null.score - listed[0].score)
                texts = (listed[0].text, "")
                both = (squad.best_over_golds(t, golds, unanswerable=True)[1] for t in texts)
                for values, f1 in zip((said, silent), both, strict=True):
                    values.append(f1)
        if not apart:
            return {}
        found = (np.asarray(values) for values in (apart, said, silent))
        return {"null_threshold": best_null_threshold(*found)}

    def _found(
        self, predicted: Mapping[str, np.ndarray], data: Encoded
    ) -> Iterator[tuple[str, list[Candidate], Candidate]]:
        """(context, its spans, the best first, and '' with the lowest of the windows' null scores)
        of each source row. Of spans that read the same, in one window or in several, the best
        stays; blanks are none."""
        assert len(np.unique(data.row)) == data.source_rows, "a question without a window"
        aside, begin = data.aside, np.asarray(data.offsets[:-1])[:, None]
        # What a window with fewer spans is filled up with may lie outside it.
        start_Wxk, end_Wxk = (
            aside["characters"][begin + np.minimum(predicted[side], data.lengths - 1), i]
            for i, side in enumerate(("start", "end"))
        )
        bounds = np.searchsorted(data.row, np.arange(data.source_rows + 1))
        for row in range(data.source_rows):
            mine = slice(bounds[row], bounds[row + 1])
            context = text_at(aside["context"], aside["context_offsets"], aside["context_of"][row])
            scores = predicted["score"][mine].reshape(-1)
            starts, ends = start_Wxk[mine].reshape(-1), end_Wxk[mine].reshape(-1)
            best: dict[str, Candidate] = {}
            for i in np.argsort(-scores, kind="stable"):
                if len(best) == self.n_best or scores[i] <= MASKED / 2:
                    break
                said = context[int(starts[i]) : int(ends[i])]
                if text := said.strip():  # a token of other families than BERT's can hold blanks
                    a = int(starts[i]) + said.index(text)
                    best.setdefault(text, Candidate(text, a, a + len(text), float(scores[i])))
            listed = [*best.values()]
            null = Candidate("", None, None, float(predicted["null"][mine].min()))
            yield context, listed, null

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        """{metric: value} over all questions, by the official definitions (evals/squad.py); `loss`
        is the mean over windows. Raises InputError where the set has no answers."""
        if "gold_of" not in data.aside:
            raise InputError(f"a set to score has no column {self.label!r} (config.data.label)")
        said = [listed[0].text for _, listed in self.candidates(predicted, data)]
        golds = _gold_texts(data)
        unanswerable = bool(data.fitted["unanswerable"]) or not all(golds)
        return {**squad.score(said, golds, unanswerable), "loss": float(predicted["loss"].mean())}

    def sizes(self, data: Encoded, scores: Mapping[str, float]) -> dict[str, int]:
        """{metric: how many questions it is a mean over}, of those of one kind of questions."""
        has = int(np.count_nonzero(np.diff(data.aside["gold_of"])))
        kinds = {"has_answer_": has, "no_answer_": data.source_rows - has}
        return {m: n for m in scores for kind, n in kinds.items() if m.startswith(kind)}

    def answers(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, rows: Rows
    ) -> list[dict[str, Any]]:
        """One JSON-able object a source row, in its order: its id, question and context, the gold
        answers as `label`, the best candidate as `prediction`, all of them as `n_best`, and whether
        it was `truncated`; start and end are characters of the context."""
        golds = self._golds(rows) if self.label in rows.columns else []
        cut = np.zeros(len(rows), bool)
        cut[data.row] = data.truncated
        out = []
        for i, (context, listed) in enumerate(self.candidates(predicted, data)):
            answer = {"id": rows.columns["id"][i]} if "id" in rows.columns else {}
            answer |= {self.question: rows.columns[self.question][i], self.context: context}
            if golds:
                answer["label"] = [{"text": text, "start": start} for text, start in golds[i]]
            n_best = [rounded(candidate) for candidate in listed]
            answer |= {"prediction": n_best[0], "n_best": n_best, "truncated": bool(cut[i])}
            out.append(answer)
        return out

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        question, said = str(answer[self.question]), answer["prediction"]
        shown = question if len(question) <= 90 else question[:89] + "…"
        golds = dict.fromkeys(gold["text"] for gold in answer.get("label", []))
        sure = f"{said['probability']:.0%}; label {' / '.join(golds) or '-'}"
        return f"{said['text'] or '(no answer)'} ({sure}): {shown}"


def _gold_texts(data: Encoded) -> list[list[str]]:
    """The gold answers of each source row."""
    aside = data.aside
    return [
        [text_at(aside["gold"], aside["gold_offsets"], i) for i in range(a, b)]
        for a, b in zip(aside["gold_of"][:-1], aside["gold_of"][1:], strict=True)
    ]
