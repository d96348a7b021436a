"""What a directory says of its head beside the tensors: which labels its outputs are, in what unit,
and how sentence-transformers makes vectors of it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_ft.errors import InputError

# Of sentence-transformers, what an embedding is here; _OLD: its modes before release 5.
MODULES, MODES = ("Transformer", "Pooling", "Normalize"), ("mean", "cls")
_OLD = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def label_order(
    path: Path, raw: Mapping[str, Any], names: Sequence[Sequence[str]], kind: str
) -> list[int] | None:
    """Which of the checkpoint's outputs is each of our labels; None where they stand as ours do or
    have no names. `raw`: its config.json; `names`: what our labels are called, one list or several
    that will do. Raises InputError where they are other labels."""
    named = raw.get("id2label") or {}
    try:
        theirs = [str(v) for _, v in sorted(named.items(), key=lambda x: int(x[0]))]
    except (AttributeError, ValueError):
        raise InputError(
            f"{path / 'config.json'}: id2label is {named!r}; accepted: an object of a name by "
            'number, {"0": "…", …}; or set config.model.head=new'
        ) from None
    if not names or not theirs:
        return None
    for ours in names:
        if sorted(ours) == sorted(theirs) and len(set(theirs)) == len(theirs):
            return None if list(ours) == theirs else [theirs.index(label) for label in ours]
    if theirs == [f"LABEL_{i}" for i in range(len(theirs))]:  # what transformers calls no names
        return None
    ours = names[0]
    how = " (of classification: by config.task.label_names)" if kind == "sequence" else ""
    raise InputError(
        f"{path}: its labels are {', '.join(map(repr, theirs[:20]))}; the data's "
        f"{', '.join(map(repr, ours[:20]))}: give them its names{how}, or set config.model.head=new"
    )


# The last layer of a rating; of a recommendation, whose items have a bias each besides.
_OF_RATING = re.compile(r"top/((classifier|score)/|wide_\d)")


@dataclasses.dataclass(frozen=True)
class Scale:
    """Of what is stored, in which all runs agree, beside what a run trains: a rating is `scale`
    times the run's own output and `mean` more, so in the unit of its labels (tasks/regression.py);
    a chain's scores are `rate` times its parameters (heads.TokenHead)."""

    mean: float = 0.0
    scale: float = 1.0
    rate: float = 1.0


OWN = Scale()


def scale_of(task: Any, fitted: Mapping[str, Any]) -> Scale:
    rate = getattr(task, "crf_rate", 0) or 1.0
    if getattr(task, "problem_type", "") != "regression":
        return Scale(rate=rate)
    return Scale(float(fitted["mean"]), float(fitted["scale"]), rate)


def rescaled(ours: str, array: Any, its: Scale, own: Scale) -> Any:
    """A parameter, by its path, of a run of the one scale as a run of the other has it; OWN is that
    of what is stored. NumPy's arrays are reckoned with in float64."""
    (factor, shift), (by, add) = _line(ours, its), _line(ours, own)
    if (factor, shift) == (by, add):
        return array
    wide = array.astype(np.float64) if isinstance(array, np.ndarray) else array
    return ((wide * factor + (shift - add)) / by).astype(array.dtype)


def _line(ours: str, s: Scale) -> tuple[float, float]:
    """(factor, shift) from a parameter to what is stored of it."""
    if ours.startswith("top/crf_"):
        return s.rate, 0.0
    if _OF_RATING.match(ours):
        return s.scale, s.mean if ours.endswith("/bias") else 0.0
    return 1.0, 0.0


def pooling(path: Path) -> str:
    """'mean' or 'cls', by which a directory of sentence-transformers makes vectors of its tokens;
    '' where it is none. Raises InputError where it makes them otherwise, as by a dense layer."""
    listed = path / "modules.json"
    if not listed.is_file():
        return ""
    try:
        places = {m["type"].rpartition(".")[2]: m["path"] for m in json.loads(listed.read_text())}
        pooled = path / places["Pooling"] / "config.json" if "Pooling" in places else None
        chosen = _modes(json.loads(pooled.read_text())) if pooled else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"{listed}: not as sentence-transformers writes it: {e!r}") from e
    others = [m for m in places if m not in MODULES] + [m for m in chosen if m not in MODES]
    if others or len(chosen) > 1:
        raise InputError(
            f"{listed}: its vectors are made by {', '.join(others or chosen)}; accepted: "
            f"{', '.join(MODULES)}, by {' or '.join(MODES)}; config.model.head=new takes its "
            "encoder alone, pooled by config.task.pooling"
        )
    return chosen[0] if chosen else ""


def _modes(about: Mapping[str, Any]) -> list[str]:
    if "pooling_mode" in about:
        mode = about["pooling_mode"]
        return [mode] if isinstance(mode, str) else list(mode)
    return [_OLD.get(k, k) for k, on in about.items() if k.startswith("pooling_mode_") and on]
