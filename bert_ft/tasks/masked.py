"""Masked words: an encoder goes on learning a language, or a field's, from texts without labels.

Rows are texts, or lists of words. A text longer than data.max_length becomes consecutive pieces,
cut between words: no token is left out, and the number is asserted. Every time a piece is used,
other words are hidden (data/masking.py); an evaluation always hides the same ones.

Each token has a field `word`: the number of its word in the piece, from 1; 0 for special tokens. A
word is what the tokenizer makes before sub-words. One of more than LONGEST_WORD sub-words (a web
address, a clause of a language without blanks) is none: its sub-words count as words.

A set whose texts hold the mask token has a field besides, and what belongs to it `aside`:

    blank                    int32 (N, K)  place in the piece of each such token, -1 for none
    blank_begin, blank_end   int32 (N, K)  its characters in the text, end exclusive
    vocabulary, vocabulary_offsets         every token as text
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded
from bert_ft.data.masking import Masking
from bert_ft.data.sources import Rows
from bert_ft.data.texts import pack_texts, text_at
from bert_ft.data.words import Words, special_ids, split, windows
from bert_ft.errors import InputError
from bert_ft.models.bert import Batch
from bert_ft.models.heads import MaskedHead, Outputs
from bert_ft.tasks import tagged

LONGEST_WORD = 8  # sub-words
TOP = 5  # words that a prediction lists for each mask


class MaskedWords:
    """`data.text` is the column of the texts; labels there are none, and data.label is not read."""

    name = "masked"
    metric = "perplexity"  # the lower the better

    def __init__(self, config: ConfigDict):
        t = config.task
        self.text, self.whole_words = config.data.text, t.whole_words
        self.draw = Masking(t.mask_rate, t.mask_random, t.mask_kept)

    def signature(self) -> dict[str, Any]:
        longest = LONGEST_WORD if self.whole_words else 1
        return {"task": self.name, "columns": self.columns(), "longest_word": longest}

    def columns(self) -> list[str]:
        return [self.text]

    def fit(self, rows: Rows) -> dict[str, Any]:
        """Nothing is learnt from the rows; what is known of the tokenizer comes with `encode`."""
        return {}

    def encode(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded:
        if tokenizer.mask_token_id is None:
            raise InputError(
                "task 'masked': the tokenizer has no mask token; set config.model.tokenizer to one "
                "that has"
            )
        about: dict[str, Any] = {
            "mask_id": int(tokenizer.mask_token_id),
            "special_ids": sorted(map(int, tokenizer.all_special_ids)),
            "tokens": len(tokenizer),
        }
        before, after = special_ids(tokenizer)
        room = max_length - len(before) - len(after)
        assert len(before) + len(after) >= 2, "what Masking.slots counts on"
        words = split(tokenizer, tagged.inputs(rows, self.text))
        longest = min(LONGEST_WORD, room) if self.whole_words else 1
        tokens, numbers, row, blanks = [], [], [], []
        for i, text in enumerate(words):
            ids, sizes, begin, end = _units(text, longest)
            edges = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
            for w in windows(sizes.tolist(), room, 0):
                inside = ids[edges[w.first] : edges[w.last]]
                word = np.repeat(np.arange(1, w.last - w.first + 1), sizes[w.first : w.last])
                word[np.isin(inside, about["special_ids"])] = 0
                tokens.append(np.concatenate([before, inside, after]).astype(np.int32))
                numbers.append(np.pad(word, (len(before), len(after))).astype(np.int32))
                row.append(i)
                at = np.flatnonzero(inside == about["mask_id"])
                unit = np.searchsorted(edges, edges[w.first] + at, "right") - 1
                blanks.append((at + len(before), begin[unit], end[unit]))
        given = sum(len(word) for text in words for word in text.ids)
        kept = sum(map(len, tokens)) - len(tokens) * (len(before) + len(after))
        assert kept == given, f"{kept} of {given} tokens are in the pieces"
        offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens])]).astype(np.int64)
        flat = np.concatenate(tokens)
        fields, aside = _blank_fields(blanks, tokenizer)
        return Encoded(
            flat,
            np.zeros(len(flat), np.int8),
            offsets,
            np.asarray(row, np.int64),
            np.zeros(len(row), bool),
            fields,
            {"word": np.concatenate(numbers)},
            1,
            {**fitted, **about},
            len(rows),
            aside=aside,
        )

    def head(self, fitted: Mapping[str, Any]) -> partial:
        return partial(MaskedHead)

    def loss(
        self, outputs: Outputs, batch: Batch
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """(sum over hidden tokens of the cross entropy, their number, sums of other metrics)."""
        nll, right, real = _of_slots(outputs, batch)
        # A batch of which nothing can be hidden has the loss 0, not 0/0.
        count = jnp.maximum(jnp.sum(real, dtype=jnp.float32), 1e-6)
        return jnp.sum(nll), count, {"accuracy": jnp.sum(right, dtype=jnp.float32)}

    def predict(self, outputs: Outputs, batch: Batch) -> dict[str, jax.Array]:
        """Of each example, (B,): 'nll' summed over its hidden tokens, how many 'tokens' and 'words'
        they are, and how many are right, a word by all of its tokens. Where the set has blanks,
        'top' int32 and 'probability' float32 (B, K, TOP): the likeliest tokens of each, the
        likeliest first."""
        nll, right, real = _of_slots(outputs, batch)
        examples, (rows, slots) = batch["ordinal"].shape[0], real.shape
        of, word = batch["masked_of"], batch["masked_word"]
        # A row's slots stand in the order of its tokens, so those of a word stand together.
        opens = jnp.ones((rows, slots), bool)
        opens = opens.at[:, 1:].set((of[:, 1:] != of[:, :-1]) | (word[:, 1:] != word[:, :-1]))
        number = (jnp.cumsum(opens, axis=1) - 1) + jnp.arange(rows)[:, None] * slots
        wrong = jnp.zeros(rows * slots, jnp.int32).at[number].max((real & ~right).astype(jnp.int32))

        def by_example(values: jax.Array) -> jax.Array:
            return jnp.zeros(examples, values.dtype).at[of].add(values, mode="drop")

        out = {
            "nll": by_example(nll),
            "tokens": by_example(real.astype(jnp.int32)),
            "right": by_example(right.astype(jnp.int32)),
            "words": by_example((real & opens).astype(jnp.int32)),
            "words_right": by_example((real & opens & (wrong[number] == 0)).astype(jnp.int32)),
        }
        if "blank" in batch:
            top, probability = _best(outputs["logits"], batch)
            out |= {"top": top, "probability": probability}
        return out

    def score(self, predicted: Mapping[str, np.ndarray], data: Encoded) -> dict[str, float]:
        """perplexity: e to the mean loss of a hidden token; accuracy: share of hidden words all of
        whose tokens are guessed; masked_tokens and masked_words: how many were hidden. Of none
        these are NaN."""
        total = {k: float(predicted[k].sum(dtype=np.float64)) for k in ("nll", "right")}
        tokens, words = int(predicted["tokens"].sum()), int(predicted["words"].sum())
        loss = total["nll"] / tokens if tokens else np.nan
        return {
            "perplexity": float(np.exp(np.minimum(loss, 700.0))),
            "loss": loss,
            "accuracy": int(predicted["words_right"].sum()) / words if words else np.nan,
            "token_accuracy": total["right"] / tokens if tokens else np.nan,
            "masked_tokens": float(tokens),
            "masked_words": float(words),
        }

    def answers(
        self, predicted: Mapping[str, np.ndarray], data: Encoded, rows: Rows
    ) -> list[dict[str, Any]]:
        """One object a source row: text; prediction: for each mask token of the text its characters
        start and end (exclusive), and `words`, the likeliest tokens with their probabilities.
        A text without one has an empty list, and the `loss` of what an evaluation hides of it: the
        mean over `masked_tokens`. The text of a row given as words is those joined by blanks."""
        found: list[list[dict[str, Any]]] = [[] for _ in range(len(rows))]
        blank = data.fields.get("blank")
        for e, k in np.argwhere(np.asarray(blank) >= 0) if blank is not None else ():
            words = [
                {"word": self._shown(data, int(t)), "probability": round(float(p), 6)}
                for t, p in zip(predicted["top"][e, k], predicted["probability"][e, k], strict=True)
            ]
            begin, end = (int(data.aside[f"blank_{side}"][e, k]) for side in ("begin", "end"))
            found[data.row[e]].append({"start": begin, "end": end, "words": words})
        nll = np.bincount(data.row, predicted["nll"], minlength=len(rows))
        hidden = np.bincount(data.row, predicted["tokens"], minlength=len(rows))
        out = []
        for i, given in enumerate(rows.columns[self.text]):
            text = given if isinstance(given, str) else " ".join(given)
            answer: dict[str, Any] = {"text": text, "prediction": found[i]}
            if not found[i]:
                answer["masked_tokens"] = int(hidden[i])
                answer["loss"] = round(float(nll[i] / hidden[i]), 6) if hidden[i] else None
            out.append({**answer, "truncated": False})
        return out

    def _shown(self, data: Encoded, token: int) -> str:
        return text_at(data.aside["vocabulary"], data.aside["vocabulary_offsets"], token)

    def sentence(self, answer: Mapping[str, Any]) -> str:
        """An answer in a line, for the terminal."""
        text = answer["text"]
        shown = text if len(text) <= 90 else text[:89] + "…"
        if answer["prediction"]:
            said = "; ".join(
                " ".join(w["word"] for w in mask["words"]) for mask in answer["prediction"][:3]
            )
            return f"{said}: {shown}"
        if answer["loss"] is None:
            return f"nothing to hide: {shown}"
        return f"loss {answer['loss']:.2f} over {answer['masked_tokens']} hidden tokens: {shown}"


def _units(text: Words, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ids, and of each word its size, first and last character) of a row, a word of more than
    `longest` sub-words counting as that many words."""
    sizes = np.asarray([len(word) for word in text.ids], np.int64)
    ids = np.asarray([t for word in text.ids for t in word], np.int64)
    times = np.where(sizes > longest, sizes, 1)
    of = np.repeat(np.arange(len(sizes)), times)
    begin, end = np.asarray(text.begin, np.int64), np.asarray(text.end, np.int64)
    return ids, np.where(sizes > longest, 1, sizes)[of], begin[of], end[of]


def _blank_fields(
    blanks: list[tuple[np.ndarray, np.ndarray, np.ndarray]], tokenizer: Any
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(fields, aside) of a set by its pieces' masks; both empty where there is none."""
    counts = np.asarray([len(at) for at, _, _ in blanks])
    if not counts.any():
        return {}, {}
    here = np.arange(counts.max()) < counts[:, None]
    made = []
    for k, empty in enumerate((-1, 0, 0)):
        array = np.full(here.shape, empty, np.int32)
        array[here] = np.concatenate([b[k] for b in blanks])
        made.append(array)
    shown = [text.strip() for text in tokenizer.batch_decode([[i] for i in range(len(tokenizer))])]
    vocabulary, offsets = pack_texts(shown)
    aside = {"vocabulary": vocabulary, "vocabulary_offsets": offsets}
    return {"blank": made[0]}, {**aside, "blank_begin": made[1], "blank_end": made[2]}


def _of_slots(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(cross entropy, 0 where there is no token; whether it is guessed; whether there is one) of
    each slot, (R, M)."""
    logits, token = outputs["logits"], batch["masked_token"]
    real = token >= 0
    said = jnp.take_along_axis(logits, jnp.maximum(token, 0)[..., None], axis=2)[..., 0]
    nll = jax.nn.logsumexp(logits, axis=2) - said
    return jnp.where(real, nll, 0.0), real & (jnp.argmax(logits, axis=2) == token), real


def _best(logits: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The likeliest tokens of each blank and their probabilities, (B, K, TOP)."""
    rows, slots, vocab = logits.shape
    length = batch["tokens"].shape[1]
    value, top = jax.lax.top_k(logits, min(TOP, vocab))
    chance = jnp.exp(value - jax.nn.logsumexp(logits, axis=2, keepdims=True))
    place = batch["masked_slots"] + jnp.arange(rows)[:, None] * length
    place = jnp.where(batch["masked_of"] < batch["ordinal"].shape[0], place, rows * length)
    slot_of = jnp.zeros(rows * length, jnp.int32)
    slot_of = slot_of.at[place].set(jnp.arange(rows * slots).reshape(rows, slots), mode="drop")
    at = slot_of[batch["example_start"][:, None] + jnp.maximum(batch["blank"], 0)]
    top, chance = (x.reshape(rows * slots, -1)[at] for x in (top.astype(jnp.int32), chance))
    return top, chance
