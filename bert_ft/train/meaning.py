"""What a model's outputs mean, and the rows of its tables: what two runs must share before the
parameters or the outputs of one stand for the other's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

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
