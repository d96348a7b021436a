"""A run of the main program, and a finished one as a function of texts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_ft.config import cache_dir, default
from bert_ft.data.rows import Rows
from bert_ft.data.sources import open_source
from bert_ft.evals.attack import Score
from bert_ft.train import optim
from bert_ft.train.finish import eval_programs, predict_set
from bert_ft.train.start import trained_params
from bert_ft.train.system import assemble, load_fitted


def train(config: str, workdir: Path, flags: Sequence[str]) -> dict[str, Any]:
    """Runs the main program; its result.json."""
    command = [sys.executable, "-m", "bert_ft.main", f"--config={config}", f"--workdir={workdir}"]
    subprocess.run([*command, *flags], check=True)
    return json.loads((workdir / "result.json").read_text())


def config_of(workdir: Path) -> ConfigDict:
    c = default()
    c.update_from_flattened_dict(json.loads((workdir / "config.json").read_text()))
    return c


def scorer(workdir: Path) -> Score:
    """A run's probabilities of texts, (N, C)."""
    c, fitted = config_of(workdir), load_fitted(workdir)
    system = assemble(c, print, sets=(), model_dir=workdir / "model", fitted=fitted)
    params, _ = trained_params(system, workdir, optim.make_optimizer(c, 1), print)
    programs = eval_programs(system)

    def score(texts: Sequence[str]) -> np.ndarray:
        rows = Rows({c.data.text: list(texts)}, None, "texts")
        data = system.task.encode(rows, system.tokenizer, c.data.max_length, fitted)
        return predict_set(system, programs, params, data)["probabilities"]

    return score


def attacked_texts(workdir: Path, limit: int) -> tuple[list[str], list[int]]:
    """The first `limit` texts of a run's test set, and the columns of their labels."""
    c, labels = config_of(workdir), load_fitted(workdir)["labels"]
    rows = open_source(c.data.test, cache_dir=cache_dir(c), bad_rows=c.data.bad_rows).read()
    texts, gold = rows.column(c.data.text)[:limit], rows.column(c.data.label)[:limit]
    return texts, [labels.index(str(value)) for value in gold]
