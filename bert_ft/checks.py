"""What a config must satisfy; fails before any device or file is touched."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ml_collections import ConfigDict

from bert_ft import trials
from bert_ft.config import default, flat, unknown, wrong_type
from bert_ft.data.mixing import MIXINGS
from bert_ft.data_checks import check_columns, check_training_rows
from bert_ft.errors import InputError
from bert_ft.mesh_rules import PRESETS, user_rules
from bert_ft.method_checks import check_methods, names
from bert_ft.model_checks import check_model
from bert_ft.parts import OF_WHOLE, has_dev, part_configs
from bert_ft.space import Dimension, ends, parsed
from bert_ft.task_checks import check_ranking, check_task, require, weights
from bert_ft.varying import Settings, said

REMATS = ("none", "layer", "dots")
OPTIMIZERS = ("adamw", "lion", "lamb", "adafactor")
SCHEDULES = ("linear", "cosine", "constant")
DTYPES = ("auto", "float32", "bfloat16")
SWITCH = ("on", "off")
BAD_ROWS = ("stop", "skip")
# The tasks of parts. Those that rank learn from other examples than they are scored on, the head of
# 'recommend' reads fields of the batch, which carry their part's name here, and 'masked' draws its
# own.
PARTS = ("classification", "multilabel", "regression", "ordinal", "tagging", "span")


def _check_multi(c: ConfigDict, mode: str) -> None:
    t = c.task
    for key, allowed in (
        ("weighting", ("fixed", "uncertainty", "gradnorm")),
        ("mixing", MIXINGS),
    ):
        require(t[key] in allowed, f"task.{key}", t[key], " or ".join(map(repr, allowed)))
    require(
        not t.weights or weights(t.weights),
        "task.weights",
        t.weights,
        "'', or numbers of 0 or more, not all of them 0, comma-separated",
    )
    require(t.alpha == -1 or 0 <= t.alpha <= 1, "task.alpha", t.alpha, "0 to 1, or -1 (off)")
    require(t.weight_rate > 0, "task.weight_rate", t.weight_rate, "more than 0")
    require(t.mixing_temperature > 0, "task.mixing_temperature", t.mixing_temperature, "above 0")
    require(
        t.weighting == "fixed" or not (t.weights or t.alpha >= 0),
        "task.weighting",
        t.weighting,
        "'fixed' where task.weights or task.alpha is given",
    )
    require(
        t.weighting != "gradnorm" or t.mixing != "turns",
        "task.weighting",
        t.weighting,
        "'fixed' or 'uncertainty' where task.mixing is 'turns': gradnorm compares within a batch",
    )
    if t.name != "multi":
        usual = default().task
        for key in OF_WHOLE:
            own = [f", or methods.{m}.{key}" for m in names(c) if key in c.methods[m]]  # namesakes
            accepted = f"{usual[key]!r} where task.name is not 'multi'{''.join(own)}"
            require(t[key] == usual[key], f"task.{key}", t[key], accepted)
        return
    parts = part_configs(c)
    for part, own in parts.items():
        accepted = " or ".join(map(repr, PARTS))
        require(own.task.name in PARTS, f"task.parts: {part!r}: task.name", own.task.name, accepted)
        try:
            check(own, mode)
        except InputError as e:
            raise InputError(f"config.task.parts: {part!r}: {e}") from None
    _check_texts(parts)
    first, d = next(iter(parts)), next(iter(parts.values())).data
    for part, own in parts.items() if c.data.unlabelled else ():
        seen, read = ((x.text, x.text_pair) for x in (own.data, d))
        accepted = f"{read!r}, as of {first!r}: all parts read the texts of data.unlabelled"
        require(seen == read, f"task.parts: {part!r}: data.text, text_pair", seen, accepted)


def _check_texts(parts: Mapping[str, ConfigDict]) -> None:
    """Parts of the same files share the tokens of their rows: those of the first that tags or finds
    spans, else of the first. Tags and spans stand in other windows of a row, so both can't be."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for part, own in parts.items():
        groups.setdefault((own.data.train, own.data.dev, own.data.test), []).append(part)
    for group in groups.values():
        whole = [part for part in group if parts[part].task.name in ("tagging", "span")]
        first = (whole or group)[0]
        for part in whole:
            apart = (
                f"rows of their own for {first!r} and {part!r} (data.train, data.dev, data.test)"
            )
            name = parts[part].task.name
            require(name == parts[first].task.name, f"task.parts: {part!r}: task.name", name, apart)
        pair = parts[first].data.text_pair
        for part in group:
            d, same = parts[part].data, f", as of {first!r}, whose rows are the same"
            where, text = f"task.parts: {part!r}: data.text", parts[first].data.text
            require(d.text == text, where, d.text, f"{text!r}{same}")
            require(d.text_pair == pair, f"{where}_pair", d.text_pair, f"{pair!r}{same}")


def _check_trials(c: ConfigDict, mode: str) -> None:
    t = c.trial
    require(t.halving == 0 or t.halving >= 2, "trial.halving", t.halving, "2 or more, or 0 (off)")
    require(t.samples >= 0, "trial.samples", t.samples, "0 or more")
    if not c.trials:
        for key in ("halving", "space", "samples", "at_once", "width", "share_batches"):
            require(not t[key], f"trial.{key}", t[key], "nothing where config.trials is ''")
        return
    if t.halving:
        without = "0 where there is no data.dev, or eval.every_steps is 0: it goes by scores on dev"
        require(_is_judged(c), "trial.halving", t.halving, without)
    if t.space or t.samples:
        both = "both or neither: so many trials are drawn from the space"
        require(bool(t.space) == bool(t.samples), "trial.samples", t.samples, both)
        places = "0 where trial.halving is 0: draws take the places of those that it stops"
        require(t.halving > 0, "trial.samples", t.samples, places)
        check_space(c, parsed(t.space, "config.trial.space"), "config.trial.space", mode)
    full = f"a multiple of mesh.trial ({c.mesh.trial}), or 0 (all)"
    require(t.at_once >= 0 and t.at_once % c.mesh.trial == 0, "trial.at_once", t.at_once, full)
    shared = "False with trial.samples or trial.at_once, with which trials begin later"
    later = t.samples > 0 or t.at_once > 0
    require(not (t.share_batches and later), "trial.share_batches", True, shared)
    for number, one in enumerate(trials.settings(c)):
        if one:  # else it is the config as it is, which is checked here
            _check_trial(c, one, f"config.trials: trial {number}", mode)
        if t.halving:
            none = f"0 where config.trials has one (trial {number}) that is never scored on dev"
            require(_is_judged(trials.config_of(c, one)), "trial.halving", t.halving, none)


def _is_judged(c: ConfigDict) -> bool:
    """Whether a run is scored on dev while it trains."""
    return has_dev(c) and c.eval.every_steps > 0


def check_space(c: ConfigDict, space: list[Dimension], where: str, mode: str) -> None:
    """Raises InputError where a value at an end of the space can't work."""
    drawn = any(dimension.key == "methods.use" for dimension in space)
    for one in ends(space):
        _check_trial(c, one, where, mode, used=not drawn)


def _check_trial(c: ConfigDict, one: Settings, where: str, mode: str, used: bool = True) -> None:
    """What a trial sets must be good, and read: trials that differ in nothing compare nothing."""
    own = trials.config_of(c, one)
    try:
        check(own, mode)
        steps, read = own.train.steps, "0, or trials that vary train.steps, not train.epochs"
        require("train.epochs" not in one or steps == 0, "train.steps", steps, read)
        for key in one:
            group, _, method = key.rpartition(".")[0].partition(".")
            there = group != "methods" or not method or method in names(own)
            require(
                there or not used,
                "methods.use",
                own.methods.use,
                f"{method} in it where {key} varies",
            )
    except InputError as e:
        raise InputError(f"{where} ({said(one)}): {e}") from None


def check(config: ConfigDict, mode: str = "train") -> None:
    """Raises InputError on a value or a combination that can't work; touches no device or file."""
    c, f, usual = config, flat(config), flat(default())
    for key, value in f.items():
        if key not in usual:
            raise InputError(unknown(key))
        if type(value) is not type(usual[key]):  # None passes ml_collections' own check
            raise InputError(wrong_type(key, value, usual[key]))
        require(not isinstance(value, float) or math.isfinite(value), key, value, "a finite number")
    for key in usual.keys() - f.keys():
        raise InputError(f"config.{key} is missing; begin with c = config.default()")

    def one_of(key: str, allowed: tuple[str, ...]) -> None:
        require(f[key] in allowed, key, f[key], " or ".join(map(repr, allowed)))

    def at_least(key: str, low: float, text: str = "") -> None:
        require(f[key] >= low, key, f[key], text or f"{low} or more")

    one_of("data.packing", SWITCH)
    one_of("data.bad_rows", BAD_ROWS)
    one_of("train.optimizer", OPTIMIZERS)
    one_of("train.schedule", SCHEDULES)
    one_of("train.dtype", DTYPES)
    one_of("model.head", ("checkpoint", "new"))
    one_of("mesh.preset", tuple(PRESETS))
    user_rules(c.mesh.rules)
    one_of("model.remat", REMATS)
    one_of("model.layer_loop", ("loop", "scan"))
    one_of("model.attention", ("auto", "plain", "cudnn", "splash"))
    one_of("model.kind", ("bert", "lstm"))
    one_of("model.pool", ("last", "mean"))
    one_of("task.label_scaling", ("standard", "none"))
    one_of("export.format", ("transformers", "peft"))
    one_of("mesh.backend", ("", "cpu", "gpu", "tpu"))
    for key in (
        *("train.batch_size", "train.accumulate", "eval.batch_size", "log.every_steps"),
        *("data.row_counts", "data.prefetch", "checkpoint.keep", "export.rows"),
        *("mesh.trial", "mesh.fsdp", "mesh.tensor"),
        *("model.layers", "model.heads", "model.hidden_size"),
        *("model.intermediate_size", "model.max_positions"),
    ):
        at_least(key, 1)
    for key in ("factor", "least_s", "first_step_s", "other_s", "join_s", "barrier_s", "silence_s"):
        at_least(f"watchdog.{key}", 1)
    at_least("data.max_length", 3, "3 or more (two special tokens and one of the text)")
    for key in (
        *("train.steps", "train.epochs", "train.learning_rate", "train.weight_decay"),
        *("train.clip_norm", "train.seed", "eval.every_steps", "data.row_length"),
        *("checkpoint.every_steps", "checkpoint.every_seconds", "model.positions"),
        *("train.epsilon", "trial.width"),
    ):
        at_least(key, 0)
    require(c.train.seed < 2**31, "train.seed", c.train.seed, "less than 2^31, as JAX's keys are")
    for key in (
        *("model.dropout", "train.warmup", "train.beta1", "train.beta2"),
        *("task.label_smoothing", "task.id_dropout"),
    ):
        require(0 <= f[key] < 1, key, f[key], "0 or more and less than 1")
    require(
        c.mesh.data == -1 or c.mesh.data >= 1,
        "mesh.data",
        c.mesh.data,
        "1 or more, or -1 (what is left)",
    )
    alone = "1 where config.trials is '': a run alone is one trial"
    require(c.mesh.trial == 1 or bool(c.trials), "mesh.trial", c.mesh.trial, alone)
    require(
        c.train.batch_size % c.train.accumulate == 0,
        "train.accumulate",
        c.train.accumulate,
        f"a divisor of train.batch_size ({c.train.batch_size})",
    )
    require(
        c.model.kind == "lstm" or c.model.hidden_size % c.model.heads == 0,
        "model.heads",
        c.model.heads,
        f"a divisor of model.hidden_size ({c.model.hidden_size})",
    )
    require(
        c.data.row_length == 0 or c.data.row_length >= c.data.max_length,
        "data.row_length",
        c.data.row_length,
        f"0, or data.max_length ({c.data.max_length}) or more",
    )
    require(
        "://" not in c.data.cache_dir,
        "data.cache_dir",
        c.data.cache_dir,
        "a directory on this machine, since arrays in it are memory-mapped",
    )
    require(
        not (c.eval.metric and not has_dev(c)),
        "eval.metric",
        c.eval.metric,
        "'', or data.dev set to measure it on",
    )
    require(
        not (c.eval.keep_best and not has_dev(c)),
        "eval.keep_best",
        True,
        "False, or data.dev set to choose on",
    )
    require(
        not (mode == "train" and c.eval.keep_best and not c.eval.every_steps),
        "eval.every_steps",
        0,
        "more than 0 with eval.keep_best, which chooses among the steps at which dev is scored",
    )
    check_model(c, mode)
    check_methods(c)
    _check_trials(c, mode)
    one_of("preflight.effort", ("full", "quick"))
    one_of("preflight.model", ("", "base", "large"))
    at_least("preflight.slices", 1)
    made_up = mode == "preflight" and c.preflight.model
    if mode == "preflight":
        slices = "TPU slices, comma-separated, as v5e:2x4,v4:2x2x4"
        require(bool(c.preflight.topology), "preflight.topology", "", slices)
        known = c.task.name == "classification" and c.model.kind == "bert"
        alone = "'' where the task is not classification with BERT; give a few rows of your own"
        require(known or not made_up, "preflight.model", c.preflight.model, alone)
    check_training_rows(c)
    if c.task.name != "multi":
        check_task(c)
        check_ranking(c)
        pair = c.data.text_pair
        require(c.task.name != "tagging" or not pair, "data.text_pair", pair, "'' for tagging")
    _check_multi(c, mode)
    check_columns(c)
    if mode == "train" or (mode == "preflight" and not made_up):
        require(
            c.task.name == "multi" or bool(c.data.train),
            "data.train",
            "",
            "a data URI: files:, tfds:, hf: or pypi:",
        )
        require(
            c.train.steps > 0 or c.train.epochs > 0,
            "train.epochs",
            c.train.epochs,
            "more than 0, or train.steps > 0",
        )
    if mode == "predict":
        require(bool(c.predict.input), "predict.input", "", "a file of rows, such as new.jsonl")
    if mode == "export":
        require(bool(c.export.to), "export.to", "", "a directory to write")
    if not c.model.pretrained and not made_up:
        accepted = "a URI or a vocab.txt where model.pretrained is ''"
        require(bool(c.model.tokenizer), "model.tokenizer", "", accepted)
