"""What a config must satisfy; fails before any device or file is touched."""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import default, flat, unknown, wrong_type
from bert_ft.data.mixing import MIXINGS
from bert_ft.errors import InputError
from bert_ft.parts import part_configs

PRESETS = ("replicate", "fsdp", "tensor")
SCHEDULES = ("linear", "cosine", "constant")
DTYPES = ("auto", "float32", "bfloat16")
SWITCH = ("on", "off")
BAD_ROWS = ("stop", "skip")
SCHEMES = ("auto", "IOB2", "IOB1", "BIOES", "BMES", "BILOU", "plain")
DECODERS = ("argmax", "viterbi", "crf")


def _require(ok: bool, key: str, value: Any, accepted: str) -> None:
    if not ok:
        raise InputError(f"config.{key} is {value!r}; accepted: {accepted}")


def _numbers(text: str, least: float) -> bool:
    """Whether these are comma-separated finite numbers of `least` or more."""
    try:
        return all(least <= float(part) < math.inf for part in text.split(","))
    except ValueError:
        return False


def _check_task(c: ConfigDict) -> None:
    """The knobs of one task are refused under another, where they would do nothing."""
    t = c.task
    for key, tasks in (
        ("class_weights", ("classification", "multilabel")),
        ("label_smoothing", ("classification",)),
        ("positive_label", ("classification",)),
        ("range", ("regression", "ordinal")),
    ):
        _require(
            not t[key] or t.name in tasks,
            f"task.{key}",
            t[key],
            f"{type(t[key])()!r} where task.name is {t.name!r} (it is for {', '.join(tasks)})",
        )
    _require(
        t.class_weights in ("", "balanced") or _numbers(t.class_weights, 0),
        "task.class_weights",
        t.class_weights,
        "'', 'balanced', or numbers of 0 or more, comma-separated",
    )
    bounds = t.range.split(",")
    _require(
        not t.range
        or _numbers(t.range, -math.inf)
        and len(bounds) == 2
        and float(bounds[0]) < float(bounds[1]),
        "task.range",
        t.range,
        "'' or 'LOW,HIGH', such as '1,5'",
    )
    _require(bool(t.label_delimiter), "task.label_delimiter", "", "one character or more")
    for key in ("max_question", "max_answer", "n_best"):
        _require(t[key] >= 1, f"task.{key}", t[key], "1 or more")
    for key, allowed in (
        ("scheme", SCHEMES),
        ("decode", DECODERS),
        ("unseen_tags", ("score", "stop")),
        ("cut_spans", ("stop", "widen")),
        ("words", ("tokenizer", "characters")),
    ):
        _require(t[key] in allowed, f"task.{key}", t[key], " or ".join(map(repr, allowed)))
    _require(t.crf_rate > 0, "task.crf_rate", t.crf_rate, "more than 0")
    _require(t.stride >= 0, "task.stride", t.stride, "0 or more")
    _require(0 < t.mask_rate < 1, "task.mask_rate", t.mask_rate, "more than 0 and less than 1")
    for key in ("mask_random", "mask_kept"):
        _require(
            t[key] >= 0 and t.mask_random + t.mask_kept <= 1,
            f"task.{key}",
            t[key],
            "0 or more, and at most 1 with the other of task.mask_random and task.mask_kept",
        )
    length = c.data.max_length
    if t.name == "tagging":
        _require(
            t.stride < length - 2,
            "task.stride",
            t.stride,
            f"less than {length - 2}: data.max_length ({length}) less two special tokens",
        )
    if t.name == "masked":
        _require(not c.data.text_pair, "data.text_pair", c.data.text_pair, "'' for masked words")
        _require(c.model.kind == "bert", "model.kind", c.model.kind, "'bert' for masked words")
    if t.name == "span":
        _require(bool(c.data.text_pair), "data.text_pair", "", "the column of the context")
        room = length - t.max_question - 3
        _require(
            t.stride < room,
            "task.stride",
            t.stride,
            f"less than {room}, the room for the context: data.max_length ({length}) - "
            f"task.max_question ({t.max_question}) - 3",
        )


def _check_multi(c: ConfigDict, mode: str) -> None:
    t = c.task
    for key, allowed in (
        ("weighting", ("fixed", "uncertainty", "gradnorm")),
        ("mixing", MIXINGS),
    ):
        _require(t[key] in allowed, f"task.{key}", t[key], " or ".join(map(repr, allowed)))
    _require(
        not t.weights or _numbers(t.weights, 0),
        "task.weights",
        t.weights,
        "'', or numbers of 0 or more, comma-separated",
    )
    _require(t.alpha == -1 or 0 <= t.alpha <= 1, "task.alpha", t.alpha, "0 to 1, or -1 (off)")
    _require(t.weight_rate > 0, "task.weight_rate", t.weight_rate, "more than 0")
    _require(t.mixing_temperature > 0, "task.mixing_temperature", t.mixing_temperature, "above 0")
    _require(
        t.weighting == "fixed" or not (t.weights or t.alpha >= 0),
        "task.weighting",
        t.weighting,
        "'fixed' where task.weights or task.alpha is given",
    )
    _require(
        t.weighting != "gradnorm" or t.mixing != "turns",
        "task.weighting",
        t.weighting,
        "'fixed' or 'uncertainty' where task.mixing is 'turns': gradnorm compares within a batch",
    )
    if t.name != "multi":
        _require(not t.parts, "task.parts", t.parts, "'' where task.name is not 'multi'")
        return
    for part, own in part_configs(c).items():
        for name in ("multi", "masked"):  # the latter draws its batches, and shares the word table
            _require(own.task.name != name, f"task.parts: {part!r}: task.name", name, "another")
        try:
            check(own, mode)
        except InputError as e:
            raise InputError(f"config.task.parts: {part!r}: {e}") from None


def check(config: ConfigDict, mode: str = "train") -> None:
    """Raises InputError on a value or a combination that can't work; touches no device or file."""
    c, f, usual = config, flat(config), flat(default())
    for key, value in f.items():
        if key not in usual:
            raise InputError(unknown(key))
        if type(value) is not type(usual[key]):  # None passes ml_collections' own check
            raise InputError(wrong_type(key, value, usual[key]))
    for key in usual.keys() - f.keys():
        raise InputError(f"config.{key} is missing; begin with c = config.default()")

    def one_of(key: str, allowed: tuple[str, ...]) -> None:
        _require(f[key] in allowed, key, f[key], " or ".join(map(repr, allowed)))

    def at_least(key: str, low: float, text: str = "") -> None:
        _require(f[key] >= low, key, f[key], text or f"{low} or more")

    one_of("data.packing", SWITCH)
    one_of("data.bad_rows", BAD_ROWS)
    one_of("train.schedule", SCHEDULES)
    one_of("train.dtype", DTYPES)
    one_of("model.head", ("checkpoint", "new"))
    one_of("mesh.preset", PRESETS)
    one_of("model.kind", ("bert", "lstm"))
    one_of("model.pool", ("last", "mean"))
    one_of("task.label_scaling", ("standard", "none"))
    one_of("mesh.backend", ("", "cpu", "gpu", "tpu"))
    for key in (
        *("train.batch_size", "train.accumulate", "eval.batch_size", "log.every_steps"),
        *("data.row_counts", "data.prefetch", "checkpoint.keep", "export.rows"),
        *("mesh.trial", "mesh.fsdp", "mesh.tensor"),
        *("model.layers", "model.heads", "model.hidden_size"),
        *("model.intermediate_size", "model.max_positions"),
    ):
        at_least(key, 1)
    at_least("data.max_length", 3, "3 or more (two special tokens and one of the text)")
    for key in (
        *("train.steps", "train.epochs", "train.learning_rate", "train.weight_decay"),
        *("train.clip_norm", "train.seed", "eval.every_steps", "data.row_length"),
        *("checkpoint.every_steps", "checkpoint.every_seconds"),
    ):
        at_least(key, 0)
    for key in (
        *("model.dropout", "train.warmup", "train.beta1", "train.beta2"),
        "task.label_smoothing",
    ):
        _require(0 <= f[key] < 1, key, f[key], "0 or more and less than 1")
    _require(
        c.mesh.data == -1 or c.mesh.data >= 1,
        "mesh.data",
        c.mesh.data,
        "1 or more, or -1 (what is left)",
    )
    _require(c.mesh.trial == 1, "mesh.trial", c.mesh.trial, "1 (one trial a run)")
    _require(
        c.train.batch_size % c.train.accumulate == 0,
        "train.accumulate",
        c.train.accumulate,
        f"a divisor of train.batch_size ({c.train.batch_size})",
    )
    _require(
        c.model.kind == "lstm" or c.model.hidden_size % c.model.heads == 0,
        "model.heads",
        c.model.heads,
        f"a divisor of model.hidden_size ({c.model.hidden_size})",
    )
    _require(
        c.data.row_length == 0 or c.data.row_length >= c.data.max_length,
        "data.row_length",
        c.data.row_length,
        f"0, or data.max_length ({c.data.max_length}) or more",
    )
    has_dev = bool(c.data.dev) or c.task.name == "multi"  # whose parts are looked at one by one
    _require(
        not (c.eval.metric and not has_dev),
        "eval.metric",
        c.eval.metric,
        "'', or data.dev set to measure it on",
    )
    _require(
        not (c.eval.keep_best and not has_dev),
        "eval.keep_best",
        True,
        "False, or data.dev set to choose on",
    )
    _require(
        c.model.kind == "bert" or not c.model.pretrained,
        "model.pretrained",
        c.model.pretrained,
        "'' where model.kind is 'lstm', which starts from scratch (its tokenizer: model.tokenizer)",
    )
    if c.task.name != "multi":
        _check_task(c)
    _check_multi(c, mode)
    if mode == "train":
        _require(
            c.task.name == "multi" or bool(c.data.train),
            "data.train",
            "",
            "a data URI: files:, tfds:, hf: or pypi:",
        )
        _require(
            c.train.steps > 0 or c.train.epochs > 0,
            "train.epochs",
            c.train.epochs,
            "more than 0, or train.steps > 0",
        )
    if mode == "predict":
        _require(bool(c.predict.input), "predict.input", "", "a JSONL file")
    if mode == "export":
        _require(bool(c.export.to), "export.to", "", "a directory to write")
    if not c.model.pretrained:
        _require(
            bool(c.model.tokenizer),
            "model.tokenizer",
            "",
            "a URI or a vocab.txt where model.pretrained is ''",
        )
