"""A run of the main program; a finished one as a function of texts, and what it trained."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bert_ft.config import default
from bert_ft.data.prompts import with_places
from bert_ft.data.rows import Rows
from bert_ft.data.sources import source_of
from bert_ft.evals.attack import Score
from bert_ft.method_checks import prompt_length
from bert_ft.models.hf import flatten
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


def encoder_sizes(workdir: Path) -> tuple[int, int]:
    """(parameters of a run's encoder that are trained, all of them), a method's own included."""
    c, fitted = config_of(workdir), load_fitted(workdir)
    system = assemble(c, print, sets=(), model_dir=workdir / "model", fitted=fitted)
    parts = jax.eval_shape(lambda p: system.weights.begin(p, 0), system.abstract_params)
    trained, frozen = (
        sum(leaf.size for path, leaf in flatten(part).items() if path.startswith("encoder/"))
        for part in parts
    )
    return trained, trained + frozen


def scorer(workdir: Path) -> Score:
    """A run's probabilities of texts, (N, C)."""
    c, fitted = config_of(workdir), load_fitted(workdir)
    system = assemble(c, print, sets=(), model_dir=workdir / "model", fitted=fitted)
    params, _ = trained_params(system, workdir, optim.make_optimizer(c, 1), print)
    programs = eval_programs(system)

    def score(texts: Sequence[str]) -> np.ndarray:
        rows = Rows({c.data.text: list(texts)}, None, "texts")
        data = system.task.encode(rows, system.tokenizer, c.data.max_length, fitted)
        data = with_places(data, prompt_length(c))
        return predict_set(system, programs, params, data)["probabilities"]

    return score


def attacked_texts(workdir: Path, limit: int) -> tuple[list[str], list[int]]:
    """`limit` texts of a run's test set, or all of fewer, and the columns of their labels; spread
    evenly over the set, which may be sorted by label."""
    c, labels = config_of(workdir), load_fitted(workdir)["labels"]
    rows = source_of(c, c.data.test).read()
    count = min(limit, len(rows))
    few = rows.take([i * len(rows) // count for i in range(count)])
    return few.column(c.data.text), [labels.index(str(v)) for v in few.column(c.data.label)]
