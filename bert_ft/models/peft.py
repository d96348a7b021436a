"""Adapter directories of the peft library (adapter_config.json, adapter_model.safetensors) <-> what
a method trains: LoRA with its relatives, AdaLoRA, prefixes; and the head beside them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bert_ft import paths
from bert_ft.errors import InputError
from bert_ft.models import families
from bert_ft.models.bert import EncoderConfig

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
BESIDE = "hints/"  # paths of what is trained beside a model and is no part of it (methods/hints.py)
TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS"}
TYPES = {"lora": "LORA", "adalora": "ADALORA", "prefix": "PREFIX_TUNING"}
# (the end of our path, the end of peft's name) of what stands beside a layer's kernel.
_ENDS = {
    "lora": (
        ("lora_a", "lora_A.weight"),
        ("lora_b", "lora_B.weight"),
        ("lora_magnitude", "lora_magnitude_vector"),
    ),
    "adalora": (("ada_a", "lora_A"), ("ada_e", "lora_E"), ("ada_b", "lora_B")),
    "prefix": (),
}
_FACTORS = {ours for ends in _ENDS.values() for ours, _ in ends}
# Keys of adapter_config.json and what of them this program computes, the usual value first.
_ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    "alpha_pattern": ({},),
    "bias": ("none",),
    "prefix_projection": (False,),
    "lora_bias": (False,),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
    "kasa_config": (None,),
    # The others, such as 'pissa', have changed the base as well.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", "mica"),
}
# (our knob, peft's key)
_KNOBS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "lora": (
        *(("rank", "r"), ("alpha", "lora_alpha"), ("dropout", "lora_dropout")),
        *(("rank_stabilized", "use_rslora"), ("dora", "use_dora")),
    ),
    "adalora": (("rank", "init_r"), ("alpha", "lora_alpha")),
    "prefix": (("length", "num_virtual_tokens"),),
}
_ABSENT = {"use_rslora": False, "use_dora": False}  # in files of versions that had neither


@dataclasses.dataclass(frozen=True)
class Adapter:
    """`use`: the method's name. `knobs`: those of config.methods.USE that bear on what it computes.
    `tensors`: float32 arrays by our paths."""

    use: str
    knobs: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]


def _names(model: Mapping[str, Any], encoder: EncoderConfig, kind: str) -> dict[str, str]:
    """{path of a parameter: its name in a transformers model with a head}."""
    prefix, out = families.FAMILIES[encoder.family].prefix, {}
    for path in model:
        name = families.name(path, encoder.family, kind)
        if name is not None:
            out[path] = prefix + name if name.startswith(".") else name
    return out


def _table(use: str, model: Mapping[str, Any], encoder: EncoderConfig, kind: str) -> dict[str, str]:
    """{path: name in peft's file} of all that a method may train of a model, but for prefixes."""
    before = "base_model." if use == "prefix" else "base_model.model."
    out = {}
    for path, name in _names(model, encoder, kind).items():
        if path.startswith("top/"):
            out[path] = before + name
        if path.endswith("/kernel"):
            for ours, theirs in _ENDS[use]:
                end = name.removesuffix("weight") + theirs
                out[f"{path.removesuffix('kernel')}{ours}"] = before + end
    return out


def is_whole(path: str) -> bool:
    """Whether it is a parameter of a head, not a factor of one."""
    return path.startswith("top/") and path.rpartition("/")[2] not in _FACTORS


def _prefix_paths(encoder: EncoderConfig) -> list[str]:
    """In the order of peft's columns: a layer's keys, then its values."""
    layers = range(encoder.num_hidden_layers)
    return [f"encoder/layer_{i}/attention/prefix_{n}" for i in layers for n in ("key", "value")]


def _turned(path: str, array: np.ndarray) -> np.ndarray:
    """From our axes to theirs, or back."""
    end = path.rpartition("/")[2]
    return array.T if end in ("kernel", "lora_a", "lora_b", "ada_a", "ada_b") else array


def read(
    path: Path, model: Mapping[str, Any], encoder: EncoderConfig, kind: str, head: bool = True
) -> Adapter:
    """An adapter directory. `model`: shapes of the model's parameters by path; `head`: whether what
    it has of a head is read. Raises InputError on what this program has no place for."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = paths.local(path)
    try:
        about = json.loads((path / CONFIG).read_text())
        tensors = load_file(path / TENSORS)
    except (OSError, ValueError, SafetensorError) as e:
        raise InputError(f"{path}: no adapter of peft ({CONFIG}, {TENSORS}): {e}") from None
    if not isinstance(about, dict):
        raise InputError(f"{path / CONFIG}: a JSON {type(about).__name__}, not an object")
    use = next((u for u, t in TYPES.items() if t == about.get("peft_type")), None)
    if use is None:
        raise InputError(
            f"{path / CONFIG}: peft_type is {about.get('peft_type')!r}; accepted: "
            f"{', '.join(TYPES.values())}"
        )
    for key, accepted in _ACCEPTED.items():
        if about.get(key, accepted[0]) not in accepted:
            these = ", ".join(map(repr, accepted))
            raise InputError(f"{path / CONFIG}: {key} is {about[key]!r}; accepted: {these}")
    if use == "lora" and about.get("rank_pattern"):
        raise InputError(f"{path / CONFIG}: rank_pattern is not empty; accepted: one rank for all")
    if (size_key := _KNOBS[use][0][1]) not in about:
        raise InputError(f"{path / CONFIG}: no {size_key}; accepted: what peft writes")
    back = {name: ours for ours, name in _table(use, model, encoder, kind).items()}
    found: dict[str, np.ndarray] = {}
    strange = []
    for name, array in tensors.items():
        if name == "prompt_embeddings" and use == "prefix":
            columns = _prefix_paths(encoder)
            wide = len(columns) * encoder.hidden_size
            _require_shape(path, name, array, (about[size_key], wide))
            found |= dict(zip(columns, np.split(array, len(columns), axis=1), strict=True))
        elif name in back:
            ours = back[name]
            array = array[:, 0] if ours.endswith("/ada_e") else array
            found[ours] = _turned(ours, array)
        else:
            strange.append(name)
    if strange:
        raise InputError(
            f"{path / TENSORS}: {len(strange)} tensors that this model has no place for: "
            f"{', '.join(sorted(strange)[:3])}"
        )
    if not head:
        found = {p: a for p, a in found.items() if not p.startswith("top/")}
    about = {**_ABSENT, **about}
    knobs = {ours: about[theirs] for ours, theirs in _KNOBS[use] if theirs in about}
    if use == "adalora":
        found = _of_one_rank(found, knobs["rank"])
    for ours, array in found.items():
        _require_shape(path, ours, array, _shape(ours, model, encoder, about[size_key]))
    whole = {p: np.ascontiguousarray(a, np.float32) for p, a in found.items()}
    return Adapter(use, knobs, whole)


def _shape(
    path: str, model: Mapping[str, Any], encoder: EncoderConfig, size: int
) -> tuple[int, ...]:
    """Of a parameter of the model's, or one that a method of this rank, or length, adds to it."""
    if path in model:
        return tuple(model[path].shape)
    layer, _, name = path.rpartition("/")
    if name.startswith("prefix_"):
        return size, encoder.hidden_size
    into, out = model[f"{layer}/kernel"].shape
    end = name.rpartition("_")[2]
    return {"a": (into, size), "b": (size, out), "e": (size,), "magnitude": (out,)}[end]


def _require_shape(path: Path, name: str, array: np.ndarray, accepted: tuple[int, ...]) -> None:
    if array.shape != accepted:
        raise InputError(
            f"{path / TENSORS}: {name} has shape {array.shape}; accepted: {accepted}, as this "
            "model's sizes and labels ask for"
        )


def _of_one_rank(found: dict[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """With zeros for the triplets that peft has left out; it divides by the number of those that
    are there, this program by `rank`."""
    out = dict(found)
    for path in [p for p in found if p.endswith("/ada_e")]:
        e, layer = found[path], path.removesuffix("ada_e")
        more = max(rank - len(e), 0)
        out[path] = np.pad(e * rank / max(len(e), 1), (0, more))
        out[f"{layer}ada_a"] = np.pad(found[f"{layer}ada_a"], ((0, 0), (0, more)))
        out[f"{layer}ada_b"] = np.pad(found[f"{layer}ada_b"], ((0, more), (0, 0)))
    return out


def save(
    path: Path,
    adapter: Adapter,
    model: Mapping[str, Any],
    encoder: EncoderConfig,
    kind: str,
    base: str,
) -> None:
    """Writes an adapter directory. `model`: as of `read`; `base`: what peft is to load below it.
    Raises InputError where a trained parameter that the model is given has no place in it."""
    from safetensors.numpy import save_file

    use, names = adapter.use, _table(adapter.use, model, encoder, kind)
    prefix, tensors, strange = _prefix_paths(encoder), dict[str, np.ndarray](), []
    for ours, value in adapter.tensors.items():
        array = np.asarray(value, np.float32)
        if ours in names:
            array = array[:, None] if ours.endswith("/ada_e") else _turned(ours, array)
            tensors[names[ours]] = np.ascontiguousarray(array)
        elif not ours.startswith(BESIDE) and (use != "prefix" or ours not in prefix):
            strange.append(ours)
    factored = {p.rpartition("/")[0] for p in adapter.tensors if p.rpartition("/")[2] in _FACTORS}
    if both := [p for p in adapter.tensors if is_whole(p) and p.rpartition("/")[0] in factored]:
        raise InputError(
            "config.export.format is 'peft', in which no layer is trained whole and by factors, as "
            f"{', '.join(sorted(both))}; accepted: a run whose methods.also_train leaves them out"
        )
    if strange or kind not in TASKS:
        what = ", ".join(sorted(strange)[:3]) or f"a head of kind {kind!r}"
        raise InputError(f"config.export.format is 'peft', which has no place for {what}")
    about: dict[str, Any] = {
        "peft_type": TYPES[use],
        "task_type": TASKS[kind],
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": _modules(
            adapter.tensors, names, families.FAMILIES[encoder.family].prefix
        ),
        **{theirs: adapter.knobs[ours] for ours, theirs in _KNOBS[use]},
    }
    if use == "prefix":
        columns = [adapter.tensors[p] for p in prefix]
        tensors["prompt_embeddings"] = np.ascontiguousarray(np.concatenate(columns, axis=1))
        about |= {
            "num_layers": encoder.num_hidden_layers,
            "num_attention_heads": encoder.num_attention_heads,
            "token_dim": encoder.hidden_size,
            "num_transformer_submodules": 1,
            "prefix_projection": False,
        }
    else:
        first = f"/{_ENDS[use][0][0]}"
        layers = [p.removesuffix(first) for p in adapter.tensors if p.endswith(first)]
        whole = _names(model, encoder, kind)
        about["target_modules"] = sorted(
            whole[f"{p}/kernel"].removesuffix(".weight") for p in layers
        )
        about |= {"bias": "none", "fan_in_fan_out": False, "init_lora_weights": True}
    if use == "adalora":  # peft wants one to read the directory
        about |= {"total_step": 1, "target_r": adapter.knobs["target_rank"]}
    save_file(tensors, path / TENSORS, metadata={"format": "pt"})
    (path / CONFIG).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")
    shutil.copymode(path / CONFIG, path / TENSORS)  # which others may not read


def _modules(trained: Mapping[str, Any], names: Mapping[str, str], prefix: str) -> list[str]:
    """The modules of the head that are kept whole: the first one of a name, behind the model's."""
    tops = [names[p] for p in trained if is_whole(p)]
    for before in ("base_model.", "model.", f"{prefix}."):
        tops = [name.removeprefix(before) for name in tops]
    return sorted({name.partition(".")[0] for name in tops})
