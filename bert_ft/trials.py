"""config.trials: which runs one command makes, and which of them may share a compiled program.

{"seed": [0, 1, 2], "learning_rate": [2e-5, 5e-5]} is a product, six trials, the last name varying
fastest; [{"seed": 0}, {"seed": 1, "warmup": 0.2}] lists them. A name is a key of the config, or its
last part where that is clear (NAMES).
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import default, fixed, flat, nearest, typed
from bert_ft.errors import InputError

# What a compiled step takes as an argument. A task adds its own, such as task.label_smoothing.
VARYING = (
    *("train.seed", "train.learning_rate", "train.warmup", "train.weight_decay"),
    *("train.clip_norm", "train.steps", "train.epochs", "model.dropout"),
)
ALSO = ("task.label_smoothing", "task.weights", "task.alpha")  # of the tasks that have them
NAMES = {key.rpartition(".")[2]: key for key in (*VARYING, *ALSO)}
SHAPE = '{"seed": [0, 1, 2], "learning_rate": [2e-5, 5e-5]}, or a list of objects'
MOST = 10_000  # more are a mistake in the product

Settings = dict[str, Any]  # {config key: value} of a trial


def settings(config: ConfigDict) -> list[Settings]:
    """What each trial sets; [{}] where config.trials is ''. Raises InputError on what is no list of
    trials."""
    return parsed(config.trials)


def parsed(text: str) -> list[Settings]:
    """config.trials, read."""
    if not text:
        return [{}]
    try:
        given = json.loads(text)
    except ValueError as e:
        raise InputError(f"config.trials is no JSON ({e}); accepted: {SHAPE}") from None
    if isinstance(given, dict) and given:
        listed: Iterable[dict[str, Any]] = _product(given)
    elif isinstance(given, list) and given and all(isinstance(g, dict) for g in given):
        listed = given
    else:
        raise InputError(f"config.trials is {text!r}; accepted: {SHAPE}")
    trials = [_known(one) for one in listed]
    if len(trials) > MOST:
        raise InputError(f"config.trials makes {len(trials):,} trials; accepted: at most {MOST:,}")
    for number, one in enumerate(trials):
        if one in trials[:number]:
            same = trials.index(one)
            raise InputError(f"config.trials: trials {same} and {number} are the same: {said(one)}")
    return trials


def _product(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    for name, values in given.items():
        if not isinstance(values, list) or not values:
            raise InputError(
                f"config.trials: {name!r} is {values!r}; accepted: a list of one value or more"
            )
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]


def _known(one: Mapping[str, Any]) -> Settings:
    """The keys and types of a trial's settings, as the config has them."""
    usual, out = flat(default()), dict[str, Any]()
    for name, value in one.items():
        key = NAMES.get(name, name)
        if key not in usual or key == "trials":
            accepted = [*NAMES, *usual]
            raise InputError(
                f"config.trials: {name!r} is no key; accepted: {', '.join(NAMES)}, or another key "
                f"of the config in full{nearest(name, accepted)}"
            )
        if key in out:
            raise InputError(f"config.trials: {name!r} is given twice")
        try:
            out[key] = typed(key, value, usual[key])
        except ValueError as e:
            raise InputError(f"config.trials: {e}") from None
    return out


def config_of(config: ConfigDict, one: Settings) -> ConfigDict:
    """The config of a trial as a run of its own has it."""
    c = copy.deepcopy(config)
    with c.unlocked():
        c.trials = ""
        for key, value in one.items():
            c.update_from_flattened_dict({key: value})
    return c


def groups(config: ConfigDict, trials: list[Settings], of_task: Iterable[str]) -> list[list[int]]:
    """The trials that may share a program, in order: those that differ only in VARYING and in
    `of_task`, the keys that the task takes as arguments."""
    free = {*VARYING, *of_task}
    found: dict[str, list[int]] = {}
    for number, one in enumerate(trials):
        lasting = {k: v for k, v in fixed(config_of(config, one)).items() if k not in free}
        found.setdefault(json.dumps(lasting, sort_keys=True), []).append(number)
    return list(found.values())


def said(one: Settings) -> str:
    """'seed 1, learning_rate 5e-05'; for the log and the report."""
    short = {key: name for name, key in NAMES.items()}
    parts = [f"{short.get(k, k)} {v:g}" if isinstance(v, float) else f"{short.get(k, k)} {v}"
             for k, v in one.items()]  # fmt: skip
    return ", ".join(parts) or "the config as it is"
