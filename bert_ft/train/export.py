"""--mode=export: a trained workdir as a Hugging Face directory, there once its logits are right.

It is written beside its place, read back, compared on real rows with what was trained, renamed.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from bert_ft import config as defaults
from bert_ft import paths
from bert_ft.config import cache_dir, flat
from bert_ft.data.batches import Batch, Draw, EvalPlan
from bert_ft.data.encode import Encoded
from bert_ft.data.sources import Rows, open_source
from bert_ft.errors import InputError
from bert_ft.models import families, hf
from bert_ft.models.bert import EncoderConfig
from bert_ft.models.heads import Model, kind_of
from bert_ft.parts import part_configs
from bert_ft.tasks.multi import MultiTask
from bert_ft.train import card, optim, record
from bert_ft.train.checksum import params_sha256
from bert_ft.train.gather import chosen
from bert_ft.train.start import trained_params
from bert_ft.train.system import System, assemble, load_fitted

TOLERANCE = 1e-4  # absolute, float32: some hundred times the rounding, a thousandth of a fault
MARK = "export.json"  # what was exported, and how it was compared; marks a directory as ours


def export(config: ConfigDict, workdir: Path) -> Path:
    """Writes config.export.to and returns it. Raises InputError where that can't be done, and
    AssertionError where the outputs of what was written are not those of what was trained."""
    to = paths.absolute(config.export.to)
    _refuse(to, workdir)
    workdir = chosen(workdir, config.export.trial, "export.trial")
    fitted = load_fitted(workdir)
    if jax.process_count() > 1:
        raise InputError("--mode=export works in one process; start it on one host")
    system = assemble(config, print, sets=(), model_dir=workdir / "model", fitted=fitted)
    params, step = trained_params(system, workdir, optim.make_optimizer(config, 1), print)
    if isinstance(system.task, MultiTask) or config.export.part:
        system, params, sha256 = _one_part(system, jax.device_get(params))
    else:
        sha256, params = params_sha256(params), jax.device_get(params)
    kind, config = kind_of(system.model.head), system.config
    if not kind or not isinstance(system.encoder, EncoderConfig):
        raise InputError(f"task {system.task.name!r}: its model has no form in transformers")
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
        hf.save(scratch, system.encoder, params, kind, labels)
        system.tokenizer.save_pretrained(scratch)
        if kind == "embedding":
            card.write_sentence_transformer(scratch, system)
        compared: dict[str, Any] = {
            "rows": len(rows),
            "of": f"data.{name}",
            "largest_difference": compare(system, params, rows, scratch),
        }
        about = {
            "config": flat(config),
            "step": step,
            "params_sha256": sha256,
            "git_commit": record.git_commit(),
            "versions": record.versions(),
            "compared": compared,
        }
        (scratch / MARK).write_text(json.dumps(about, indent=1) + "\n")
        scores = _scores(workdir, sha256)
        text = card.model_card(system, kind, about, scores, defaults.default())
        (scratch / "README.md").write_text(text, encoding="utf-8")
        (_upload if paths.is_remote(to) else _rename)(scratch, to)
    except OSError as e:
        raise InputError(f"{to}: can't be written: {e.strerror or e}") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    architecture = families.architecture(system.encoder.family, kind)
    said = ", ".join(f"{k} {v:.1e}" for k, v in compared["largest_difference"].items())
    print(f"compared on {len(rows)} rows of data.{name}, largest difference: {said}")
    print(f"exported: {architecture} of step {step} in {to}")
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


def _refuse(to: Path, workdir: Path) -> None:
    """Nothing is overwritten but an earlier export."""
    if to.is_dir():
        if any(to.iterdir()) and not (to / MARK).is_file():
            raise InputError(
                f"config.export.to: {to} is not empty and no earlier export; give another directory"
            )
    elif to.exists():
        raise InputError(f"config.export.to: {to} is a file; give a directory")
    if to == workdir or to in workdir.parents:
        raise InputError(f"config.export.to: {to} holds the run itself; give another directory")


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
            source = open_source(d[name], cache_dir=cache_dir(config), bad_rows=d.bad_rows)
            rows = source.read()
            return name, rows.take(list(range(min(len(rows), config.export.rows))))
    raise InputError("config.data.test, dev and train are all ''; there is no row to compare on")


def _scores(workdir: Path, sha256: str) -> dict[str, Any] | None:
    """The 'eval' object of result.json; None where it is of other parameters than these."""
    path = workdir / "result.json"
    if not path.is_file():
        return None
    result = json.loads(path.read_text())
    return result.get("eval", {}) if result.get("params_sha256") == sha256 else None


def compare(system: System, params: Any, rows: Rows, path: Path) -> dict[str, float]:
    """{'bert_ft': d, 'transformers': d}, the largest absolute difference between the outputs of the
    trained model and those of the directory, read by our loader and, where torch is installed, by
    transformers. Raises AssertionError where the tokens differ at all or an output by more than
    TOLERANCE."""
    tokenizer, length = hf.load_tokenizer(path), system.config.data.max_length
    data, again = (
        _of_rows(system.task.encode(rows, by, length, system.fitted))
        for by in (system.tokenizer, tokenizer)
    )
    for array in ("tokens", "types", "offsets"):
        if not np.array_equal(getattr(data, array), getattr(again, array)):
            raise AssertionError(f"export: the written tokenizer gives other {array}")
    # One sequence a row, in order: so the rows are what another library would be given.
    batch = _padded(data, system.row_length, getattr(system.task, "draw", None))
    fresh = Model(hf.read_config(path), system.model.head)
    kind = kind_of(system.model.head)
    found, new = hf.load(path, params, kind, hf.label_names(system.fitted))
    if new:
        raise AssertionError(f"export: the written directory lacks {', '.join(new)}")
    with jax.default_matmul_precision("highest"):
        trained = _outputs(Model(system.encoder, system.model.head), params, batch)
        ours = _outputs(fresh, hf.unflatten(found), batch)
    largest = {"bert_ft": _difference("bert_ft", trained, ours, batch)}
    if importlib.util.find_spec("torch"):
        pooling = getattr(system.model.head(system.encoder, jnp.float32), "pooling", "")
        theirs = transformers_outputs(path, kind, batch, system.encoder.pad_token_id, pooling)
        # What the architecture has no place for (a CRF's scores) only our loader reads.
        same = {k: v for k, v in trained.items() if k in theirs}
        if same:
            largest["transformers"] = _difference("transformers", same, theirs, batch)
    return largest


def _of_rows(data: Encoded) -> Encoded:
    """Without the examples of no row, which stand behind the others."""
    count = int((data.row >= 0).sum())
    last = int(data.offsets[count * data.pieces])
    return dataclasses.replace(
        data,
        tokens=data.tokens[:last],
        types=data.types[:last],
        offsets=data.offsets[: count * data.pieces + 1],
        row=data.row[:count],
        truncated=data.truncated[:count],
        fields={k: v[:count] for k, v in data.fields.items()},
        token_fields={k: v[:last] for k, v in data.token_fields.items()},
    )


def _padded(data: Encoded, row_length: int, draw: Draw | None) -> Batch:
    """All examples in one batch, a sequence a row, in the order of EvalPlan."""
    return EvalPlan(data, len(data), row_length, packed=False, draw=draw).batch(0)


def _outputs(model: Model, params: Any, batch: Batch) -> dict[str, np.ndarray]:
    made = jax.jit(functools.partial(model.apply, rng=None))({"params": params}, batch)
    return {k: np.asarray(v) for k, v in jax.device_get(dict(made)).items()}


def _difference(
    who: str, trained: dict[str, np.ndarray], theirs: dict[str, np.ndarray], batch: Batch
) -> float:
    """The largest over all outputs; of an output for each token, over real tokens."""
    worst = 0.0
    for name, right in trained.items():
        if theirs[name].shape != right.shape:
            raise AssertionError(
                f"export: {name} as {who} reads the directory has shape {theirs[name].shape}, "
                f"not {right.shape}"
            )
        gap = np.abs(right.astype(np.float64) - theirs[name])
        if right.shape[:2] == batch["segments"].shape:
            gap = gap[batch["segments"] > 0]
        if not (gap <= TOLERANCE).all():  # which catches NaN as well
            raise AssertionError(
                f"export: {name} as {who} reads the directory differ by {gap.max():.3g} from the "
                f"trained model's; at most {TOLERANCE} is right; nothing was exported"
            )
        worst = max(worst, float(gap.max()))
    return worst


def transformers_outputs(
    path: Path, kind: str, batch: Batch, pad_token_id: int, pooling: str = ""
) -> dict[str, np.ndarray]:
    """The directory's outputs for an unpacked batch by transformers' PyTorch class, under our names
    and in our order; {} for a kind of head that this can't compare."""
    import torch
    import transformers

    name = json.loads((path / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32
    )
    mask = batch["segments"] > 0
    row = batch["example_start"] // mask.shape[1]  # of each sequence, in the batch's order
    given = {
        "input_ids": np.where(mask, batch["tokens"], pad_token_id)[row],
        "attention_mask": mask[row],
    }
    if getattr(model.config, "type_vocab_size", 0) > 1:
        given["token_type_ids"] = batch["types"][row]
    tensors = {k: torch.tensor(v.astype(np.int64)) for k, v in given.items()}
    if kind == "choice":
        count = len(batch["ordinal"])
        tensors = {k: v.reshape(count, -1, v.shape[-1]) for k, v in tensors.items()}
    if kind == "masked":  # a few texts at a time: theirs are the logits of every place
        logits = np.zeros((*batch["masked_slots"].shape, model.config.vocab_size), np.float32)
        with torch.no_grad():
            for at in range(0, len(row), 8):
                few, places = row[at : at + 8], batch["masked_slots"][row[at : at + 8]]
                out = model.eval()(**{k: v[at : at + 8] for k, v in tensors.items()}).logits
                logits[few] = np.take_along_axis(out.numpy(), places[..., None], axis=1)
        return {"logits": logits}
    with torch.no_grad():
        out = model.eval()(**tensors)

    real = tensors["attention_mask"].bool()
    if kind in ("sequence", "choice"):
        return {"logits": out.logits.numpy()}
    if kind == "token":  # theirs are by sequence, ours by row
        logits = np.zeros((len(mask), *out.logits.shape[1:]), np.float32)
        logits[row] = out.logits.numpy()
        return {"logits": logits}
    if kind == "span":
        return {
            "start": out.start_logits.masked_fill(~real, -1e30).numpy(),
            "end": out.end_logits.masked_fill(~real, -1e30).numpy(),
        }
    if kind == "embedding":
        hidden, weight = out.last_hidden_state, real[..., None].float()
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        x = mean if pooling == "mean" else hidden[:, 0]
        return {"embedding": torch.nn.functional.normalize(x, dim=1).numpy()}
    return {}
