"""What config.methods must satisfy; part of checks.py."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import nearest
from bert_ft.data.augment import steps as augment_steps
from bert_ft.errors import InputError
from bert_ft.task_checks import require

# By what a method wraps, as in README's table.
ASCENTS = ("fgm", "pgd", "freelb")  # each looks for the shift that raises the loss
SHIFTING = (*ASCENTS, "smart")  # they shift word vectors
LOSSES = (*SHIFTING, "rdrop", "focal", "contrastive", "mixup", "distil", "hints", "pseudo", "uda")
UNLABELLED = ("pseudo", "uda")  # they learn from data.unlabelled
BUILT_IN = (
    *("lora", "adalora", "bitfit", "houlsby", "pfeiffer", "prefix", "prompt"),
    "layer_decay",
)
BERT_ONLY = (*SHIFTING, *BUILT_IN, "hints")  # they know its modules
# Of a task that weighs its parts' losses as well; ONE_LOSS are not.
OF_ALL_PARTS = (*SHIFTING, "rdrop")
ONE_LOSS = (*(name for name in LOSSES if name not in OF_ALL_PARTS), "adalora", "noise_scale")
# At most one of each.
RIVALS = (
    ASCENTS,
    ("focal", "mixup"),
    ("contrastive", "mixup"),
    ("distil", "mixup"),
    ("hints", "mixup"),
    ("rdrop", "mixup"),  # whose two passes would be of two mixtures
    ("pseudo", "mixup"),  # which would mix vectors with those of texts without labels …
    ("uda", "mixup"),
    ("pseudo", "contrastive"),  # … and which would compare them
    ("uda", "contrastive"),
    ("lora", "adalora"),
    ("ema", "swa"),
)
# The first stands before the others in methods.use.
BEFORE = (
    ("focal", ("distil", "contrastive", "rdrop"), "which weighs the loss that focal changes"),
    ("unfreeze", ("adalora",), "which sets dropped triplets to 0 whatever is frozen"),
    *(
        (name, ("ema", "swa"), f"which averages what {name} leaves")
        for name in ("unfreeze", "adalora")
    ),
    *((name, ("noise_scale",), f"which compares gradients that {name} makes") for name in ASCENTS),
    ("noise_scale", ("sam",), "whose gradient is not that of the micro-batches"),
)
_BY_EXAMPLE = ("classification", "multilabel", "regression", "ordinal")
_SURE = ("classification", "multilabel", "ordinal")
TASKS_OF = {  # those that have what a method asks of a task
    "smart": (*_BY_EXAMPLE, "tagging", "span", "multi"),
    "rdrop": (*_BY_EXAMPLE, "tagging", "span", "multi"),
    "focal": ("classification", "multilabel"),
    "contrastive": ("classification",),
    "mixup": _BY_EXAMPLE,
    "pseudo": _SURE,
    "uda": _SURE,
    "distil": (*_BY_EXAMPLE, "tagging", "span"),
    "hints": (*_BY_EXAMPLE, "tagging", "span"),
    "prompt": _BY_EXAMPLE,  # their head reads the first token, so soft ones need no label
}
LEAST = {
    1: (
        *("lora.rank", "adalora.target_rank", "houlsby.width", "pfeiffer.width", "prefix.length"),
        "prompt.length",
        *("pgd.steps", "freelb.steps", "smart.steps", "swa.every"),
    ),
    0: (
        *("adalora.begin", "adalora.orthogonality", "prefix.std"),
        *(f"{name}.epsilon" for name in SHIFTING),
        *("fgm.weight", "pgd.weight", "smart.weight", "pgd.step", "freelb.step", "freelb.start"),
        *("rdrop.alpha", "focal.gamma", "mixup.alpha", "sam.rho"),
        *("pseudo.weight", "pseudo.begin", "uda.weight"),
        *("hints.hidden", "hints.attention", "hints.width"),
    ),
}
POSITIVE = ("smart.start", "contrastive.temperature", "distil.temperature", "uda.temperature")
SHARES = (
    *("contrastive.weight", "distil.weight", "swa.start"),
    *("pseudo.threshold", "uda.threshold"),
)
BELOW_1 = ("lora.dropout", "adalora.beta1", "adalora.beta2", "ema.decay", "noise_scale.decay")


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


def check_steps(c: ConfigDict, steps: int) -> None:
    """Part of the above that asks for the steps of a run, which train.epochs do not tell alone."""
    end = c.methods.adalora.end
    accepted = f"{steps}, the steps of the run, or less"
    require("adalora" not in names(c) or end <= steps, "methods.adalora.end", end, accepted)


def _check_knobs(m: ConfigDict, known: list[str]) -> None:
    def at(key: str) -> Any:
        group, _, name = key.rpartition(".")
        return m[group][name] if group else m[name]

    for key in ("also_train", *(f"{name}.targets" for name in known if "targets" in m[name])):
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
            *("hints", c.model.layer_loop == "loop", "model.layer_loop", c.model.layer_loop),
            "'loop' with hints, which reads what each layer computes",
        ),
        (
            *("hints", c.model.remat == "none", "model.remat", c.model.remat),
            "'none' with hints, which keeps what each layer computes",
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
            for name in ("smart", "rdrop")
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
            *("uda", d.augment_share > 0, "data.augment_share", d.augment_share),
            "more than 0 with uda, which compares texts with changed ones",
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
