"""What trials may differ in: the keys, their short names, and which of them a step takes as
arguments."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import FREE, default, flat, nearest, typed
from bert_ft.errors import InputError

# What a compiled step takes as an argument. A task adds its own, such as task.label_smoothing.
VARYING = (
    *("train.seed", "train.learning_rate", "train.warmup", "train.weight_decay"),
    *("train.clip_norm", "train.steps", "train.epochs", "model.dropout"),
)
ALSO = ("task.label_smoothing", "task.weights", "task.alpha")  # of the tasks that have them
NAMES = {key.rpartition(".")[2]: key for key in (*VARYING, *ALSO)}
ONE_FOR_ALL = (*FREE, "trial.")

Settings = dict[str, Any]  # {config key: value} of a trial


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object_pairs_hook of `json`, by itself silent of a key that comes twice, whose last value
    counts. Raises ValueError on one."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice")
        found[key] = value
    return found


def without_trials(config: ConfigDict) -> None:
    """Resets what only a run of trials has, in the config given, which is unlocked."""
    config.trials, config.mesh.trial, t = "", 1, config.trial
    t.halving, t.space, t.samples, t.at_once, t.width, t.share_batches = 0, "", 0, 0, 0, False


@functools.cache
def _usual() -> Mapping[str, Any]:
    return flat(default())


def key_of(name: str, where: str) -> str:
    """The config's key of a name. Raises InputError where it is none, or none that trials may
    differ in; `where` it was given begins the message."""
    usual = _usual()
    key = NAMES.get(name, name)
    if key not in usual or key == "trials":
        raise InputError(
            f"{where}: {name!r} is no key; accepted: {', '.join(NAMES)}, or another key "
            f"of the config in full{nearest(name, [*NAMES, *usual])}"
        )
    if key.startswith(ONE_FOR_ALL):
        raise InputError(
            f"{where}: {name!r} can't vary, for it is the whole command's; accepted: "
            f"{', '.join(NAMES)}, or another key that bears on what is computed"
        )
    return key


def known(one: Mapping[str, Any], where: str) -> Settings:
    """The keys and types of a trial's settings, as the config has them."""
    usual, out = _usual(), Settings()
    for name, value in one.items():
        key = key_of(name, where)
        if key in out:
            raise InputError(f"{where}: {name!r} is given twice")
        try:
            out[key] = typed(key, value, usual[key])
        except ValueError as e:
            raise InputError(f"{where}: {e}") from None
    return out


def said(one: Settings) -> str:
    """'seed 1, learning_rate 5e-05'; for the log and the report."""
    short = {key: name for name, key in NAMES.items()}
    parts = [f"{short.get(k, k)} {v:g}" if isinstance(v, float) else f"{short.get(k, k)} {v}"
             for k, v in one.items()]  # fmt: skip
    return ", ".join(parts) or "the config as it is"
