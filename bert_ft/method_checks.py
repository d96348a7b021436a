"""What config.methods must satisfy; part of checks.py."""

from __future__ import annotations

import json
import re
from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import nearest
from bert_ft.errors import InputError
from bert_ft.task_checks import require

# Tasks whose head reads the first token alone, so that a prompt's own tokens have no label.
PROMPTED = ("classification", "multilabel", "regression", "ordinal")
LOSSES = ("fgm",)  # methods of the third line of README's table: they wrap the loss or its gradient


def names(config: ConfigDict) -> list[str]:
    """The methods that config.methods.use lists."""
    return [name.strip() for name in config.methods.use.split(",") if name.strip()]


def prompt_length(config: ConfigDict) -> int:
    """Soft tokens in every sequence."""
    return config.methods.prompt.length if "prompt" in names(config) else 0


def require_regex(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as e:
        raise InputError(f"config.{key} is {pattern!r}: {e}; accepted: a regex") from None


def check_methods(c: ConfigDict) -> None:
    """Raises InputError on a method that is none, on knobs out of range, on what does not go
    together."""
    m, used = c.methods, names(c)
    known = sorted(key for key in m if isinstance(m[key], ConfigDict))
    for name in used:
        if name not in known:
            raise InputError(
                f"config.methods.use names {name!r}; accepted: {', '.join(known)}"
                f"{nearest(name, known)}"
            )
        require(used.count(name) == 1, "methods.use", m.use, "each method once")
    for key in ("also_train", *(f"{name}.targets" for name in known if "targets" in m[name])):
        require_regex(f"methods.{key}", _at(m, key))
    for key, low in (
        *(("lora.rank", 1), ("fgm.epsilon", 0), ("fgm.weight", 0)),
        *(("adalora.target_rank", 1), ("adalora.begin", 0), ("adalora.orthogonality", 0)),
        *(("houlsby.width", 1), ("pfeiffer.width", 1), ("prefix.length", 1), ("prefix.std", 0)),
        ("prompt.length", 1),
    ):
        require(_at(m, key) >= low, f"methods.{key}", _at(m, key), f"{low} or more")
    for key in ("lora.dropout", "adalora.beta1", "adalora.beta2", "ema.decay"):
        require(0 <= _at(m, key) < 1, f"methods.{key}", _at(m, key), "0 or more and less than 1")
    _check_weights(c, used)
    for name in used:
        require(
            name not in LOSSES or c.task.name != "multi",
            "methods.use",
            m.use,
            f"no {name} where task.name is 'multi', whose parts' losses are weighed",
        )
        require(
            c.model.kind == "bert" or name in ("ema", "freeze", "unfreeze"),
            "methods.use",
            m.use,
            f"no {name} where model.kind is {c.model.kind!r}",
        )


def _check_weights(c: ConfigDict, used: list[str]) -> None:
    """Of the methods of the first line of README's table."""
    m = c.methods
    a = m.adalora
    require(
        "lora" not in used or "adalora" not in used,
        "methods.use",
        m.use,
        "one of lora and adalora, which would both adapt a layer",
    )
    require(
        a.rank >= a.target_rank,
        "methods.adalora.rank",
        a.rank,
        f"methods.adalora.target_rank ({a.target_rank}) or more",
    )
    require(
        a.end > a.begin,
        "methods.adalora.end",
        a.end,
        f"more than methods.adalora.begin ({a.begin})",
    )
    require(
        "adalora" not in used or not c.train.steps or a.end <= c.train.steps,
        "methods.adalora.end",
        a.end,
        f"train.steps ({c.train.steps}) or less",
    )
    require(
        "adalora" not in used or c.task.name != "multi",
        "methods.use",
        m.use,
        "no adalora where task.name is 'multi', whose parts' losses are weighed",
    )
    require(
        not c.model.adapter or bool({"lora", "adalora", "prefix"} & {*used}),
        "model.adapter",
        c.model.adapter,
        "'' without lora, adalora or prefix in methods.use",
    )
    require(
        "prompt" not in used or c.task.name in PROMPTED,
        "methods.use",
        m.use,
        f"no prompt where task.name is {c.task.name!r}; it may be {', '.join(PROMPTED)}",
    )
    require(
        not c.data.row_length or c.data.row_length >= c.data.max_length + prompt_length(c),
        "data.row_length",
        c.data.row_length,
        f"0, or data.max_length and the prompt's length ({c.data.max_length + prompt_length(c)})",
    )
    unfreeze_rules(m.unfreeze.schedule)


def unfreeze_rules(given: str) -> list[tuple[str, int]]:
    """config.methods.unfreeze.schedule, read."""
    key, accepted = "methods.unfreeze.schedule", '[["REGEX", STEP], ...] in JSON, steps from 0'
    try:
        rules = json.loads(given or "[]")
        ok = all(len(r) == 2 and isinstance(r[0], str) and int(r[1]) == r[1] >= 0 for r in rules)
    except (ValueError, TypeError, KeyError):
        ok = False
    require(ok and isinstance(rules, list), key, given, accepted)
    for pattern, _ in rules:
        require_regex(key, pattern)
    return [(pattern, int(step)) for pattern, step in rules]


def _at(m: ConfigDict, key: str) -> Any:
    group, _, name = key.rpartition(".")
    return m[group][name] if group else m[name]
