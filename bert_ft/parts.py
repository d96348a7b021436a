"""task.parts: the JSON that says what the parts of a multi-task run are, read into configs."""

from __future__ import annotations

import copy
import json
from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import default, flat, nearest, typed
from bert_ft.errors import InputError
from bert_ft.evals.merit import lower_is_better
from bert_ft.varying import once, without_trials

OF_WHOLE = ("parts", "weights", "alpha", "weighting", "mixing")  # of config.task, and of no part
OF_DATA = ("train", "dev", "test", "text", "text_pair", "label")
SHAPE = '{"PART": {"task.name": "tagging", "data.label": "COLUMN", ...}, ...}'
# What a single task calls what it learnt from its rows, the parameters of losses' weights, and the
# score that has a type behind a '/', as another has its part.
TAKEN = ("labels", "names", "log_variance", "task_weight", "f1")


def part_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """{part: the config with that part's own keys}, in the order given. `task.name` of a part is
    'classification' unless it says another. Raises InputError on what is not of SHAPE."""
    text = config.task.parts
    try:
        given = json.loads(text, object_pairs_hook=once)
    except ValueError as e:
        raise InputError(f"config.task.parts is no JSON ({e}); accepted: {SHAPE}") from None
    if not isinstance(given, dict) or len(given) < 2:
        raise InputError(f"config.task.parts is {text!r}; accepted: {SHAPE}, two parts or more")
    return {part: _part(config, part, keys) for part, keys in given.items()}


def has_dev(config: ConfigDict) -> bool:
    """Whether there is a dev set: of several parts, one that any of them has."""
    if config.task.name == "multi" and config.task.parts:
        return any(own.data.dev for own in part_configs(config).values())
    return bool(config.data.dev)


def carrier(config: ConfigDict) -> ConfigDict:
    """The config whose data.text, text_pair and, where it tags, data.label change together: the
    config itself, or of several parts on the same rows the first that tags, else the first."""
    if config.task.name != "multi":
        return config
    parts = [*part_configs(config).values()]
    return next((own for own in parts if own.task.name == "tagging"), parts[0])


def _part(config: ConfigDict, part: str, keys: Any) -> ConfigDict:
    where = f"config.task.parts: {part!r}"
    if not part.isidentifier() or part in TAKEN or lower_is_better(part):
        raise InputError(
            f"{where} is no name of a part; accepted: letters, digits and _, no name of a score "
            f"and not {', '.join(TAKEN)}"
        )
    if not isinstance(keys, dict):
        raise InputError(f"{where} is {keys!r}; accepted: an object of keys and values")
    c = copy.deepcopy(config)
    usual = default()
    for name in OF_WHOLE:
        c.task[name] = usual.task[name]
    c.task.name = "classification"
    c.eval.keep_best = False  # of the whole run, as trials are
    own = config.eval.metric.startswith(f"{part}/")
    c.eval.metric = config.eval.metric.removeprefix(f"{part}/") if own else ""
    without_trials(c)
    types = flat(usual)
    accepted = [k for k in types if k.startswith("task.") and k != "task.parts"]
    accepted += [f"data.{k}" for k in OF_DATA]
    for key, value in keys.items():
        if key not in accepted:
            raise InputError(
                f"{where} sets {key!r}; accepted: task.* and "
                f"{', '.join(f'data.{k}' for k in OF_DATA)}{nearest(key, accepted)}"
            )
        group, name = key.split(".")
        try:
            c[group][name] = typed(key, value, types[key])
        except ValueError as e:
            raise InputError(f"{where}: {e}") from None
    if c.task.name == "tagging" and "data.text_pair" not in keys:
        c.data.text_pair = ""  # that of the other parts
    return c
