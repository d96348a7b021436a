"""What config.methods must satisfy; part of checks.py."""

from __future__ import annotations

import re
from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import nearest
from bert_ft.errors import InputError
from bert_ft.task_checks import require

# Methods that wrap the loss or its gradient.
ASCENTS = ("fgm", "pgd", "freelb")  # one of them: each looks for the shift that raises the loss
SHIFTING = (*ASCENTS, "smart")  # they shift word vectors
LOSSES = (*SHIFTING, "rdrop", "focal", "contrastive", "mixup", "distil")
_BY_EXAMPLE = ("classification", "multilabel", "regression", "ordinal")
TASKS_OF = {  # those that have what a method asks of a task
    "smart": (*_BY_EXAMPLE, "tagging", "span"),
    "rdrop": (*_BY_EXAMPLE, "tagging", "span"),
    "focal": ("classification", "multilabel"),
    "contrastive": ("classification",),
    "mixup": _BY_EXAMPLE,
    "distil": _BY_EXAMPLE,
}


def names(config: ConfigDict) -> list[str]:
    """The methods that config.methods.use lists."""
    return [name.strip() for name in config.methods.use.split(",") if name.strip()]


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
    for key in ("also_train", "lora.targets"):
        require_regex(f"methods.{key}", _at(m, key))
    for key, low in (
        *(("lora.rank", 1), ("pgd.steps", 1), ("freelb.steps", 1), ("smart.steps", 1)),
        *((f"{name}.epsilon", 0) for name in SHIFTING),
        *((f"{name}.weight", 0) for name in ("fgm", "pgd", "smart")),
        *(("pgd.step", 0), ("freelb.step", 0), ("freelb.start", 0)),
        *(("rdrop.alpha", 0), ("focal.gamma", 0), ("mixup.alpha", 0)),
    ):
        require(_at(m, key) >= low, f"methods.{key}", _at(m, key), f"{low} or more")
    for key in ("smart.start", "contrastive.temperature", "distil.temperature"):
        require(_at(m, key) > 0, f"methods.{key}", _at(m, key), "more than 0")
    for key in ("contrastive.weight", "distil.weight"):
        require(0 <= _at(m, key) <= 1, f"methods.{key}", _at(m, key), "0 to 1")
    for key in ("lora.dropout", "ema.decay"):
        require(0 <= _at(m, key) < 1, f"methods.{key}", _at(m, key), "0 or more and less than 1")
    layers = c.model.layers_from
    require(
        not layers
        or bool(c.model.pretrained)
        and all(part.strip().isdecimal() for part in layers.split(",")),
        "model.layers_from",
        layers,
        "numbers of layers of model.pretrained from 0, comma-separated, or ''",
    )
    for name in used:
        require(
            name not in LOSSES or c.task.name != "multi",
            "methods.use",
            m.use,
            f"no {name} where task.name is 'multi', whose parts' losses are weighed",
        )
        require(
            c.model.kind == "bert" or (name not in SHIFTING and name != "lora"),
            "methods.use",
            m.use,
            f"no {name} where model.kind is {c.model.kind!r}",
        )
        tasks = TASKS_OF.get(name, (c.task.name,))
        require(
            c.task.name in tasks,
            "methods.use",
            m.use,
            f"no {name} where task.name is {c.task.name!r} (it is for {', '.join(tasks)})",
        )
    _check_losses(c, used)


def _check_losses(c: ConfigDict, used: list[str]) -> None:
    """What methods that wrap the loss ask of the rest of the config, and of each other."""
    use = c.methods.use
    for rivals in (ASCENTS, ("focal", "mixup"), ("contrastive", "mixup"), ("distil", "mixup")):
        both = [name for name in used if name in rivals]
        require(len(both) <= 1, "methods.use", use, f"one of {', '.join(rivals)}")
    require(
        "distil" not in used or bool(c.methods.distil.teacher),
        "methods.distil.teacher",
        "",
        "the workdir of a finished run",
    )
    require(
        "rdrop" not in used or c.model.dropout > 0,
        "model.dropout",
        c.model.dropout,
        "more than 0 with rdrop, whose two passes differ in nothing else",
    )
    require(
        "focal" not in used or not c.task.label_smoothing,
        "task.label_smoothing",
        c.task.label_smoothing,
        "0 with focal, which is of one label's likelihood",
    )
    require(
        "contrastive" not in used or c.train.accumulate == 1,
        "train.accumulate",
        c.train.accumulate,
        "1 with contrastive, whose pairs are those of the whole batch",
    )


def _at(m: ConfigDict, key: str) -> Any:
    group, _, name = key.rpartition(".")
    return m[group][name] if group else m[name]
