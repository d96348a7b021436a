"""What a model's outputs mean, and the rows of its tables: what two runs must share before the
parameters or the outputs of one stand for the other's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bert_ft.errors import InputError
from bert_ft.models.stored_heads import Scale, rescaled

MARK = "export.json"  # what was exported, and how it was compared; marks a directory as ours
UNSAID = "does not say what its outputs mean; they are read as this run's are"

# Of what a task learns from the training rows (`fitted`): which output is which, and which row of
# a table is whose …
WHICH = ("labels", "ranks", "categories")
# … by what numbers of a row are read, and in what unit the outputs are, which differ a little
# between any two training sets …
NUMBERS, UNIT = ("numbers",), ("mean", "scale")
# … and how answers are made of the outputs.
ANSWERS = ("names", "scheme")


def differing(
    task: Any,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    keys: tuple[str, ...],
    missing: bool = True,
) -> Iterator[tuple[str, Any, Any]]:
    """(what, ours, theirs) of each of `keys` in which two `fitted` differ, part by part where the
    task has several. What one of them lacks differs if `missing`."""
    for part in getattr(task, "parts", [""]):
        own, its = (f.get(part, {}) if part else f for f in (ours, theirs))
        for key in keys:
            there = key in own and key in its
            if (there or missing) and own.get(key) != its.get(key):
                yield f"{part} {key}".strip(), own.get(key), its.get(key)


def require_same(
    system: Any,
    task: str,
    fitted: Mapping[str, Any],
    where: str,
    keys: tuple[str, ...] = (*WHICH, *NUMBERS, *ANSWERS),
    instead: str = "",
) -> None:
    """Raises InputError where the outputs of a run of this `task` that learnt `fitted` mean other
    things than the system's. Its answers are in the unit of its own training rows."""
    compared = [("task.name", system.task.name, task)] if task != system.task.name else []
    for what, ours, its in [*compared, *differing(system.task, system.fitted, fitted, keys)]:
        raise InputError(
            f"{where}: its {what}: {short(its)}; accepted: this run's, {short(ours)}{instead}"
        )


def told(path: Path) -> dict[str, Any]:
    """What a directory of ours says of itself; {} of another's."""
    return json.loads((path / MARK).read_text()) if (path / MARK).is_file() else {}


def in_unit(tensors: Mapping[str, Any], about: Mapping[str, Any], own: Scale) -> dict[str, Any]:
    """An adapter of ours, which is stored in the unit of its run, in that of another. `about`: what
    its directory says."""
    its = Scale(**about.get("unit", {}), rate=about["config"].get("task.crf_rate") or 1.0)
    return {path: rescaled(path, array, its, own) for path, array in tensors.items()}


def renamed(fitted: Mapping[str, Any]) -> str:
    """Which label of the rows is shown by which name, where that is another one, else ''. Names
    that are meant for other rows would be taken for theirs."""
    labels, names = fitted.get("labels"), fitted.get("names")
    if not (labels and names) or labels == names:
        return ""
    return ", ".join(f"{a} is {b}" for a, b in zip(labels[:20], names, strict=False))


def short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 200 else said[:199] + "…"
