"""What config.task must satisfy, task by task; part of checks.py."""

from __future__ import annotations

import math
from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import nearest
from bert_ft.errors import InputError

# Of tasks/registry.py, which needs JAX. A test holds the two together.
TASKS = (
    *("classification", "multilabel", "regression", "ordinal", "span", "tagging"),
    *("matching", "cross_encoder", "recommend", "masked"),
)
SCHEMES = ("auto", "IOB2", "IOB1", "BIOES", "BMES", "BILOU", "plain")
DECODERS = ("argmax", "viterbi", "crf")


def require(ok: bool, key: str, value: Any, accepted: str) -> None:
    """Raises the InputError that names the key, its value and what is accepted."""
    if not ok:
        raise InputError(f"config.{key} is {value!r}; accepted: {accepted}")


def numbers(text: str, least: float) -> bool:
    """Whether these are comma-separated finite numbers of `least` or more."""
    try:
        return all(least <= float(part) < math.inf for part in text.split(","))
    except ValueError:
        return False


def weights(text: str) -> bool:
    """Whether these are comma-separated finite numbers of 0 or more, not all of them 0."""
    return numbers(text, 0) and any(float(part) > 0 for part in text.split(","))


def check_task(c: ConfigDict) -> None:
    """Knobs that are off by default are refused under a task that does not read them."""
    t, known = c.task, [*TASKS, "multi"]
    accepted = f"{', '.join(sorted(known))}{nearest(t.name, known)}"
    require(t.name in TASKS, "task.name", t.name, accepted)
    for key, tasks in (
        ("label_names", ("classification",)),
        ("class_weights", ("classification", "multilabel")),
        ("label_smoothing", ("classification",)),
        ("positive_label", ("classification",)),
        ("range", ("regression", "ordinal", "recommend")),
        *((key, ("recommend",)) for key in ("user", "item", "text_columns")),
        *((key, ("recommend",)) for key in ("categorical", "numeric")),
    ):
        require(
            not t[key] or t.name in tasks,
            f"task.{key}",
            t[key],
            f"{type(t[key])()!r} where task.name is {t.name!r} (it is for {', '.join(tasks)})",
        )
    require(
        t.class_weights in ("", "balanced", "effective") or weights(t.class_weights),
        "task.class_weights",
        t.class_weights,
        "'', 'balanced', 'effective', or numbers of 0 or more, comma-separated, one of them more "
        "than 0",
    )
    require(0 <= t.class_beta < 1, "task.class_beta", t.class_beta, "0 or more and less than 1")
    bounds = t.range.split(",")
    require(
        not t.range
        or numbers(t.range, -math.inf)
        and len(bounds) == 2
        and float(bounds[0]) < float(bounds[1]),
        "task.range",
        t.range,
        "'' or 'LOW,HIGH', such as '1,5'",
    )
    require(bool(t.label_delimiter), "task.label_delimiter", "", "one character or more")
    for key in (
        *("max_question", "max_answer", "n_best"),
        *("pairs", "table_width", "fusion_width"),
    ):
        require(t[key] >= 1, f"task.{key}", t[key], "1 or more")
    for key, allowed in (
        ("scheme", SCHEMES),
        ("decode", DECODERS),
        ("unseen_labels", ("stop", "score")),
        ("unseen_tags", ("score", "stop")),
        ("cut_spans", ("stop", "widen")),
        ("objective", ("rating", "bpr")),
        ("worse", ("rated", "unseen")),
        ("words", ("tokenizer", "characters")),
    ):
        require(t[key] in allowed, f"task.{key}", t[key], " or ".join(map(repr, allowed)))
    for key in ("crf_rate", "table_rate"):
        require(t[key] > 0, f"task.{key}", t[key], "more than 0")
    for key in ("user", "item"):
        require(
            t.objective == "rating" or bool(t[key]),
            f"task.{key}",
            "",
            f"the column of the {key} where task.objective is {t.objective!r}",
        )
    require(t.stride >= 0, "task.stride", t.stride, "0 or more")
    require(0 < t.mask_rate < 1, "task.mask_rate", t.mask_rate, "more than 0 and less than 1")
    for key in ("mask_random", "mask_kept"):
        require(
            t[key] >= 0 and t.mask_random + t.mask_kept <= 1,
            f"task.{key}",
            t[key],
            "0 or more, and at most 1 with the other of task.mask_random and task.mask_kept",
        )
    length = c.data.max_length
    if t.name == "tagging":
        require(
            t.stride < length - 2,
            "task.stride",
            t.stride,
            f"less than {length - 2}: data.max_length ({length}) less two special tokens",
        )
    if t.name == "masked":
        require(not c.data.text_pair, "data.text_pair", c.data.text_pair, "'' for masked words")
        require(c.model.kind == "bert", "model.kind", c.model.kind, "'bert' for masked words")
    if t.name == "span":
        require(bool(c.data.text_pair), "data.text_pair", "", "the column of the context")
        room = length - t.max_question - 3
        require(
            t.stride < room,
            "task.stride",
            t.stride,
            f"less than {room}, the room for the context: data.max_length ({length}) - "
            f"task.max_question ({t.max_question}) - 3",
        )


def check_ranking(c: ConfigDict) -> None:
    """The knobs of 'matching' and 'cross_encoder'."""
    t = c.task
    for key, tasks in (
        ("data.candidates", ("matching",)),
        ("task.symmetric", ("matching",)),
        ("task.negatives", ("matching", "cross_encoder")),
        ("task.multiple_choice", ("cross_encoder",)),
    ):
        group, name = key.split(".")
        value = c[group][name]
        require(
            not value or t.name in tasks,
            key,
            value,
            f"{type(value)()!r} where task.name is {t.name!r} (it is for {', '.join(tasks)})",
        )
    require(t.pooling in ("mean", "cls"), "task.pooling", t.pooling, "'mean' or 'cls'")
    require(t.temperature > 0, "task.temperature", t.temperature, "more than 0")
    require(t.top_k >= 1, "task.top_k", t.top_k, "1 or more")
    require(t.negatives >= 0, "task.negatives", t.negatives, "0 or more")
    if t.name not in ("matching", "cross_encoder"):
        return
    require(bool(c.data.text_pair), "data.text_pair", "", "the column of the right answer")
    if t.name == "cross_encoder":
        require(
            t.negatives >= 1, "task.negatives", 0, "1 or more where task.name is 'cross_encoder'"
        )
        return
    require(
        c.train.accumulate == 1,
        "train.accumulate",
        c.train.accumulate,
        "1 where task.name is 'matching': its wrong answers are those of the whole batch, which "
        "micro-batches would make fewer",
    )
    require(
        c.train.batch_size >= 2,
        "train.batch_size",
        c.train.batch_size,
        "2 or more where task.name is 'matching': the other answers of a batch are the wrong ones",
    )
