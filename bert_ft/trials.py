"""config.trials: which runs one command makes, and which of them may share a compiled program.

{"seed": [0, 1, 2], "learning_rate": [2e-5, 5e-5]} is a product, six trials, the last name varying
fastest; [{"seed": 0}, {"seed": 1, "warmup": 0.2}] lists them. A name is a key of the config, or its
last part where that is clear (varying.NAMES).
"""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_ft import space
from bert_ft.config import fixed, flat
from bert_ft.errors import InputError
from bert_ft.varying import VARYING, Settings, known, once, said, without_trials

SHAPE = '{"seed": [0, 1, 2], "learning_rate": [2e-5, 5e-5]}, or a list of objects'
MOST = 10_000  # more are a mistake in the product

REDRAWN = 100  # draws that give a trial that is there already, before that is an error


def settings(config: ConfigDict) -> list[Settings]:
    """What each trial sets; [{}] where config.trials is ''. Raises InputError on what is no list of
    trials."""
    return made(flat(config))


def made(values: Mapping[str, Any]) -> list[Settings]:
    """Of a flat config: the trials that are listed, then those drawn from trial.space. Draw n is
    f(train.seed, n): all are known before the first step."""
    found = parsed(values["trials"])
    if not values.get("trial.space"):
        return found
    dimensions = space.parsed(values["trial.space"], "config.trial.space")
    for number in range(values["trial.samples"]):
        for attempt in range(REDRAWN):
            rng = np.random.default_rng((values["train.seed"], number, attempt))
            one = space.draw(dimensions, rng)
            if one not in found:
                break
        else:
            raise InputError(
                f"config.trial.samples is {values['trial.samples']}, but trial.space holds hardly "
                "more than the trials there are; accepted: fewer, or a larger space"
            )
        found.append(one)
    return found


def parsed(text: str) -> list[Settings]:
    """config.trials, read."""
    if not text:
        return [{}]
    try:
        given = json.loads(text, object_pairs_hook=once)
    except ValueError as e:
        raise InputError(f"config.trials is no JSON ({e}); accepted: {SHAPE}") from None
    count = len(given) if isinstance(given, list) else 0
    if isinstance(given, dict) and given:
        count = math.prod(len(v) if isinstance(v, list) else 1 for v in given.values())
    if count > MOST:
        raise InputError(f"config.trials makes {count:,} trials; accepted: at most {MOST:,}")
    if isinstance(given, dict) and given:
        listed: Iterable[dict[str, Any]] = _product(given)
    elif isinstance(given, list) and given and all(isinstance(g, dict) for g in given):
        listed = given
    else:
        raise InputError(f"config.trials is {text!r}; accepted: {SHAPE}")
    trials = [known(one, "config.trials") for one in listed]
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


def config_of(config: ConfigDict, one: Settings) -> ConfigDict:
    """The config of a trial as a run of its own has it."""
    c = copy.deepcopy(config)
    with c.unlocked():
        without_trials(c)
        for key, value in one.items():
            c.update_from_flattened_dict({key: value})
    return c


def program_config(config: ConfigDict, one: Settings) -> ConfigDict:
    """What the trials of a program share, from the settings of one of them."""
    c = config_of(config, one)
    with c.unlocked():
        c.train.seed, c.mesh.trial = config.train.seed, config.mesh.trial
        c.trial = copy.deepcopy(config.trial)
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
