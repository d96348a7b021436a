"""Tagging of words: entities, slots, or any label a word, over windows of long sentences.

Rows are lists of words with a list of tags, or texts with character spans; `tagged.py` reads
them. A word's label stands on its first sub-word. Every word is scored exactly once, whatever the
length of its sentence, and the number is asserted.

Fields of an example (one window; W: the most words of any), besides the batch's own:

    words   int32 (N, W)   column of each word's first sub-word in the window, -1 for none
    owned   int32 (N, W)   1 for the words that are scored in this window
    edges   int32 (N, 2)   1 where the window begins, and where it ends, the sentence
    tag     int32 (N, W)   the label, where rows have one; from len(labels) on: unseen in training
    begin, end   int32 (N, W)   where the word stands in the text, in characters
    row_words    int32 (N,)     words of the whole row
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded
from bert_ft.data.sources import Rows
from bert_ft.data.words import lay_out, special_ids, split
from bert_ft.evals.entities import entity_scores
from bert_ft.models import crf
from bert_ft.models.bert import Batch
from bert_ft.models.heads import Outputs, TokenHead
from bert_ft.tasks import divergence, schemes, tagged

WORDS = "of_words"  # among the outputs of a teacher: its logits, by word
SHOWN_TYPES = 30  # types whose own F1 is reported; more would drown the others


class Tagging:
    """Labels are the tags of the training rows in alphabetical order, 'O' first. `data.text` names
    the column of the words or the text, `data.label` that of the tags or the spans."""

    name = "tagging"
    metric = "f1"
    chosen_by = ("margin", "entropy", "badge", "k_centre")
    told_names = (WORDS,)

    def __init__(self, config: ConfigDict):
        self.text, self.label = config.data.text, config.data.label
        t, self.asked = config.task, config.eval.metric
        self.scheme, self.decode, self.stride = t.scheme, t.decode, t.stride
        self.crf_rate = t.crf_rate if t.decode == "crf" else 0.0
        self.characters = t.words == "characters"
        self.stop_unseen, self.widen = t.unseen_tags == "stop", t.cut_spans == "widen"
        self.limits: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def signature(self) -> dict[str, Any]:
        return {
            "task": self.name,
            "columns": self.columns(),
            "stride": self.stride,
            "scheme": self.scheme,
            "policies": [self.stop_unseen, self.widen],
            "read": schemes.READ,
            **({"words": "characters"} if self.characters else {}),
        }

    def columns(self) -> list[str]:
        return [self.text, self.label]

    def fit(self, rows: Rows) -> dict[str, Any]:
        """{'labels', 'scheme' (of the labels), 'read_as' (of the tags in the rows)}."""
        return tagged.fit(rows, self.text, self.label, self.scheme)

    def encode(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        given = tagged.inputs(rows, self.text)
        words = split(tokenizer, given, self.characters)
        gold, unseen = None, []
        if self.label in rows.columns:
            gold = tagged.tags(rows, self.label, given, words, fitted, self.widen)
            known = set(fitted["labels"])
            unseen = sorted({t for tags in gold for t in tags if t not in known})
            if unseen and self.stop_unseen:
                self._refuse(rows, gold, fitted["labels"])
        before, after = special_ids(tokenizer)
        tokens, offsets, row, truncated, fields = lay_out(
            words, before, after, max_length, self.stride
        )
        if gold is not None:
            number = {tag: i for i, tag in enumerate([*fitted["labels"], *unseen])}
            flat = np.asarray([number[t] for tags in gold for t in tags], np.int32)
            fields["tag"] = np.where(fields["words"] >= 0, _at(flat, fields.pop("word_index")), 0)
        else:
            del fields["word_index"]
        scored, total = fields["owned"].sum(), sum(map(len, words))
        assert scored == total, f"{scored} of {total} words are scored"
        types = np.zeros(len(tokens), np.int8)
        about = {**fitted, "unseen": unseen}
        return Encoded(tokens, types, offsets, row, truncated, fields, {}, 1, about, len(rows))

    def _refuse(self, rows: Rows, gold: Sequence[Sequence[str]], known: Sequence[str]) -> None:
        words = ((i, k, t) for i, tags in enumerate(gold) for k, t in enumerate(tags))
        i, k, tag = next(word for word in words if word[2] not in known)
        raise tagged.unseen(rows, i, k, tag, known)

    def head(self, fitted: Mapping[str, Any]) -> partial:
        # The labels come with the data, so what they allow is known only here.
        self.limits = schemes.forbidden(fitted["labels"], fitted["scheme"])
        return partial(TokenHead, len(fitted["labels"]), self.crf_rate)

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over words of the negative log-likelihood, their number, sums of other metrics)."""
        logits, tag = _of_words(outputs, batch), batch["tag"]
        owned = (batch["owned"] > 0) & (batch["weight"] > 0)[:, None]
        right = jnp.sum(owned & (jnp.argmax(logits, axis=2) == tag))
        # A batch of empty sentences has the loss 0, not 0/0; one without sentences has no count.
        floor = 1e-6 * jnp.sum(batch["weight"])
        count = jnp.maximum(jnp.sum(owned, dtype=jnp.float32), floor)
        total = jnp.sum(self._nll(outputs, logits, batch, owned, tag))
        return total, count, {"accuracy": right.astype(jnp.float32)}

    def _nll(
        self, outputs: Outputs, logits: jax.Array, batch: Batch, mask: jax.Array, tag: jax.Array
    ) -> jax.Array:
        """float32 (B,): of the masked words of each window."""
        if self.crf_rate:
            start, steps, end = _chain(outputs, batch)
            return -crf.log_likelihood(logits, mask, tag, start, steps, end)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), tag[..., None], axis=2)[..., 0]
        return -jnp.sum(log_p * mask, axis=1)

    def divergence(
        self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0
    ) -> jax.Array:
        """Sum over words, as in the loss, of KL(p || q) of each word's label: under a CRF, which
        the temperature softens too, of its marginals."""
        owned = (batch["owned"] > 0) & (batch["weight"] > 0)[:, None]
        sides = []
        for outputs in (p, q):
            logits = _of_words(outputs, batch) / temperature
            if self.crf_rate:
                chain = (x / temperature for x in _chain(outputs, batch))
                chances = crf.marginals(logits, batch["words"] >= 0, *chain)
                logits = jnp.log(jnp.maximum(chances, 1e-9))
            sides.append(logits)
        far = temperature**2 * divergence.categorical(sides[0], sides[1])
        return jnp.sum(far * owned)

    def told(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """As a SequenceTask's: the logits of the words of each window, float32 (B, W, C)."""
        return {WORDS: _of_words(outputs, batch)}

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """'tag' int32 (B, W) and 'probability' float32 (B, W) of the words of each window, and the
        'nll' (B,) of those it owns, where there are labels. Words that other windows own take part
        in the decoding, so that a path over a window's border sees what is beyond."""
        logits, mask = _of_words(outputs, batch), batch["words"] >= 0
        assert self.limits is not None
        chances = self._chances(outputs, batch)
        if self.crf_rate:
            start, steps, end = _chain(outputs, batch)
        else:
            start = end = jnp.zeros((len(logits), logits.shape[2]))
            steps = jnp.zeros((logits.shape[2],) * 2)
        if self.decode == "argmax":
            tag = jnp.argmax(logits, axis=2).astype(jnp.int32)
        else:
            begins, ends = (batch["edges"][:, k, None] for k in (0, 1))
            no_start, no_steps, no_end = self.limits
            allowed = start + no_start * begins, steps + no_steps, end + no_end * ends
            tag = crf.viterbi(jax.nn.log_softmax(logits), mask, *allowed)
        chance = jnp.take_along_axis(chances, tag[..., None], axis=2)[..., 0]
        out = {"tag": tag, "probability": chance}
        if "tag" in batch:
            seen = batch["tag"] < logits.shape[2]
            owned = (batch["owned"] > 0) & seen
            out["nll"] = self._nll(outputs, logits, batch, owned, jnp.where(seen, batch["tag"], 0))
        return out

    def _chances(self, outputs: Outputs, batch: Batch) -> jax.Array:
        """float32 (B, W, C): of each word's labels, a chain's marginals where there is one."""
        logits = _of_words(outputs, batch)
        if not self.crf_rate:
            return jax.nn.softmax(logits)
        return crf.marginals(logits, batch["words"] >= 0, *_chain(outputs, batch))

    def beliefs(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """What rows to label are chosen by: 'probabilities' (B, W, C) and, summed over the words
        that a window owns, 'pooled' (B, H), which the last layer reads, and the 'gradient' (B, C,
        H) of the loss by its weights, were each word's likeliest label the right one."""
        p, h = self._chances(outputs, batch), _of_words(outputs, batch, "hidden")
        owned = (batch["owned"] > 0)[..., None]
        off = jnp.where(owned, p - jax.nn.one_hot(jnp.argmax(p, axis=2), p.shape[2]), 0.0)
        gradient = jnp.einsum("bwc,bwh->bch", off, h, precision="highest")
        return {"probabilities": p, "pooled": jnp.sum(h * owned, axis=1), "gradient": gradient}

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        """Entities' scores, strict (f1, precision, recall, f1_macro, and f1/TYPE of each); accuracy
        and loss a word; words: how many were scored; unseen: those whose tag training lacks, which
        count as wrong and stay out of the loss."""
        labels, scheme = data.fitted["labels"], data.fitted["scheme"]
        all_labels = [*labels, *data.fitted["unseen"]]
        gold, guess = (_by_row(x, data) for x in (data.fields["tag"], predicted["tag"]))
        spelt = [
            [schemes.entities([all_labels[t] for t in tags], scheme) for tags in side]
            for side in (gold, guess)
        ]
        scores, by_type = entity_scores(*spelt)
        flat, said = np.concatenate(gold), np.concatenate(guess)
        words, known = len(flat), int((flat < len(labels)).sum())
        nll = float(predicted["nll"].sum(dtype=np.float64)) / known if known else np.nan
        scores |= {"accuracy": float((flat == said).mean()) if words else np.nan, "loss": nll}
        scores |= {"words": float(words), "unseen": float(words - known)}
        own = {f"f1/{k}": of["f1"] for k, of in by_type.items() if of["n"]}  # of types in the data
        few = len(own) <= SHOWN_TYPES
        return scores | {k: v for k, v in own.items() if few or k == self.asked}

    def answers(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, rows: Rows
    ) -> list[dict[str, Any]]:
        """One object a source row: text; prediction, and label where the row has one: the entities,
        as {start, end, type, text} in characters of `text`, end exclusive; words and tags: where
        each word stands and its predicted tag; truncated: whether sub-words of a word longer than
        a window were left out. A prediction's probability is the lowest of its words' tags.

        The text of a row given as words is those words joined by single blanks."""
        labels, scheme = data.fitted["labels"], data.fitted["scheme"]
        all_labels = [*labels, *data.fitted["unseen"]]
        begin, end, tag, chance = (
            _by_row(x, data)
            for x in (
                data.fields["begin"],
                data.fields["end"],
                predicted["tag"],
                predicted["probability"],
            )
        )
        gold = _by_row(data.fields["tag"], data) if "tag" in data.fields else None
        cut = np.bincount(data.row, data.truncated, minlength=data.source_rows) > 0
        out = []
        for i, given in enumerate(rows.columns[self.text]):
            text = given if isinstance(given, str) else " ".join(given)

            def spans(numbers: np.ndarray, i: int = i, text: str = text) -> list[dict[str, Any]]:
                found = schemes.entities([all_labels[t] for t in numbers], scheme)
                places = [
                    (int(begin[i][a]), int(end[i][b - 1]), kind, a, b) for kind, a, b in found
                ]
                return [
                    {"start": s, "end": e, "type": kind, "text": text[s:e], "at": (a, b)}
                    for s, e, kind, a, b in places
                ]

            answer: dict[str, Any] = {"text": text}
            if gold is not None:
                answer["label"] = [_without_place(s) for s in spans(gold[i])]
            answer["prediction"] = [
                {
                    **_without_place(s),
                    "probability": round(float(chance[i][slice(*s["at"])].min()), 6),
                }
                for s in spans(tag[i])
            ]
            answer["words"] = np.stack([begin[i], end[i]], axis=1).tolist()
            answer["tags"] = [labels[t] for t in tag[i]]
            answer["truncated"] = bool(cut[i])
            out.append(answer)
        return out

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""

        def listed(spans: Sequence[Mapping[str, Any]]) -> str:
            return ", ".join(f"{s['text']} ({s['type']})" for s in spans[:6]) or "nothing"

        text = answer["text"]
        shown = text if len(text) <= 90 else text[:89] + "…"
        label = listed(answer["label"]) if "label" in answer else "-"
        return f"{listed(answer['prediction'])}; label {label}: {shown}"


def _without_place(span: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in span.items() if k != "at"}


def _of_words(outputs: Outputs, batch: Batch, name: str = "logits") -> jax.Array:
    """Of the words of each window, float32 (B, W, C), from packed rows' (R, S, C): their logits, or
    what a teacher has told of them, or another output."""
    if name == "logits" and WORDS in outputs:
        return outputs[WORDS]
    values = outputs[name]
    index = batch["example_start"][:, None] + jnp.maximum(batch["words"], 0)
    return values.reshape(-1, values.shape[-1])[index]


def _chain(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The learnt chain; its scores of a beginning and an end hold only at the sentence's own."""
    begins, ends = (batch["edges"][:, k, None] for k in (0, 1))
    return outputs["start"] * begins, outputs["steps"], outputs["end"] * ends


def _at(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """values[index]; zeros where there are no values at all (rows without a single word)."""
    return values[index] if len(values) else np.zeros(index.shape, values.dtype)


def _by_row(values_NxW: np.ndarray, data: Encoded) -> list[np.ndarray]:
    """The values of each source row's words, in order, from the windows that own them. Windows lie
    in the order of their rows and own consecutive words."""
    owned = np.asarray(data.fields["owned"]) > 0
    counts = np.bincount(data.row, owned.sum(axis=1), minlength=data.source_rows).astype(np.int64)
    missing = counts[data.row] != data.fields["row_words"]
    assert not missing.any(), f"words of rows {data.row[missing][:5]} are not scored once each"
    return np.split(np.asarray(values_NxW)[owned], np.cumsum(counts)[:-1])
