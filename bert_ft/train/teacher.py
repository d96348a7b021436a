"""What the teacher of a distillation says of the training set, as fields of its examples, or of
their tokens."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.config import cache_dir, default
from bert_ft.data.tokenizer import tokenizer_hash
from bert_ft.data.unlabelled import LABELLED
from bert_ft.errors import InputError
from bert_ft.method_checks import names, prompt_length
from bert_ft.methods.distil import field_of
from bert_ft.methods.hints import TOLD
from bert_ft.models.bert import Batch, EncoderConfig
from bert_ft.models.taps import tapped
from bert_ft.tasks.registry import make_task
from bert_ft.train import optim
from bert_ft.train.barriers import agree
from bert_ft.train.checksum import params_sha256
from bert_ft.train.evaluate import predictions, results
from bert_ft.train.finish import eval_plan
from bert_ft.train.meaning import NUMBERS, UNIT, WHICH, differing, short
from bert_ft.train.sharding import replicated
from bert_ft.train.start import abstract_state, frozen_again, full, trained_at
from bert_ft.train.step import Programs
from bert_ft.train.system import System, assemble, load_fitted


def taught(system: System, say: Callable[[str], None]) -> System:
    """The system with its teacher's logits beside each training example, where it has a teacher.
    They are computed once and kept in the cache; they are a part of the data's fingerprint, so that
    a run does not go on with another teacher. Raises InputError where the two do not fit."""
    used = {"distil", "hints"} & set(names(system.config))
    if not used or "train" not in system.sets:
        return system
    workdir = paths.at(system.config.methods.distil.teacher)
    teacher = _teacher(system, workdir, say)
    layers = _layers(system, teacher) if "hints" in used else []
    # Before it reads anything: whether the student's own methods fit its model.
    abstract_state(system, optim.make_optimizer(system.config, 1))
    optimizer = optim.make_optimizer(teacher.config, 1)
    # Without a word on where its config is another than the run's: `_config` has changed it.
    trained, step, digest = trained_at(teacher, workdir, optimizer, say)
    params = full(teacher, trained, frozen_again(teacher, optimizer, digest, say), step)
    data = system.sets["train"]
    say(f"teacher: {workdir}, step {step}")
    fields, token_fields = dict(data.fields), dict(data.token_fields)
    about: list[Any] = [params_sha256(params), data.fingerprint]
    cache = cache_dir(system.config) / "taught"
    if "distil" in used:
        said = {name: field_of(name) for name in system.task.told_names}
        length = system.row_length  # to which what is told of tokens is padded
        at = {
            name: cache / f"{_digest([*about, field, length])[:32]}.npy"
            for name, field in said.items()
        }
        told = _kept(at, functools.partial(_write_told, teacher, params))
        fields |= {said[name]: values for name, values in told.items()}
    if "hints" in used:
        about.append(layers)
        at = {
            name: cache / f"{_digest([*about, name])[:32]}.npy" for name in _hinted(system.config)
        }
        told = _kept(at, functools.partial(_write_tokens, teacher, params, layers))
        token_fields |= {TOLD[name]: values for name, values in told.items()}
    agree("what their teacher says", {"fingerprint": _digest(about)})
    known = dataclasses.replace(
        data, fields=fields, token_fields=token_fields, fingerprint=_digest(about)
    )
    return dataclasses.replace(system, sets={**system.sets, "train": known})


def _digest(about: Any) -> str:
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _hinted(config: ConfigDict) -> list[str]:
    """What hints are taken of: of models/taps.py's names."""
    k = config.methods.hints
    return ["hidden"] * (k.hidden > 0) + ["query", "key"] * (k.attention > 0)


def _layers(system: System, teacher: System) -> list[int]:
    """The teacher's layer for each of the student's. Raises InputError where the two have no layers
    in common, or sizes that the config does not know of."""
    k, own, theirs = system.config.methods.hints, system.encoder, teacher.encoder
    if not isinstance(theirs, EncoderConfig):
        raise InputError(
            f"config.methods.distil.teacher is a {teacher.config.model.kind!r}; accepted: with "
            "hints, one that has the student's kind of layers"
        )
    count, of = own.num_hidden_layers, theirs.num_hidden_layers
    layers = [int(part) for part in k.layers.split(",")] if k.layers else []
    if not k.layers and of % count == 0:  # eq. 4 of the paper: the last of each stretch
        layers = [(i + 1) * of // count - 1 for i in range(count)]
    if len(layers) != count or max(layers) >= of:
        raise InputError(
            f"config.methods.hints.layers is {k.layers!r}; accepted: {count} of the teacher's "
            f"layers 0 to {of - 1}, comma-separated, or '' where {count} divides {of}"
        )
    width = k.width or own.hidden_size
    if k.hidden and width != theirs.hidden_size:
        raise InputError(
            f"config.methods.hints.width is {k.width}; accepted: {theirs.hidden_size}, the "
            "teacher's"
        )
    heads = own.num_attention_heads, theirs.num_attention_heads
    if k.attention and heads[0] != heads[1]:
        raise InputError(
            f"config.methods.hints.attention is {k.attention:g}; accepted: 0 where the student has "
            f"{heads[0]} heads and the teacher {heads[1]}"
        )
    return layers


def _teacher(system: System, workdir: Path, say: Callable[[str], None]) -> System:
    """The teacher on the student's mesh, with the student's training set."""
    said = f"config.methods.distil.teacher is {str(workdir)!r}: "
    fitted = load_fitted(workdir)
    config = _config(workdir, system.config)
    tasks = _parts(make_task(config))
    if config.task.name != system.task.name:
        raise InputError(
            f"{said}its task is {config.task.name!r}; accepted: a run of {system.task.name!r}"
        )
    own, its = ({p: t.name for p, t in parts.items()} for parts in (_parts(system.task), tasks))
    if own != its:
        raise InputError(f"{said}its parts are {its}; accepted: a run of the student's, {own}")
    chains = [part for part, task in tasks.items() if getattr(task, "decode", "") == "crf"]
    if chains and "distil" in names(system.config):
        raise InputError(
            f"{said}its task.decode is 'crf', whose chain its words' logits leave out; accepted: "
            "with distil 'viterbi' or 'argmax'"
        )
    # Both read the same data, with the student's numbers of categories and its prompt's places.
    keys = (*WHICH, *NUMBERS, *UNIT)
    for what, ours, theirs in differing(system.task, system.fitted, fitted, keys):
        raise InputError(
            f"{said}its {what} are {short(theirs)}; accepted: the student's, {short(ours)}"
        )
    soft, has = prompt_length(system.config), prompt_length(config)
    if soft != has:
        raise InputError(
            f"{said}its prompt has {has} soft tokens; accepted: a run with as many as the student, "
            f"{soft} (config.methods.use, config.methods.prompt.length)"
        )
    devices = tuple(system.mesh.devices.flat)
    model = workdir / "model"
    made = assemble(config, say, sets=(), model_dir=model, fitted=fitted, devices=devices)
    if tokenizer_hash(made.tokenizer) != tokenizer_hash(system.tokenizer):
        raise InputError(
            f"{said}its tokenizer is not the student's; accepted: a run with the same one (give "
            f"the student config.model.tokenizer={str(model)!r})"
        )
    data = system.sets["train"]
    longest = int(data.lengths.max())
    if longest > made.encoder.positions:
        raise InputError(
            f"{said}it reads {made.encoder.positions} tokens; accepted: {longest} or more, which "
            "the training set has (config.data.max_length)"
        )
    # It reads texts without labels as it reads the others.
    every = {name: of for name, of in data.fields.items() if name != LABELLED}
    data = dataclasses.replace(data, fields=every)
    return dataclasses.replace(made, sets={"train": data}, row_length=system.row_length)


def _parts(task: Any) -> Mapping[str, Any]:
    """{part: its task}, or the task itself under ''."""
    return getattr(task, "parts", {"": task})


def _config(workdir: Path, student: ConfigDict) -> ConfigDict:
    """The teacher's own, but where and how it is computed."""
    config = default()
    own = json.loads((workdir / "config.json").read_text())
    config.update_from_flattened_dict(own)
    with config.unlocked():
        config.mesh, config.eval, config.data.cache_dir = (
            student.mesh,
            student.eval,
            student.data.cache_dir,
        )
        config.model.remat, config.model.layer_loop = "none", "loop"  # nothing is kept for training
        config.model.attention = student.model.attention  # this machine may lack the teacher's
        config.data.packing, config.data.max_length = student.data.packing, student.data.max_length
    return config


def _write_told(teacher: System, params: Any, to: Mapping[str, Path]) -> None:
    """Writes float32 (N, …) of each name, in the order of the examples."""

    def told(params: Any, batch: Batch, *, model: Any) -> dict[str, jax.Array]:
        return teacher.task.told(model.apply({"params": params}, batch), batch)

    step = functools.partial(told, model=teacher.model)
    programs = Programs(step, replicated(teacher.mesh), donate=False)
    plan = eval_plan(teacher, teacher.sets["train"])
    found = predictions(programs, params, plan, teacher.mesh, teacher.config.data.prefetch)
    for name, path in to.items():
        np.save(path, found[name])


def _write_tokens(
    teacher: System, params: Any, layers: Sequence[int], to: Mapping[str, Path]
) -> None:
    """Writes float16 (T, layers, H), by token, of each name: half the bytes, and hints need no more
    digits."""
    data = teacher.sets["train"]
    shape = (len(data.tokens), len(layers), teacher.encoder.hidden_size)
    out = {n: np.lib.format.open_memmap(path, "w+", np.float16, shape) for n, path in to.items()}
    for path in to.values():  # a map's page for which the disk has no room ends the process
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def layers_of(params: Any, batch: Batch, *, model: Any) -> dict[str, jax.Array]:
        _, on_the_way = tapped(model, {"params": params}, batch, method="encoded")
        told = {n: jnp.stack([on_the_way[n][i] for i in layers], axis=2) for n in out}
        halves = {n: values.astype(jnp.float16) for n, values in told.items()}
        return {"start": batch["example_start"], **halves}

    step = functools.partial(layers_of, model=teacher.model)
    programs = Programs(step, replicated(teacher.mesh), donate=False)
    plan = eval_plan(teacher, data)
    depth = teacher.config.data.prefetch
    for examples, found in results(programs, params, plan, teacher.mesh, depth):
        told = {n: found[n].reshape(-1, *shape[1:]) for n in out}
        for e, start in zip(examples, found["start"], strict=True):
            if e >= 0:
                first, last = data.offsets[e], data.offsets[e + 1]
                for n, values in told.items():
                    out[n][first:last] = values[start : start + last - first]
    for array in out.values():
        array.flush()


def _kept(
    files: Mapping[str, Path], write: Callable[[Mapping[str, Path]], None]
) -> dict[str, np.ndarray]:
    """The arrays of the files, of which those that are not there are written, all at once. Several
    processes, some of which may have them, all make them: they compute together."""
    several = jax.process_count() > 1
    missing = {name: path for name, path in files.items() if several or not path.is_file()}
    if missing:
        folder = next(iter(missing.values())).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                made = {name: Path(scratch, path.name) for name, path in missing.items()}
                write(made)
                for name, path in missing.items():
                    os.replace(made[name], path)
        except OSError as e:
            raise InputError(
                f"data.cache_dir: can't write in {folder}: {e.strerror}; set another directory"
            ) from e
    return {name: np.load(path, mmap_mode="r") for name, path in files.items()}
