"""A task's name in a config -> its class."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from bert_ft.config import nearest
from bert_ft.errors import InputError
from bert_ft.parts import part_configs
from bert_ft.tasks.classification import Classification
from bert_ft.tasks.cross_encoder import CrossEncoder
from bert_ft.tasks.masked import MaskedWords
from bert_ft.tasks.matching import Matching
from bert_ft.tasks.multi import MultiTask
from bert_ft.tasks.multilabel import MultiLabel
from bert_ft.tasks.ordinal import Ordinal
from bert_ft.tasks.recommend import Recommend
from bert_ft.tasks.regression import Regression
from bert_ft.tasks.span import SpanAnswers
from bert_ft.tasks.tagging import Tagging

ALL = (
    *(Classification, MultiLabel, Regression, Ordinal, SpanAnswers, Tagging),
    *(Matching, CrossEncoder, Recommend, MaskedWords),
)
TASKS = {task.name: task for task in ALL}


def make_task(config: ConfigDict) -> Any:
    """The task that config.task.name says; raises InputError with the names there are."""
    name = config.task.name
    if name == MultiTask.name:
        parts = part_configs(config)
        return MultiTask(config, {part: (make_task(own), own) for part, own in parts.items()})
    if name not in TASKS:
        known = [*TASKS, MultiTask.name]
        raise InputError(
            f"config.task.name is {name!r}; accepted: {', '.join(sorted(known))}"
            f"{nearest(name, known)}"
        )
    return TASKS[name](config)
