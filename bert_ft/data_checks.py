"""What config.data must satisfy about few, changed and oversampled rows; part of checks.py."""

from __future__ import annotations

from ml_collections import ConfigDict

from bert_ft.data.augment import GIVEN, steps
from bert_ft.data.epochs import OVERSAMPLING
from bert_ft.method_checks import names
from bert_ft.parts import part_configs
from bert_ft.task_checks import require

# Tasks whose label is that of the whole text, or moves with its words. An answer's place in a
# context, and which of many texts is the right one, do not survive a change of the words.
AUGMENTED = ("classification", "multilabel", "regression", "ordinal", "tagging", "multi")
WITH_CLASSES = ("classification", "ordinal")


# What is said of a row, beside its texts under the names of their columns.
SAID = ("label", "prediction", "probabilities", "truncated")


def check_columns(c: ConfigDict) -> None:
    for own in part_configs(c).values() if c.task.name == "multi" else [c]:
        t, d = own.task, own.data
        shown = {"data.text": [d.text], "data.text_pair": [d.text_pair]}
        said: tuple[str, ...] = SAID
        if t.name == "recommend":
            said = (*SAID, "rank", "unknown")
            if t.text_columns:  # the text itself is made of them, and not shown
                del shown["data.text"]
            shown |= {f"task.{key}": [t[key]] for key in ("user", "item")}
            shown["task.text_columns"] = [name.strip() for name in t.text_columns.split(",")]
        for key, columns in shown.items():
            for name in columns:
                other = f"another name of the column: predictions say {name!r} of each row too"
                require(name not in said, key, name, other)


def check_training_rows(c: ConfigDict) -> None:
    d, task = c.data, c.task.name
    kinds = {kind for kind, _ in steps(d.augment)}
    require(
        not kinds or task in AUGMENTED,
        "data.augment",
        d.augment,
        f"'' where task.name is {task!r} (it is for {', '.join(AUGMENTED)})",
    )
    # The parts are asked one by one; with uda only the texts without labels change.
    if kinds and task == "multi" and "uda" not in names(c):
        parts = [*part_configs(c).values()]
        read = {tuple(own.data[s] for s in ("train", "dev", "test")) for own in parts}
        tags = {own.data.label for own in parts if own.task.name == "tagging"}
        alone = "'' where parts read rows of their own, or two columns of tags"
        require(len(read) == 1 and len(tags) <= 1, "data.augment", d.augment, alone)
    require(
        task != "tagging" or "paraphrase" not in kinds,
        "data.augment",
        d.augment,
        "kinds other than 'paraphrase' where task.name is 'tagging': tags can't follow it",
    )
    for key, users in GIVEN.items():
        used = sorted(kinds & set(users))
        require(
            bool(d[key]) or not used, f"data.{key}", "", f"what 'data.augment' needs for {used}"
        )
        require(
            not d[key] or bool(used),
            f"data.{key}",
            d[key],
            f"'' where data.augment has none of {', '.join(users)}",
        )
    require(0 <= d.augment_share <= 1, "data.augment_share", d.augment_share, "0 to 1")
    require(d.augment_epochs >= 1, "data.augment_epochs", d.augment_epochs, "1 or more")
    for key in ("augment_seed", "shots", "shots_seed"):
        require(d[key] >= 0, f"data.{key}", d[key], "0 or more")
    require(
        not d.shots or task != "multi",
        "data.shots",
        d.shots,
        "0 where task.name is 'multi'; limit= of each source takes its first rows",
    )
    require(
        d.oversample in OVERSAMPLING,
        "data.oversample",
        d.oversample,
        " or ".join(map(repr, OVERSAMPLING)),
    )
    require(
        d.oversample == "none" or task in WITH_CLASSES,
        "data.oversample",
        d.oversample,
        f"'none' where task.name is {task!r} (it is for {', '.join(WITH_CLASSES)})",
    )
