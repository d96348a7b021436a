"""What the teacher of a distillation says of the training set, as a field of its examples."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bert_ft import paths
from bert_ft.config import cache_dir, default
from bert_ft.data.encode import tokenizer_hash
from bert_ft.data.unlabelled import LABELLED
from bert_ft.errors import InputError
from bert_ft.method_checks import names
from bert_ft.methods.distil import TEACHER
from bert_ft.models.bert import Batch
from bert_ft.train import optim
from bert_ft.train.checksum import params_sha256
from bert_ft.train.evaluate import predictions
from bert_ft.train.finish import eval_plan
from bert_ft.train.sharding import replicated
from bert_ft.train.start import trained_params
from bert_ft.train.step import Programs
from bert_ft.train.system import System, assemble, load_fitted

_SAME = ("labels", "ranks", "mean", "scale")  # of what was learnt from the rows: what logits mean


def taught(system: System, say: Callable[[str], None]) -> System:
    """The system with its teacher's logits beside each training example, where it has a teacher.
    They are computed once and kept in the cache; they are a part of the data's fingerprint, so that
    a run does not go on with another teacher. Raises InputError where the two do not fit."""
    if "distil" not in names(system.config) or "train" not in system.sets:
        return system
    workdir = paths.at(system.config.methods.distil.teacher)
    teacher = _teacher(system, workdir, say)
    optimizer = optim.make_optimizer(teacher.config, 1)
    params, step = trained_params(teacher, workdir, optimizer, say)
    data = system.sets["train"]
    about = [params_sha256(params), data.fingerprint]
    fingerprint = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    say(f"teacher: {workdir}, step {step}")
    logits = _kept(
        cache_dir(system.config) / "taught" / f"{fingerprint[:32]}.npy",
        lambda: _logits(teacher, params),
    )
    fields = {**data.fields, TEACHER: logits}
    known = dataclasses.replace(data, fields=fields, fingerprint=fingerprint)
    return dataclasses.replace(system, sets={**system.sets, "train": known})


def _teacher(system: System, workdir: Path, say: Callable[[str], None]) -> System:
    """The teacher on the student's mesh, with the student's training set."""
    said = f"config.methods.distil.teacher is {str(workdir)!r}: "
    fitted = load_fitted(workdir)
    config = _config(workdir, system.config)
    if config.task.name != system.task.name:
        raise InputError(
            f"{said}its task is {config.task.name!r}; accepted: a run of {system.task.name!r}"
        )
    for key in _SAME:
        ours, theirs = system.fitted.get(key), fitted.get(key)
        if ours != theirs:
            raise InputError(f"{said}its {key} are {theirs}; accepted: the student's, {ours}")
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
        config.data.packing, config.data.max_length = student.data.packing, student.data.max_length
    return config


def _logits(teacher: System, params: Any) -> np.ndarray:
    """float32 (N, …), in the order of the examples."""

    def logits(params: Any, batch: Batch, *, model: Any) -> dict[str, jax.Array]:
        return {"logits": model.apply({"params": params}, batch)["logits"]}

    step = functools.partial(logits, model=teacher.model)
    programs = Programs(step, replicated(teacher.mesh), donate=False)
    plan = eval_plan(teacher, teacher.sets["train"])
    depth = teacher.config.data.prefetch
    return predictions(programs, params, plan, teacher.mesh, depth)["logits"]


def _kept(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of the file, made and written where it is not there. Several processes, some of
    which may have it, all make it: they compute together."""
    if path.is_file() and jax.process_count() == 1:
        return np.load(path, mmap_mode="r")
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
            np.save(scratch, made)
        os.replace(scratch.name, path)
    except OSError as e:
        raise InputError(
            f"data.cache_dir: can't write {path}: {e.strerror}; set another directory"
        ) from e
    return made
