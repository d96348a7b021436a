"""Whether a written directory answers as the trained model does: by our loader, by transformers."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_ft.data.batches import Batch, Draw, EvalPlan
from bert_ft.data.encode import Encoded
from bert_ft.data.sources import Rows
from bert_ft.data.tokenizer import load_tokenizer
from bert_ft.models import families, hf
from bert_ft.models.heads import Model, kind_of
from bert_ft.models.stored_heads import OWN, Scale, scale_of
from bert_ft.train.system import System

# Kinds of heads with outputs by text, of which one may by chance be shaped as one by token is.
WHOLE = ("sequence", "choice", "embedding")
TOLERANCE = 1e-4  # absolute, float32: some hundred times the rounding, a thousandth of a fault


def _in_own(outputs: dict[str, np.ndarray], scale: Scale) -> dict[str, np.ndarray]:
    """What transformers makes of a rating, in the run's own unit."""
    if (scale.mean, scale.scale) == (OWN.mean, OWN.scale):
        return outputs
    return {**outputs, "logits": (outputs["logits"].astype(np.float64) - scale.mean) / scale.scale}


def compare(system: System, params: Any, plain: Any, rows: Rows, path: Path) -> dict[str, float]:
    """{'bert_ft': d, 'transformers': d}, the largest absolute difference between the outputs of the
    trained model and those of the directory, read by our loader and, where torch is installed, by
    transformers. `params` are what the model is given, `plain` the tree of what was written. Raises
    AssertionError where the tokens differ at all or an output, in the model's own unit, by more
    than TOLERANCE."""
    tokenizer, length = load_tokenizer(path), system.config.data.max_length
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
    scale = scale_of(system.task, system.fitted)
    found, new = hf.load(path, plain, kind, hf.label_names(system.fitted), scale=scale)
    if new:
        raise AssertionError(f"export: the written directory lacks {', '.join(new)}")
    with jax.default_matmul_precision("highest"):
        trained = _outputs(Model(system.encoder, system.model.head), params, batch)
        ours = _outputs(fresh, hf.unflatten(found), batch)
    largest = {"bert_ft": _difference("bert_ft", kind, trained, ours, batch, scale)}
    if importlib.util.find_spec("torch"):
        pooling = getattr(system.model.head(system.encoder, jnp.float32), "pooling", "")
        theirs = transformers_outputs(path, kind, batch, system.encoder.pad_token_id, pooling)
        theirs = _in_own(theirs, scale)
        # What the architecture has no place for (a CRF's scores) only our loader reads.
        same = {k: v for k, v in trained.items() if k in theirs}
        if same:
            largest["transformers"] = _difference("transformers", kind, same, theirs, batch, scale)
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
    who: str,
    kind: str,
    trained: dict[str, np.ndarray],
    theirs: dict[str, np.ndarray],
    batch: Batch,
    scale: Scale = OWN,
) -> float:
    """The largest over all outputs; of an output for each token, over real tokens. `kind`: the
    head's. Of a rating's, whose `scale` is written into the head, float32 rounds the mean too."""
    worst, allowed = 0.0, TOLERANCE + 2 * float(np.spacing(np.float32(scale.mean))) / scale.scale
    for name, right in trained.items():
        if theirs[name].shape != right.shape:
            raise AssertionError(
                f"export: {name} as {who} reads the directory has shape {theirs[name].shape}, "
                f"not {right.shape}"
            )
        gap = np.abs(right.astype(np.float64) - theirs[name])
        if kind not in WHOLE and right.shape[:2] == batch["segments"].shape:
            gap = gap[batch["segments"] > 0]
        if not (gap <= allowed).all():  # which catches NaN as well
            raise AssertionError(
                f"export: {name} as {who} reads the directory differ by {gap.max():.3g} from the "
                f"trained model's; at most {allowed:.3g} is right; nothing was exported"
            )
        worst = max(worst, float(gap.max()))
    return worst


def compare_adapter(
    system: System, params: Any, again: Any, rows: Rows, path: Path, base: Path
) -> dict[str, float]:
    """{'bert_ft': d, 'peft': d}: as `compare`, of a directory of peft's on the model in `base`.
    `again`: what the model is given by our loader of the directory. 'peft' is there where the
    library and torch are, and not of a prefix, which peft 0.21 does not give to an encoder of
    transformers 5.24."""
    data = _of_rows(
        system.task.encode(rows, system.tokenizer, system.config.data.max_length, system.fitted)
    )
    batch = _padded(data, system.row_length, getattr(system.task, "draw", None))
    model = Model(system.encoder, system.model.head)
    with jax.default_matmul_precision("highest"):
        trained, ours = (_outputs(model, p, batch) for p in (params, again))
    kind = kind_of(system.model.head)
    largest = {"bert_ft": _difference("bert_ft", kind, trained, ours, batch)}
    about = json.loads((path / "adapter_config.json").read_text())
    if importlib.util.find_spec("peft") and about["peft_type"] != "PREFIX_TUNING":
        bias = hf.flatten(params)[{"span": "top/qa_outputs/bias"}.get(kind, "top/classifier/bias")]
        name = families.architecture(system.encoder.family, kind)
        load = functools.partial(_with_adapter, path=path, base=base, labels=len(bias), name=name)
        theirs = torch_outputs(load, kind, batch, system.encoder.pad_token_id)
        same = {k: v for k, v in trained.items() if k in theirs}
        if same:
            largest["peft"] = _difference("peft", kind, same, theirs, batch)
    return largest


def _with_adapter(path: Path, base: Path, labels: int, name: str) -> Any:
    import peft
    import torch
    import transformers

    model = getattr(transformers, name).from_pretrained(
        base,
        num_labels=labels,
        attn_implementation="eager",
        dtype=torch.float32,
        ignore_mismatched_sizes=True,  # of a head, in the place of which the adapter has one
    )
    whole = peft.PeftModel.from_pretrained(model, path)
    # Around a model that answers questions, peft's own class hands no token types on.
    return whole.get_base_model() if hasattr(model, "qa_outputs") else whole


def transformers_outputs(
    path: Path, kind: str, batch: Batch, pad_token_id: int, pooling: str = ""
) -> dict[str, np.ndarray]:
    """The directory's outputs by transformers' PyTorch class."""

    def load() -> Any:
        import torch
        import transformers

        name = json.loads((path / "config.json").read_text())["architectures"][0]
        return getattr(transformers, name).from_pretrained(
            path, attn_implementation="eager", dtype=torch.float32
        )

    return torch_outputs(load, kind, batch, pad_token_id, pooling)


def torch_outputs(
    load: Callable[[], Any], kind: str, batch: Batch, pad_token_id: int, pooling: str = ""
) -> dict[str, np.ndarray]:
    """A PyTorch model's outputs for an unpacked batch, under our names and in our order; {} for a
    kind of head that this can't compare."""
    import torch

    model = load()
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
