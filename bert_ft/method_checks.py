"""What config.methods must satisfy; part of checks.py."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import default, nearest
from bert_ft.data.augment import steps as augment_steps
from bert_ft.errors import InputError
from bert_ft.method_tables import (
    BEFORE,
    BELOW_1,
    BERT_ONLY,
    LEAST,
    ONE_LOSS,
    POSITIVE,
    RIVALS,
    SHARES,
    TASKS_OF,
    UNLABELLED,
)
from bert_ft.task_checks import require


def names(config: ConfigDict) -> list[str]:
    """The methods that config.methods.use lists."""
    return [name.strip() for name in config.methods.use.split(",") if name.strip()]


def rate_rules(given: str) -> list[tuple[str, float]]:
    """config.methods.rates.rules, read: (regex, factor) in order. Raises InputError."""
    accepted = '[["REGEX", FACTOR], ...] with factors of 0 or more'
    return _rules("methods.rates.rules", given, (int, float), accepted)


def unfreeze_rules(given: str) -> list[tuple[str, int]]:
    """config.methods.unfreeze.schedule, read: (regex, step) in order. Raises InputError."""
    accepted = '[["REGEX", STEP], ...] with steps from 0'
    return _rules("methods.unfreeze.schedule", given, (int,), accepted)


def _rules(key: str, given: str, types: tuple, accepted: str) -> list[tuple[str, Any]]:
    """Pairs of a regex and a number of 0 or more, in JSON; '' is none."""
    try:
        pairs = json.loads(given) if given else []
    except ValueError as e:
        raise InputError(f"config.{key} is no JSON ({e}); accepted: {accepted}") from None
    require(isinstance(pairs, list), key, given, accepted)
    for pair in pairs:
        good = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
        good = good and type(pair[1]) in types and 0 <= pair[1] < math.inf
        require(good, key, given, accepted)
        require_regex(key, pair[0])
    return [(pattern, number) for pattern, number in pairs]


def prompt_length(config: ConfigDict) -> int:
    """Soft tokens in every sequence."""
    return config.methods.prompt.length if "prompt" in names(config) else 0


def prefix_length(config: ConfigDict) -> int:
    """Positions that a prefix takes before each sequence's own."""
    return config.methods.prefix.length if "prefix" in names(config) else 0


def unlabelled_places(config: ConfigDict) -> tuple[int, int]:
    """(examples of a micro-batch, those of them, the last, that have no label). Raises InputError
    where data.unlabelled_share is not that of whole examples, of pairs where there are pairs."""
    t, share = config.train, config.data.unlabelled_share
    micro = t.batch_size // t.accumulate
    free = round(micro * share)
    whole = abs(free - micro * share) < 1e-6 and 0 < free < micro
    paired = "uda" in names(config)
    of = f"of the {micro} examples of a {'micro-' if t.accumulate > 1 else ''}batch"
    require(
        whole and (not paired or free % 2 == 0),
        "data.unlabelled_share",
        share,
        f"a share, more than 0 and less than 1, that is {'an even' if paired else 'a whole'} "
        f"number {of}",
    )
    return micro, free


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
    _check_knobs(m, known)
    for rivals in RIVALS:
        both = [name for name in used if name in rivals]
        require(len(both) <= 1, "methods.use", m.use, f"one of {', '.join(rivals)}")
    for first, others, why in BEFORE:
        for name in others:
            ok = not {first, name} <= {*used} or used.index(first) < used.index(name)
            require(ok, "methods.use", m.use, f"{first} before {name}, {why}")
    task, kind = c.task.name, c.model.kind
    for name in used:
        tasks = TASKS_OF.get(name, (task,))
        for right, why in (
            (
                task != "multi" or name not in ONE_LOSS,
                "where task.name is 'multi', whose parts' losses are weighed",
            ),
            (kind == "bert" or name not in BERT_ONLY, f"where model.kind is {kind!r}"),
            (task in tasks, f"where task.name is {task!r} (it is for {', '.join(tasks)})"),
        ):
            require(right, "methods.use", m.use, f"no {name} {why}")
    _check_combinations(c, used)
    _check_optimizer(c)


def check_steps(c: ConfigDict, steps: int) -> None:
    """Part of the above that asks for the steps of a run, which train.epochs do not tell alone:
    what begins or ends by a step does so within them."""
    m, used = c.methods, names(c)
    accepted = (
        f"0 where eval.every_steps ({c.eval.every_steps}) is not less than {steps}, the steps"
    )
    ok = not c.trial.halving or c.eval.every_steps < steps
    require(ok, "trial.halving", c.trial.halving, f"{accepted} of a trial, which is never judged")
    accepted = f"{steps}, the steps of the run, or less"
    ok = "adalora" not in used or m.adalora.end <= steps
    require(ok, "methods.adalora.end", m.adalora.end, accepted)
    first = max(round(m.swa.start * steps), 1)
    accepted = (
        f"{steps - first} or less: the run has {steps} steps, and the average begins after {first}"
    )
    ok = "swa" not in used or first == steps or first + m.swa.every <= steps
    require(ok, "methods.swa.every", m.swa.every, accepted)
    # The weight is still 0 at the step `begin`, counted from 0.
    last = max(steps - 1, 1)
    accepted = f"less than {last}: the run has {steps} steps, and the weight is more than 0 later"
    ok = "pseudo" not in used or m.pseudo.begin < last
    require(ok, "methods.pseudo.begin", m.pseudo.begin, accepted)
    for pattern, step in unfreeze_rules(m.unfreeze.schedule) if "unfreeze" in used else ():
        rule = json.dumps([pattern, step])
        accepted = f"a step less than {steps}, the steps of the run"
        require(step < steps, "methods.unfreeze.schedule", rule, accepted)


def _check_knobs(m: ConfigDict, known: list[str]) -> None:
    def at(key: str) -> Any:
        group, _, name = key.rpartition(".")
        return m[group][name] if group else m[name]

    require_regex("methods.also_train", m.also_train)
    for key in (f"{name}.targets" for name in known if "targets" in m[name]):
        require(bool(at(key)), f"methods.{key}", "", "a regex; '.' finds all")
        require_regex(f"methods.{key}", at(key))
    for low, keys in LEAST.items():
        for key in keys:
            require(at(key) >= low, f"methods.{key}", at(key), f"{low} or more")
    for key in POSITIVE:
        require(at(key) > 0, f"methods.{key}", at(key), "more than 0")
    for key in SHARES:
        require(0 <= at(key) <= 1, f"methods.{key}", at(key), "0 to 1")
    for key in BELOW_1:
        require(0 <= at(key) < 1, f"methods.{key}", at(key), "0 or more and less than 1")
    layers = m.hints.layers
    fits = not layers or re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", layers)
    require(bool(fits), "methods.hints.layers", layers, "'', or layers from 0, comma-separated")
    decay, a = m.layer_decay.decay, m.adalora
    require(0 < decay <= 1, "methods.layer_decay.decay", decay, "more than 0, at most 1")
    least = f"methods.adalora.target_rank ({a.target_rank}) or more"
    require(a.rank >= a.target_rank, "methods.adalora.rank", a.rank, least)
    later = f"more than methods.adalora.begin ({a.begin})"
    require(a.end > a.begin, "methods.adalora.end", a.end, later)
    rate_rules(m.rates.rules)
    unfreeze_rules(m.unfreeze.schedule)


def _check_combinations(c: ConfigDict, used: list[str]) -> None:
    """What methods ask of the rest of the config, and of each other."""
    t, d, use, p = c.train, c.data, c.methods.use, c.methods.pseudo
    teacher = c.methods.distil.teacher
    if t.steps:
        check_steps(c, t.steps)
    for name, ok, key, value, accepted in (
        *(
            (name, bool(teacher), "methods.distil.teacher", "", "the workdir of a finished run")
            for name in ("distil", "hints")
        ),
        (
            *("distil", c.task.name != "tagging" or c.task.decode != "crf", "task.decode", "crf"),
            "'viterbi' or 'argmax' with distil, whose teacher tells each word's label alone",
        ),
        (
            *("rdrop", c.model.dropout > 0, "model.dropout", c.model.dropout),
            "more than 0 with rdrop, whose two passes differ in nothing else",
        ),
        (
            *("focal", not c.task.label_smoothing, "task.label_smoothing", c.task.label_smoothing),
            "0 with focal, which is of one label's likelihood",
        ),
        (
            *("contrastive", t.accumulate == 1, "train.accumulate", t.accumulate),
            "1 with contrastive, whose pairs are those of the whole batch",
        ),
        (
            *("noise_scale", t.accumulate > 1, "train.accumulate", t.accumulate),
            "2 or more where methods.use names noise_scale, which compares micro-batches",
        ),
        (
            *("sam", c.task.name != "multi" or c.task.weighting != "gradnorm", "methods.use", use),
            "no sam where task.weighting is 'gradnorm', whose weights follow another gradient",
        ),
        *(
            (
                *(name, c.task.weighting != "gradnorm", "methods.use", use),
                f"no {name} where task.weighting is 'gradnorm', which compares the losses alone",
            )
            for name in ("smart", "rdrop", "focal", "contrastive", "distil", "mixup", *UNLABELLED)
        ),
        (
            *("pseudo", p.end >= p.begin, "methods.pseudo.end", p.end),
            f"methods.pseudo.begin ({p.begin}) or more",
        ),
        (
            *("uda", any(s > 0 for _, s in augment_steps(d.augment)), "data.augment", d.augment),
            "KIND:STRENGTH,... of more than 0 with uda, which compares texts with changed ones",
        ),
        (
            *("uda", d.augment_share == 1, "data.augment_share", d.augment_share),
            "1 with uda, where the others would be compared with themselves",
        ),
        (
            *("unfreeze", bool(c.methods.unfreeze.schedule), "methods.unfreeze.schedule", ""),
            '[["REGEX", STEP], ...] where methods.use names unfreeze',
        ),
        (
            *("rates", bool(rate_rules(c.methods.rates.rules)), "methods.rates.rules", ""),
            '[["REGEX", FACTOR], ...] where methods.use names rates',
        ),
    ):
        require(name not in used or ok, key, value, accepted)
    require(
        not c.model.adapter or bool({"lora", "adalora", "prefix"} & {*used}),
        "model.adapter",
        c.model.adapter,
        "'' without lora, adalora or prefix in methods.use",
    )
    taught = ", ".join(name for name in used if name in UNLABELLED)
    if taught:
        accepted = f"a data URI of texts, from which {taught} of methods.use learns"
        require(bool(d.unlabelled), "data.unlabelled", "", accepted)
        unlabelled_places(c)
    accepted = f"'' where methods.use has none of {', '.join(UNLABELLED)}"
    require(bool(taught) or not d.unlabelled, "data.unlabelled", d.unlabelled, accepted)
    length = d.max_length + prompt_length(c)
    require(
        not d.row_length or d.row_length >= length,
        "data.row_length",
        d.row_length,
        f"0, or data.max_length and the prompt's length ({length}) or more",
    )


# The numbers of train that an optimizer has no place for.
_UNREAD = {"adafactor": ("beta1", "beta2", "epsilon"), "lion": ("epsilon",)}


def _check_optimizer(c: ConfigDict) -> None:
    usual = default().train
    for key in _UNREAD.get(c.train.optimizer, ()):
        accepted = f"{usual[key]!r}, the default: train.optimizer {c.train.optimizer!r} has none"
        require(c.train[key] == usual[key], f"train.{key}", c.train[key], accepted)
