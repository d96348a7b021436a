"""Words that a masked-word model proposes in their context, for augmentation (data/augment.py)."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_ft import config as defaults
from bert_ft.data.augment import Proposals
from bert_ft.data.batches import EvalPlan
from bert_ft.data.pieces import Pieces, as_text, changed
from bert_ft.data.rows import Rows
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError
from bert_ft.models import hf
from bert_ft.models.heads import Model, kind_of
from bert_ft.tasks.masked import MaskedWords

BATCH = 32  # texts
VERSION = 2  # of what is proposed: raise it when the same model proposes other words


@dataclasses.dataclass(frozen=True)
class Proposer:
    """The model of a directory, of which nothing is read before the first proposals. It runs on a
    device of its own process: each process prepares the whole set."""

    path: Path
    max_length: int
    uri: str

    def digest(self) -> str:
        """SHA-256 (hex) of the model's and the tokenizer's files."""
        found = hashlib.sha256(f"{self.max_length},{VERSION}".encode())
        for path in sorted(self.path.iterdir()):
            if path.suffix in (".safetensors", ".bin", ".json", ".txt"):
                with path.open("rb") as file:
                    found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()

    @functools.cached_property
    def _parts(self) -> tuple[Any, MaskedWords, Model, Any]:
        """(tokenizer, task, model, params)."""
        c = defaults.default()
        tokenizer, task, sizes = (
            load_tokenizer(self.path),
            MaskedWords(c),
            hf.read_config(self.path),
        )
        model = Model(sizes, task.head({}))
        data = task.encode(_rows([f"{tokenizer.mask_token}"]), tokenizer, 8, {})
        batch = EvalPlan(data, 1, 16, draw=task.draw).batch(0)
        shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
        found, new = hf.load(self.path, shapes, kind_of(model.head))
        if new:
            raise InputError(
                f"config.data.augment_model is {self.uri!r}, which has no masked-word head; "
                "accepted: a BertForMaskedLM, such as task 'masked' exports"
            )
        return tokenizer, task, model, hf.unflatten(found)

    def __call__(self, texts: Sequence[Pieces], places: Sequence[Sequence[int]]) -> Proposals:
        """The likeliest whole words, with their probabilities, in these places, hidden together."""
        if not texts:
            return []
        tokenizer, task, model, params = self._parts
        hidden = [
            as_text(changed(pieces, dict.fromkeys(own, tokenizer.mask_token)))[0]
            for pieces, own in zip(texts, places, strict=True)
        ]
        length = min(self.max_length, model.config.positions)
        data = task.encode(_rows(hidden), tokenizer, length, {})
        plan = EvalPlan(data, BATCH, -(-int(data.lengths.max()) // 16) * 16, draw=task.draw)

        @jax.jit
        def predict(params: Any, batch: Any) -> Any:
            outputs: Any = model.apply({"params": params}, batch)
            out = task.predict(outputs, batch)
            return out["top"], out["probability"]

        params = jax.device_put(params, jax.local_devices()[0])
        tokens = np.zeros((*data.fields["blank"].shape, 0), np.int32)
        chances = np.zeros_like(tokens, np.float32)
        for step, examples in enumerate(plan.order):
            top, chance = map(np.asarray, predict(params, plan.batch(step)))
            if not tokens.shape[2]:
                tokens = np.zeros((*tokens.shape[:2], top.shape[2]), np.int32)
                chances = np.zeros(tokens.shape, np.float32)
            real = examples >= 0
            tokens[examples[real]], chances[examples[real]] = top[real], chance[real]
        words = begun_words(tokenizer, np.unique(tokens).tolist())
        out: Proposals = [[] for _ in texts]
        for example, row in enumerate(data.row):
            for k in np.flatnonzero(np.asarray(data.fields["blank"][example]) >= 0):
                likeliest = zip(tokens[example, k].tolist(), chances[example, k], strict=True)
                out[row].append([(words[t], float(p)) for t, p in likeliest if t in words])
        # A text that has mask tokens of its own stays as it is.
        return [
            found if len(found) == len(own) else [[] for _ in own]
            for own, found in zip(places, out, strict=True)
        ]


def begun_words(tokenizer: Any, tokens: Sequence[int]) -> dict[int, str]:
    """{token: its text} of those that begin a word; marks, and what goes on with one, are left out.
    Families mark a word's beginning or its going on, each in its own way: so the tokens are read
    behind a word."""
    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    texts = [
        tokenizer.decode([*before, *more], clean_up_tokenization_spaces=False)
        for more in ([], *([token] for token in tokens))
    ]
    start = texts[0] + " "
    found = {
        t: s[len(start) :] for t, s in zip(tokens, texts[1:], strict=True) if s.startswith(start)
    }
    return {token: word for token, word in found.items() if word.isalnum()}


def _rows(texts: Sequence[str]) -> Rows:
    return Rows({"text": list(texts)}, None, "the training rows")
