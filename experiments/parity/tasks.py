"""The tasks whose scores are compared: a config of ours, whose rows the Trainer reads as well.

What is compared is the training, so what else would favour us is as in the Trainer: tags are read
by argmax, not by Viterbi under the scheme's constraints, and ratings are regressed as they stand,
not standardised.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_ft.data.rows import Rows
from bert_ft.data.sources import source_of

SAME = (
    *("batch_size", "epochs", "learning_rate", "warmup", "schedule", "weight_decay", "clip_norm"),
    *("beta1", "beta2", "epsilon"),
)


@dataclasses.dataclass(frozen=True)
class Task:
    """`config` FILE:variant, `overrides` as on the command line; `score` SET/METRIC of both."""

    config: str
    score: str
    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def command(self) -> list[str]:
        """The flags of python -m bert_ft.main, but for the workdir and the seed."""
        flags = [f"--config.{key}={value}" for key, value in self.overrides]
        return [f"--config={self.config}", *flags]

    def read_config(self) -> ConfigDict:
        path, _, variant = self.config.partition(":")
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        c = module.get_config(variant)
        for key, value in self.overrides:
            c.update_from_flattened_dict({key: value})
        return c

    def settings(self) -> dict[str, Any]:
        """Everything that bears on the Trainer's score."""
        c = self.read_config()
        data = {s: c.data[s] for s in ("train", "dev", "test", "text", "text_pair", "label")}
        return {
            "task": c.task.name,
            "sampling": SAMPLING,
            "head": "ours",
            "pretrained": c.model.pretrained,
            "max_length": c.data.max_length,
            **{name: c.train[name] for name in SAME},
            "data": json.dumps(data),
        }


def divided(uri: str) -> tuple[tuple[str, str], ...]:
    """Overrides: the rows of a training file as train and dev."""
    joint = "&" if "?" in uri else "?"
    return tuple((f"data.{s}", f"{uri}{joint}split={s}") for s in ("train", "dev"))


SAMPLING = "random"  # the Trainer's: grouping by length changes the batches
GLUE = "../shared/data/glue_{}"
ARGMAX = ("task.decode", "argmax")
SHORT = ("train.epochs", 3.0)
SLOTS = (("task.name", "tagging"), ("task.stride", 16), ("data.label", "tags"), ARGMAX, SHORT)
TASKS = {
    "ATIS, intents": Task("configs/customer_service.py:intent", "test/accuracy", (SHORT,)),
    "ATIS, slots": Task("configs/customer_service.py:intent", "test/f1", SLOTS),
    "Banking77": Task("configs/customer_service.py:banking77", "test/accuracy"),
    "NCBI disease": Task("configs/medical.py", "test/f1", (ARGMAX,)),
    "PhraseBank, 50 % agree": Task("configs/opinion.py:agree50", "test/f1_macro"),
    "MRPC": Task(f"configs/glue.py:mrpc={GLUE.format('mrpc')}", "test/f1"),
    "STS-B": Task(
        f"configs/glue.py:stsb={GLUE.format('stsb')}",
        "dev/pearson",
        (("task.label_scaling", "none"),),
    ),
}


def arguments(about: str, out: str) -> argparse.Namespace:
    """--task, --seed and --out of a program's command line. `about`: its docstring; `out`: what
    --out is."""
    p = argparse.ArgumentParser(description=about.split("\n\n")[0])
    p.add_argument("--task", choices=list(TASKS), required=True)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, required=True, help=out)
    return p.parse_args()


def read(config: ConfigDict, split: str) -> Rows:
    """The rows of a split, read and filtered as ours are."""
    uri = config.data[split]
    return source_of(config, uri).read()
