"""Results as lines of JSON, so that what has been measured need not be measured again."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_ft.config import FREE, default, flat
from bert_ft.train import record


def versions() -> dict[str, str]:
    """Of the libraries that bear on a result. Our own is "" in a checkout that is not installed; a
    line's git_commit says it."""
    return {name: version for name, version in record.versions().items() if name != "bert_ft"}


def told(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a flat config what bears on a result and is not the default, and every knob of the methods
    in use: a key that did not exist when a line was measured does not make it another's. A default
    that has changed is not seen; lines from before it must go."""
    usual = flat(default())
    used = tuple(f"methods.{name}." for name in str(values["methods.use"]).split(",") if name)
    return {
        key: value
        for key, value in values.items()
        if key.startswith(used) or (not key.startswith(FREE) and value != usual.get(key))
    }


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8") if path.exists() else ""
    # Not splitlines(), which cuts within texts, too: at U+0085, for one.
    return [json.loads(line) for line in text.split("\n") if line]


def append(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def found(lines: Sequence[dict[str, Any]], what: Mapping[str, Any]) -> dict[str, Any] | None:
    """The last line of a run like `what`."""
    like = [line for line in lines if all(line.get(key) == value for key, value in what.items())]
    return like[-1] if like else None


SHOW = "the runs that are there, of any versions; makes none"  # what --show does


class Unmeasured(Exception):
    """There is no line of a run that was only to be shown."""


def whatever_versions(what: Mapping[str, Any]) -> dict[str, Any]:
    """The same run, of any libraries: what --show looks for."""
    return {key: value for key, value in what.items() if key != "versions"}


def measured(
    results: Path,
    what: Mapping[str, Any],
    make: Callable[[], Mapping[str, Any]],
    show: bool = False,
) -> dict[str, Any]:
    """The line of `results` that has `what`; made, and added, where there is none. Where it is only
    to `show`, that of any versions. Raises Unmeasured where that is not there."""
    line = found(read(results), whatever_versions(what) if show else what)
    if line is None and show:
        raise Unmeasured(what)
    if line is None:
        line = {**what, **make()}
        append(results, [line])
    return line


def median(values: Sequence[float | None]) -> float | None:
    """Of those there are: a run that was killed after its last step, before its record, has no
    rate."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def spread(values: Sequence[float], times: float = 100, digits: int = 2) -> str:
    """'82.90 ± 0.31', in per cent, with the sample standard deviation; '82.90' of one value."""
    mean = f"{times * statistics.fmean(values):.{digits}f}"
    std = statistics.stdev(values) if len(values) > 1 else None
    return mean if std is None else f"{mean} ± {times * std:.{digits}f}"
