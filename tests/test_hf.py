"""Hugging Face directories: every layout that is right is read, whatever is wrong is named."""

import dataclasses
import json
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from small import CLASSES, SIZES, init, model

from bert_ft.errors import InputError
from bert_ft.models import hf, stored_heads
from bert_ft.models.heads import Model, SequenceHead

CONFIG = {"model_type": "bert", "hidden_act": "gelu", **dataclasses.asdict(SIZES)}


@pytest.fixture(scope="module")
def params():
    return init(model())


@pytest.fixture
def tensors(params):
    """As transformers names and lays them out."""
    return {
        hf.hf_name(path): np.ascontiguousarray(np.asarray(a).T if path.endswith("kernel") else a)
        for path, a in hf.flatten(params).items()
    }


def write(path, tensors, config=CONFIG):
    path.mkdir(exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


def read(path, wanted):
    return hf.load(path, wanted)


def assert_all(path, params, new=()):
    found, fresh = read(path, params)
    assert sorted(fresh) == sorted(new)
    expected = hf.flatten(params)
    assert sorted([*found, *fresh]) == sorted(expected)
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)
        assert value.dtype == np.float32 and value.flags.c_contiguous


def refused(path, params, *words):
    with pytest.raises(InputError) as e:
        read(path, params)
    assert "\n" not in str(e.value)
    for word in (str(path), *words):
        assert word in str(e.value)


HEAD = ("top/classifier/bias", "top/classifier/kernel")
POOLER = ("top/pooler/bias", "top/pooler/kernel")


def test_names_are_those_of_the_library():
    """Written out: the table is what stands between a checkpoint and nonsense."""
    names = {
        "encoder/word/embedding": "embeddings.word_embeddings.weight",
        "encoder/norm/scale": "embeddings.LayerNorm.weight",
        "encoder/layer_11/attention/key/kernel": "encoder.layer.11.attention.self.key.weight",
        "encoder/layer_1/attention/output/bias": "encoder.layer.1.attention.output.dense.bias",
        "encoder/layer_1/attention/norm/bias": "encoder.layer.1.attention.output.LayerNorm.bias",
        "encoder/layer_1/up/kernel": "encoder.layer.1.intermediate.dense.weight",
        "encoder/layer_1/down/kernel": "encoder.layer.1.output.dense.weight",
        "encoder/layer_1/norm/scale": "encoder.layer.1.output.LayerNorm.weight",
        "top/pooler/kernel": "pooler.dense.weight",
        "top/classifier/bias": "classifier.bias",
    }
    assert {path: hf.hf_name(path) for path in names} == names
    with pytest.raises(KeyError):
        hf.hf_name("top/elsewhere/kernel")


def test_flatten_and_unflatten_are_inverse(params):
    back = hf.unflatten(hf.flatten(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert list(hf.flatten({"b": {"y": 1}, "a": {"z": 2, "x": 3}})) == ["a/x", "a/z", "b/y"]


def test_plain(tmp_path, tensors, params):
    assert_all(write(tmp_path, tensors), params)


def test_prefix_and_the_old_names_of_layer_norm(tmp_path, tensors, params):
    old = {"weight": "gamma", "bias": "beta"}

    def rename(name):
        stem, leaf = name.rsplit(".", 1)
        leaf = old[leaf] if stem.endswith("LayerNorm") else leaf
        return f"{stem}.{leaf}" if stem == "classifier" else f"bert.{stem}.{leaf}"

    assert_all(write(tmp_path, {rename(k): v for k, v in tensors.items()}), params)


def test_shards(tmp_path, tensors, params):
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, part in parts.items():
        save_file({k: tensors[k] for k in part}, tmp_path / file)
    index = {k: file for file, part in parts.items() for k in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert_all(tmp_path, params)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    refused(tmp_path, params, "model-00002-of-00003.safetensors, which its index names")


def test_only_the_files_that_the_index_names_are_read(tmp_path, tensors, params):
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").rename(tmp_path / "all.safetensors")
    save_file({"stray": np.zeros(3, np.float32)}, tmp_path / "optimizer.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "all.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_all(tmp_path, params)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    refused(tmp_path, params, "not an index of safetensors files")


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32(dtype, tmp_path, tensors, params):
    found, _ = read(write(tmp_path, {k: v.astype(dtype) for k, v in tensors.items()}), params)
    for name, value in hf.flatten(params).items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(
            found[name], np.asarray(value).astype(dtype).astype(np.float32)
        )


def test_a_head_that_lacks_or_is_another_tasks_is_new(tmp_path, tensors, params):
    for name in ("classifier.weight", "classifier.bias"):
        del tensors[name]
    assert_all(write(tmp_path / "none", tensors), params, HEAD)
    tensors |= {
        "classifier.weight": np.zeros((7, 32), np.float32),
        "classifier.bias": np.zeros(7, np.float32),
    }
    assert_all(write(tmp_path / "other", tensors), params, HEAD)
    del tensors["pooler.dense.weight"], tensors["pooler.dense.bias"]
    assert_all(write(tmp_path / "no_pooler", tensors), params, (*HEAD, *POOLER))


def test_buffers_and_other_heads_are_let_pass(tmp_path, tensors, params):
    extra = {
        "bert.embeddings.position_ids": np.arange(40)[None],
        "cls.predictions.bias": np.zeros(83, np.float32),
        "cls.seq_relationship.weight": np.zeros((2, 32), np.float32),
        "qa_outputs.weight": np.zeros((2, 32), np.float32),
    }
    assert_all(write(tmp_path, tensors | extra), params)


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.word_embeddings.weight",
        "embeddings.LayerNorm.bias",
        "encoder.layer.1.attention.self.query.weight",
        "encoder.layer.0.output.dense.bias",
    ],
)
def test_a_missing_tensor_is_named(name, tmp_path, tensors, params):
    del tensors[name]
    refused(write(tmp_path, tensors), params, name)


def test_every_encoder_tensor_is_missed(tmp_path, tensors, params):
    for name in sorted(tensors):
        if not name.startswith(("pooler", "classifier")):
            with pytest.raises(InputError, match="has no tensor"):
                read(write(tmp_path, {k: v for k, v in tensors.items() if k != name}), params)


def test_an_unused_tensor_is_named(tmp_path, tensors, params):
    tensors["encoder.layer.2.output.dense.bias"] = np.zeros(32, np.float32)
    tensors["encoder.layer.0.adapter.weight"] = np.zeros(3, np.float32)
    refused(
        write(tmp_path, tensors), params,
        "2 tensors", "encoder.layer.2.output.dense.bias", "encoder.layer.0.adapter.weight",
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(84, 32), (32, 83), (83,)])
def test_a_wrong_shape_is_told(shape, tmp_path, tensors, params):
    name = "embeddings.word_embeddings.weight"
    tensors[name] = np.zeros(shape, np.float32)
    refused(write(tmp_path, tensors), params, name, str(shape), "(83, 32)")


def test_a_kernel_that_was_not_transposed_is_told(tmp_path, tensors, params):
    name = "encoder.layer.0.intermediate.dense.weight"
    tensors[name] = np.ascontiguousarray(tensors[name].T)
    refused(write(tmp_path, tensors), params, name)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_safetensors_file(share, tmp_path, tensors, params):
    file = write(tmp_path, tensors) / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    refused(tmp_path, params, "not a whole safetensors file")


def test_no_weights_at_all(tmp_path, params):
    refused(tmp_path, params, "neither *.safetensors nor pytorch_model.bin")


def test_the_sizes_are_read(tmp_path, tensors):
    assert hf.read_config(write(tmp_path, tensors, {**CONFIG, "unknown_key": 3})) == SIZES


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "gpt2"}, ["'gpt2'", "accepted: 'bert', 'roberta'"]),
        ({"model_type": ["bert"]}, ["['bert']", "accepted: 'bert', 'roberta'"]),
        ({"vocab_size": "x"}, ["vocab_size is 'x'", "a whole number"]),
        ({"hidden_act": "relu"}, ["'relu'", "'gelu'"]),
        ({"position_embedding_type": "relative_key"}, ["'relative_key'", "'absolute'"]),
    ],
)
def test_models_that_are_not_bert_are_refused(change, words, tmp_path, tensors):
    path = write(tmp_path, tensors, {**CONFIG, **change})
    with pytest.raises(InputError) as e:
        hf.read_config(path)
    assert all(word in str(e.value) for word in words)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"bert"', "\udcff"])
def test_a_config_that_is_not_one(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"config\.json"):
        hf.read_config(tmp_path)


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json there; accepted: hf:"):
        hf.directory(str(tmp_path / "nothing"), tmp_path)


def test_pytorch_model_bin(tmp_path, tensors, params):
    torch = pytest.importorskip("torch")
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    state = {
        f"bert.{k}" if "classifier" not in k else k: torch.tensor(v) for k, v in tensors.items()
    }
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_all(tmp_path, params)


def test_a_pickle_that_would_run_something_is_refused(tmp_path, params):
    torch = pytest.importorskip("torch")
    sprung = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return (type(sprung).touch, (sprung,))

    torch.save({"a": Trap()}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, params, "pytorch_model.bin", "weights only")
    assert not sprung.exists()
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert sprung.exists(), "the trap was none"


def test_a_damaged_pytorch_model_bin(tmp_path, params):
    pytest.importorskip("torch")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    refused(tmp_path, params, "pytorch_model.bin")


def test_safetensors_are_preferred(tmp_path, tensors, params):
    (write(tmp_path, tensors) / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    assert_all(tmp_path, params)


def test_a_head_of_other_classes_takes_the_encoder(tmp_path, tensors):
    five = Model(SIZES, partial(SequenceHead, CLASSES + 2))
    wanted = jax.eval_shape(lambda: init(five))
    found, new = read(write(tmp_path, tensors), wanted)
    assert sorted(new) == sorted(HEAD) and "top/pooler/kernel" in found


@pytest.mark.parametrize(("kind", "named"), [("sequence", True), ("token", False)])
def test_only_classification_is_told_to_name_its_labels(kind, named, tmp_path):
    """No other task reads that key."""
    assert stored_heads.label_order(tmp_path, {"id2label": None}, [["x", "y"]], kind) is None
    raw = {"id2label": {"0": "good", "1": "bad"}}
    with pytest.raises(InputError, match="'good', 'bad'; the data's 'x', 'y'") as error:
        stored_heads.label_order(tmp_path, raw, [["x", "y"]], kind)
    assert ("of classification: by config.task.label_names" in str(error.value)) is named
    assert str(error.value).endswith("or set config.model.head=new")
    # What transformers calls those without names are names where the data have them.
    unnamed = {"id2label": {str(i): f"LABEL_{i}" for i in range(3)}}
    assert stored_heads.label_order(tmp_path, unnamed, [["x", "y", "z"]], kind) is None
    ours = ["LABEL_0", "LABEL_2", "LABEL_1"]
    assert stored_heads.label_order(tmp_path, unnamed, [ours], kind) == [0, 2, 1]
    for other in ({"x": "good"}, ["good", "bad"]):
        with pytest.raises(InputError, match=r"config.json: id2label is .*; accepted: an object"):
            stored_heads.label_order(tmp_path, {"id2label": other}, [["x", "y"]], kind)


def vectors_of(path, tensors, pooled, *more, **options):
    """What is said of a directory of sentence-transformers when it is loaded for vectors."""
    write(path, tensors)
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *more]
    listed = [{"path": at, "type": f"sentence_transformers.models.{kind}"} for at, kind in kinds]
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling/config.json").write_text(json.dumps(pooled))
    said: list[str] = []
    encoder = {"encoder": jax.eval_shape(lambda: init(model()))["encoder"]}
    hf.load(path, encoder, "embedding", say=said.append, **options)
    return "\n".join(said)


CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


@pytest.mark.parametrize(
    ("pooled", "mode"),
    [(CLS, "cls"), ({"pooling_mode": "mean"}, "mean"), ({"pooling_mode": ["cls"]}, "cls")],
)
def test_how_a_directory_makes_vectors_is_said(pooled, mode, tmp_path, tensors):
    said = vectors_of(tmp_path, tensors, pooled, ("2_Normalize", "Normalize"))
    assert f"pools by '{mode}'; config.task.pooling" in said


@pytest.mark.parametrize(
    ("pooled", "more", "words"),
    [
        (CLS, [("2_Dense", "Dense")], "made by Dense; accepted: Transformer, Pooling, Norm"),
        ({"pooling_mode_max_tokens": True}, [], "made by pooling_mode_max_tokens; .* mean or cls"),
        ({**CLS, "pooling_mode_mean_tokens": True}, [], "made by cls, mean; .*model.head=new"),
        ([], [], "not as sentence-transformers writes it"),
    ],
)
def test_vectors_that_are_made_otherwise(pooled, more, words, tmp_path, tensors):
    with pytest.raises(InputError, match=words) as error:
        vectors_of(tmp_path, tensors, pooled, *more)
    assert str(tmp_path / "modules.json") in str(error.value)


def test_a_new_head_takes_the_encoder_alone(tmp_path, tensors):
    assert vectors_of(tmp_path, tensors, CLS, ("2_Dense", "Dense"), new_head=True) == ""


@pytest.mark.parametrize("kind", ["masked", "embedding"])
def test_the_pooler_of_the_base_model_is_written_beside_a_head_without_one(
    kind, tmp_path, tensors, params
):
    """As transformers calls it there; and found again by a classifier."""
    own = hf.pooler(write(tmp_path / "from", {f"bert.{k}": v for k, v in tensors.items()}))
    assert sorted(own) == ["pooler.dense.bias", "pooler.dense.weight"]
    (tmp_path / "to").mkdir()
    encoder = {"encoder": jax.device_get(params["encoder"])}
    hf.save(tmp_path / "to", SIZES, encoder, kind, pooler=own)
    names = {"masked": "bert.pooler.dense.bias", "embedding": "pooler.dense.bias"}
    assert names[kind] in hf.read_tensors(tmp_path / "to")
    assert_all(tmp_path / "to", params, HEAD)
    for name in own:
        del tensors[name]
    assert hf.pooler(write(tmp_path / "none", tensors)) == {}
