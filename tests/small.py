"""Small data, models and batches that several unit tests share."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft import config as defaults
from bert_ft.data.encode import Encoded
from bert_ft.models.bert import EncoderConfig
from bert_ft.models.heads import Model, SequenceHead
from bert_ft.tasks.classification import Classification
from bert_ft.train.system import example_batch

CLASSES = 3
# Weights larger than BERT's 0.02: with those a random model says the same whatever it reads.
SIZES = EncoderConfig(
    vocab_size=83,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
    initializer_range=0.2,
)


def encoded(lengths: Any, pieces: int = 1, seed: int = 0, vocab: int = SIZES.vocab_size) -> Encoded:
    """Examples of `pieces` random sequences of these lengths, with a label and a field a token."""
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths, np.int64).reshape(-1)
    total, count = int(lengths.sum()), len(lengths) // pieces
    return Encoded(
        tokens=rng.integers(1, vocab, total).astype(np.int32),
        types=rng.integers(0, 2, total).astype(np.int8),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        row=np.arange(count, dtype=np.int64),
        truncated=np.zeros(count, bool),
        fields={"label": rng.integers(0, CLASSES, count).astype(np.int32)},
        token_fields={"tag": np.arange(1, total + 1, dtype=np.int32)},
        pieces=pieces,
        fitted={"labels": list("abc"), "names": list("abc")},
        source_rows=count,
    )


def varied(count: int, longest: int = 16, seed: int = 0) -> Encoded:
    return encoded(np.random.default_rng(seed).integers(2, longest + 1, count), seed=seed)


def model(sizes: EncoderConfig = SIZES, dtype: Any = jnp.float32, classes: int = CLASSES) -> Model:
    return Model(sizes, partial(SequenceHead, classes), jnp.dtype(dtype))


def init(made: Model, seed: int = 0) -> Any:
    """Parameters drawn without compiling the initialisers: LayerNorm about 1, the rest about 0,
    with biases and gains that differ, so that none can be left out unnoticed."""
    shapes = jax.eval_shape(made.init, jax.random.key(0), example_batch())["params"]
    rng = np.random.default_rng(seed)

    def draw(keys: Any, leaf: Any) -> jax.Array:
        name = keys[-1].key
        spread = 0.1 if name in ("bias", "scale") else made.config.initializer_range
        drawn = rng.normal(1.0 if name == "scale" else 0.0, spread, leaf.shape)
        return jnp.asarray(drawn, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def config(**overrides: Any) -> ConfigDict:
    """Defaults with overrides such as `train__seed=1`."""
    c = defaults.default()
    with c.unlocked():
        for key, value in overrides.items():
            group, _, name = key.partition("__")
            c[group][name] = value
    return c


def task() -> Classification:
    return Classification(config())
