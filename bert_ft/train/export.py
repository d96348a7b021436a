"""--mode=export: a trained workdir as a Hugging Face directory, there once its logits are right.

It is written beside its place, read back, compared on real rows with what was trained, renamed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bert_ft import config as defaults
from bert_ft import paths
from bert_ft.config import cache_dir, flat
from bert_ft.data.sources import Rows, source_of
from bert_ft.errors import InputError
from bert_ft.evals.report import read_object
from bert_ft.models import families, hf
from bert_ft.models.bert import EncoderConfig
from bert_ft.models.heads import Model, kind_of
from bert_ft.models.stored_heads import OWN, scale_of
from bert_ft.parts import part_configs
from bert_ft.tasks.candidates import COLUMN, texts_of
from bert_ft.tasks.multi import MultiTask
from bert_ft.train import adapters, card, optim, record
from bert_ft.train.agreement import WHOLE, compare
from bert_ft.train.checksum import params_sha256
from bert_ft.train.gather import chosen
from bert_ft.train.meaning import MARK, told
from bert_ft.train.refuse import OF_ANSWERS
from bert_ft.train.start import fitted_for, frozen_digest, full, trained_parts
from bert_ft.train.system import System, assemble


def export(config: ConfigDict, workdir: Path) -> Path:
    """Writes config.export.to and returns it. Raises InputError where that can't be done, and
    AssertionError where the outputs of what was written are not those of what was trained."""
    to = paths.absolute(config.export.to)
    _refuse(to, workdir)
    config, workdir = chosen(config, workdir, "export.trial")
    fitted = fitted_for(config, workdir, print)
    if jax.process_count() > 1:
        raise InputError("--mode=export works in one process; start it on one host")
    system = assemble(config, print, sets=(), model_dir=workdir / "model", fitted=fitted)
    optimizer = optim.make_optimizer(config, 1)
    trained, frozen, step = trained_parts(system, workdir, optimizer, print)
    params, whole = full(system, trained, frozen, step), system
    if isinstance(system.task, MultiTask) or config.export.part:
        system, params, sha256 = _one_part(system, jax.device_get(params))
    else:
        sha256, params = params_sha256(params), jax.device_get(params)
    kind, config, part = kind_of(system.model.head), system.config, config.export.part
    if not kind or not isinstance(system.encoder, EncoderConfig):
        raise InputError(f"task {system.task.name!r}: its model has no form in transformers")
    peft = config.export.format == "peft"
    plain = params if peft or system.weights.plain else whole.weights.merged(params)
    name, rows = _real_rows(config)
    try:
        paths.make(to.parent)
        beside = None if paths.is_remote(to) else to.parent
        scratch = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=beside))
    except OSError as e:
        raise InputError(f"{to}: can't be written: {e.strerror}") from e
    try:
        scratch.chmod(0o755)
        labels = next(iter(hf.label_names(system.fitted)), [])
        scale = scale_of(system.task, system.fitted)
        if peft:
            largest = adapters.write(scratch, whole, (trained, frozen, step), params, rows)
        else:
            problem, pooler = getattr(system.task, "problem_type", ""), _pooler(config, kind)
            hf.save(scratch, system.encoder, plain, kind, labels, problem, pooler, scale)
        system.tokenizer.save_pretrained(scratch)
        _write_length(scratch, system, kind)
        if kind == "embedding" and not peft:
            card.write_sentence_transformer(scratch, system)
        if not peft:
            largest = compare(system, params, plain, rows, scratch)
        compared: dict[str, Any] = {
            "rows": len(rows),
            "of": f"data.{name}",
            "largest_difference": largest,
        }
        about = {
            "config": _described(config, workdir, part),
            "step": step,
            "params_sha256": sha256,
            "git_commit": record.git_commit(),
            "versions": record.versions(),
            "compared": compared,
            "thresholds": card.thresholds(system),
            "null_threshold": card.null_threshold(system),
            "unit": {key: getattr(scale if peft else OWN, key) for key in ("mean", "scale")},
        }
        if peft:
            about |= {"fitted": dict(system.fitted), "base_sha256": frozen_digest(frozen)}
        result = _result(workdir, sha256, part)
        text = card.model_card(system, kind, about, result, defaults.default())
        (scratch / "README.md").write_text(text, encoding="utf-8")
        about["files"] = _files(scratch)
        (scratch / MARK).write_text(json.dumps(about, indent=1) + "\n")
        (_upload if paths.is_remote(to) else _rename)(scratch, to)
    except OSError as e:
        raise InputError(f"{to}: can't be written: {e.strerror or e}") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    architecture = families.architecture(system.encoder.family, kind)
    what = f"adapter of a {architecture}" if peft else architecture
    said = ", ".join(f"{k} {v:.1e}" for k, v in compared["largest_difference"].items())
    print(f"compared on {len(rows)} rows of data.{name}, largest difference: {said}")
    print(f"exported: {what} of step {step} in {to}")
    return to


def _one_part(system: System, params: Any) -> tuple[System, Any, str]:
    """(the system, the parameters and their digest) of one part of a multi-task run: the encoder
    and that part's head. Raises InputError where config.export.part names none."""
    part, parts = system.config.export.part, getattr(system.task, "parts", {})
    if part not in parts:
        accepted = ", ".join(map(repr, parts)) or "'': the run has one task"
        raise InputError(f"config.export.part is {part!r}; accepted: {accepted}")
    fitted, task = system.fitted[part], parts[part]
    alone = dataclasses.replace(
        system,
        config=part_configs(system.config)[part],
        task=task,
        model=Model(system.encoder, task.head(fitted), system.model.dtype),
        fitted=fitted,
    )
    own = {"encoder": params["encoder"], "top": params["top"].get(part, {})}
    return alone, own, params_sha256(params)


def _pooler(config: ConfigDict, kind: str) -> dict[str, np.ndarray]:
    """Of the model that the run began from: heads of masked words and of vectors have no use for
    it, but a classifier that starts from the export has."""
    if kind not in ("masked", "embedding") or not config.model.pretrained:
        return {}
    try:
        return hf.pooler(hf.directory(config.model.pretrained, cache_dir(config)))
    except InputError as e:
        print(f"note: exported without a pooler: {e}")
        return {}


def _refuse(to: Path, workdir: Path) -> None:
    """Nothing is overwritten but the files of an earlier export."""
    if to.is_dir():
        if any(to.iterdir()) and not (to / MARK).is_file():
            raise InputError(
                f"config.export.to: {to} is not empty and no earlier export; give another directory"
            )
        if more := sorted({*_files(to)} - {*told(to).get("files", []), MARK}):
            raise InputError(
                f"config.export.to: {to} has {len(more)} files beside those of an earlier export, "
                f"such as {more[0]}, which would be lost; give another directory"
            )
    elif to.exists():
        raise InputError(f"config.export.to: {to} is a file; give a directory")
    inner, outer = (p if paths.is_remote(p) else p.resolve() for p in (workdir, to))
    if outer == inner or outer in inner.parents:
        raise InputError(f"config.export.to: {to} holds the run itself; give another directory")


def _files(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in paths.files_below(folder)]


def _rename(scratch: Path, to: Path) -> None:
    """The new directory in the place of an earlier export, if there is one."""
    old = Path(tempfile.mkdtemp(prefix=f".{to.name}-old-", dir=to.parent))
    try:
        if to.is_dir():
            os.rename(to, old / "export")
        os.rename(scratch, to)
    finally:
        if not to.exists() and (old / "export").exists():
            os.rename(old / "export", to)
        shutil.rmtree(old, ignore_errors=True)


def _upload(scratch: Path, to: Path) -> None:
    """The new directory in gs://, in the place of an earlier export. There is no rename there: the
    mark goes first and comes last, so that a directory without it is known as half written."""
    with paths.reached(to):
        for file in paths.files_below(to) if to.is_dir() else []:
            file.unlink()
        mark = (scratch / MARK).rename(scratch.with_name(scratch.name + MARK))
        try:
            paths.copy_below(scratch, to)
            (to / MARK).write_bytes(mark.read_bytes())
        finally:
            mark.unlink()


def _real_rows(config: ConfigDict) -> tuple[str, Rows]:
    """(test, dev or train, the first of its rows)."""
    d = config.data
    for name in ("test", "dev", "train"):
        if d[name]:
            rows = source_of(config, d[name]).read()
            rows = rows.take(list(range(min(len(rows), config.export.rows))))
            if config.task.name == "cross_encoder" and COLUMN not in rows.columns:
                # It learnt from answers that were drawn; what it reads here are the right ones.
                lists = [[answer] for answer in texts_of(rows, d.text_pair)]
                rows = dataclasses.replace(rows, columns={**rows.columns, COLUMN: lists})
            return name, rows
    raise InputError("config.data.test, dev and train are all ''; there is no row to compare on")


def _result(workdir: Path, sha256: str, part: str = "") -> dict[str, Any]:
    """The object of result.json, with the scores of one part alone; {} where it is of other
    parameters than these."""
    result = read_object(workdir / "result.json")
    if result.get("params_sha256") != sha256:
        return {}
    scores = result.get("eval", {}).items()
    own = {k: v for k, v in scores if not part or k.partition("/")[2].startswith(f"{part}/")}
    return {**result, "eval": own}


def _described(config: ConfigDict, workdir: Path, part: str) -> dict[str, Any]:
    """The config, flat, but as the run was trained in what bears on no answer: an export needs no
    flag of the training. A part's own data are those of the config."""
    now, own = flat(config), read_object(workdir / "config.json")
    keys, others = ("train.",) if part else ("train.", "data."), (*OF_ANSWERS, *defaults.FREE)
    trained = {k: v for k, v in own.items() if k.startswith(keys) and not k.startswith(others)}
    return now | {k: v for k, v in trained.items() if k in now}


def _write_length(directory: Path, system: System, kind: str) -> None:
    """The tokens at which transformers cuts a text, those at which the run does. A text that the
    run reads by windows is cut where the model's positions end, not at its first window."""
    path = directory / "tokenizer_config.json"
    about = read_object(path)
    length = system.config.data.max_length if kind in WHOLE else system.encoder.positions
    path.write_text(json.dumps({**about, "model_max_length": length}, indent=2) + "\n")
