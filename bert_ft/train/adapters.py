"""Adapters apart from their base: directories of peft's read and written, several of them on one
base."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.config import cache_dir
from bert_ft.data.encode import Encoded
from bert_ft.data.sources import Rows
from bert_ft.errors import InputError
from bert_ft.method_checks import names
from bert_ft.models import hf, peft
from bert_ft.models.heads import kind_of
from bert_ft.models.stored_heads import scale_of
from bert_ft.train import agreement, optim
from bert_ft.train.initial import pretrained
from bert_ft.train.meaning import UNSAID, in_unit, require_same, told
from bert_ft.train.start import at_base, base_params, frozen_digest, full, trained_at
from bert_ft.train.system import System, load_fitted

Say = Callable[[str], None]


def write(
    path: Path, system: System, parts: tuple[Any, Any, Any], params: Any, rows: Rows
) -> dict[str, float]:
    """The adapter of a run as a directory of peft's, compared with what was trained. `parts`: what
    is trained, what is not, the step. Raises InputError where peft has no such adapter."""
    config, (trained, frozen, step) = system.config, parts
    used = [u for u in names(config) if u in peft.TYPES]
    if len(used) != 1 or config.export.part:
        raise InputError(
            f"config.export.format is 'peft', methods.use {config.methods.use!r}; accepted: one of "
            f"{', '.join(peft.TYPES)} among the methods of a run of one task"
        )
    m = config.model
    if config.resume or not m.pretrained or m.layers_from or m.positions:
        raise InputError(
            "config.export.format is 'peft', which leaves the base where it is, but this run did "
            "not start from config.model.pretrained alone, with all of its layers and its own "
            "positions; accepted: 'transformers'"
        )
    if neither := sorted(hf.flatten(frozen).keys() & _new(system)):
        raise InputError(
            f"config.export.format is 'peft', but {', '.join(neither[:3])} would be neither in the "
            "base, which has none, nor in the adapter, for it was not trained "
            "(methods.also_train); accepted: 'transformers'"
        )
    uri, kind = m.pretrained, kind_of(system.model.head)
    base = hf.directory(uri, cache_dir(config))
    model, own = hf.flatten(system.abstract_params), jax.device_get(hf.flatten(trained))
    name = uri.removeprefix("hf:").partition("@")[0] if uri.startswith("hf:") else str(base)
    adapter = peft.Adapter(used[0], config.methods[used[0]].to_dict(), own)
    peft.save(path, adapter, model, system.encoder, kind, name)
    read = peft.read(path, model, system.encoder, kind)
    again = full(system, hf.unflatten({**own, **read.tensors}), frozen, step)
    return agreement.compare_adapter(system, params, again, rows, path, base)


def _new(system: System) -> set[str]:
    """The parameters that the model in config.model.pretrained has not."""
    wanted, config = hf.flatten(system.abstract_params), system.config
    if config.resume:
        return set()
    if not config.model.pretrained:
        return set(wanted)
    return set(pretrained(at_base(system), wanted, lambda _: None)[1])


def names_of(config: ConfigDict) -> list[str]:
    """Of config.predict.adapters, by which the files are told apart."""
    return [paths.at(p).name for p in _places(config)]


def _places(config: ConfigDict) -> list[str]:
    return [p.strip() for p in config.predict.adapters.split(",") if p.strip()]


def beside(out: Path, name: str) -> Path:
    """Where the lines of an adapter go."""
    return out.with_name(f"{out.stem}.{name}.jsonl")


def each(
    system: System, data: Encoded, say: Say
) -> Iterator[tuple[str, System, Encoded, Any, int | None]]:
    """(name, system with its methods, the rows with what its run learnt, parameters, step) of each
    of config.predict.adapters, on one base, which is loaded once: workdirs of runs, or directories
    of peft's, which have no step. Raises InputError on one of another base or of other labels."""
    places = _places(system.config)
    known = names_of(system.config)
    if len(set(known)) < len(known):
        raise InputError(
            f"config.predict.adapters: {', '.join(known)} are no names to tell them apart by; "
            "accepted: directories with names of their own"
        )
    base = base_params(system, say)
    for name, place in zip(known, places, strict=True):
        at = paths.at(place)
        ours = (at / "model" / "task.json").is_file() or (at / "trials").is_dir()
        its, params, step = (_of_run if ours else _of_peft)(system, base, at, say)
        yield name, its, dataclasses.replace(data, fitted=its.fitted), params, step


def _of_run(system: System, base: Any, workdir: Path, say: Say) -> tuple[System, Any, int]:
    own, fitted = json.loads((workdir / "config.json").read_text()), load_fitted(workdir)
    require_same(system, own["task.name"], fitted, f"config.predict.adapters: {workdir}")
    # The optimizer's state is read beside what was trained, where a run has not ended.
    its = {k: v for k, v in own.items() if k.startswith(("methods.", "train.optimizer"))}
    own_system = dataclasses.replace(_with_methods(system, its), fitted=fitted)
    optimizer = optim.make_optimizer(own_system.config, 1)
    trained, step, digest = trained_at(own_system, workdir, optimizer, say)
    frozen = own_system.weights.begin(base, 0)[1]
    _require_base(frozen, digest, workdir)
    return own_system, full(own_system, trained, frozen, step), step


def _require_base(frozen: Any, digest: str, where: Path) -> None:
    """Raises InputError where what an adapter stands beside is not what it was trained beside."""
    if frozen_digest(frozen) != digest:
        raise InputError(
            f"config.predict.adapters: {where} was trained on another base than this run; "
            "accepted: runs that start from the same model and train no other part of it"
        )


def _of_peft(system: System, base: Any, path: Path, say: Say) -> tuple[System, Any, None]:
    model = hf.flatten(system.abstract_params)
    adapter = peft.read(path, model, system.encoder, kind_of(system.model.head))
    its = {f"methods.{adapter.use}.{k}": v for k, v in adapter.knobs.items()}
    if adapter.use != "prefix":
        ends = ("/lora_a", "/ada_a")
        layers = [p.rpartition("/")[0] for p in adapter.tensors if p.endswith(ends)]
        its[f"methods.{adapter.use}.targets"] = _these(layers)
    tops = [p for p in adapter.tensors if peft.is_whole(p)]
    its["methods.also_train"] = _these(tops) if tops else ""
    own_system = _with_methods(system, {"methods.use": adapter.use, **its})
    about, tensors = told(path), adapter.tensors
    if "fitted" in about:  # one of ours
        fitted, where = about["fitted"], f"config.predict.adapters: {path}"
        require_same(system, about["config"]["task.name"], fitted, where)
        own_system = dataclasses.replace(own_system, fitted=fitted)
        tensors = in_unit(tensors, about, scale_of(system.task, fitted))
    else:
        say(f"note: {path} {UNSAID}")
    trained, frozen = own_system.weights.begin(base, 0)
    lacking = hf.flatten(trained).keys() - tensors.keys()
    if heads := {p for p in model if p.startswith("top/")} - {*tops}:
        lacking |= heads & _new(system)  # others are the base's
    if lacking:
        raise InputError(
            f"config.predict.adapters: neither {path} nor its base has "
            f"{', '.join(sorted(lacking)[:3])}, which this model needs; accepted: an adapter with "
            "its head (modules_to_save)"
        )
    if "base_sha256" in about:
        _require_base(frozen, about["base_sha256"], path)
    whole = hf.unflatten({p: jnp.asarray(a) for p, a in tensors.items()})
    say(f"adapter: {path}, a {adapter.use}")
    return own_system, full(own_system, whole, frozen, 0), None


def _these(places: Sequence[str]) -> str:
    """A regex of these and no others."""
    return f"^({'|'.join(map(re.escape, places))})$"


def _with_methods(system: System, its: Mapping[str, Any]) -> System:
    """The system with other values of config.methods, by their keys."""
    config = system.config.copy_and_resolve_references()
    for key, value in its.items():
        config.update_from_flattened_dict({key: value})
    return dataclasses.replace(system, config=config)
