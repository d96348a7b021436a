"""Active learning: which rows of a pool to label next, by what a trained run says of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.encode import Encoded
from bert_ft.data.prompts import with_places
from bert_ft.data.rows import Rows
from bert_ft.data.sources import joined_words, source_of
from bert_ft.errors import InputError
from bert_ft.evals import acquisition
from bert_ft.method_checks import prompt_length
from bert_ft.models.bert import Batch
from bert_ft.tasks.registry import make_task
from bert_ft.train import optim
from bert_ft.train.evaluate import predictions
from bert_ft.train.finish import eval_plan
from bert_ft.train.gather import chosen
from bert_ft.train.sharding import replicated
from bert_ft.train.start import fitted_for, trained_params
from bert_ft.train.step import Programs, eval_step
from bert_ft.train.system import System, assemble, texts_of, uris
from bert_ft.train.training_set import few

WAYS = ("margin", "entropy", "badge", "k_centre", "random")
ADDED = ("score", "rank")  # columns


@dataclasses.dataclass(frozen=True)
class Asked:
    """What select.py is asked for: `n` rows of the URI `pool`, `by` one of WAYS; the 'mean' or
    'max' `over` a row's words, of tagging, or labels, where it may have several."""

    pool: str
    n: int
    by: str
    over: str = "mean"
    seed: int = 0


def select(
    config: ConfigDict, workdir: Path, asked: Asked, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The chosen rows whole, the first to be labelled first, with their score (of 'badge' the
    gradient embedding's length, of 'k_centre' the distance to the nearest row that is labelled or
    chosen before) and rank, from 1. Rows whose texts the training set has, or an earlier row of the
    pool, are left out. Raises InputError where too few are left."""
    if asked.by != "random":  # a run of trials has a training set for each
        config, workdir = chosen(config, workdir, "predict.trial")
    task = make_task(config)
    _possible(task, asked)
    groups = getattr(task, "groups", [])  # of several parts: those on the same rows
    texts = [c for c in (config.data.text, config.data.text_pair) if c]
    texts = groups[0].texts() if groups else texts
    [train] = uris(config, task, "train")
    text = texts_of(task)[0]
    pool, labelled = _read(config, asked.pool, text, say), _labelled(config, train, text)
    for name in ADDED:
        if name in pool.columns:
            raise InputError(f"{asked.pool} has a column {name!r}, which is to be added; rename it")
    known = set(_keys(labelled, texts))
    own = _keys(pool, texts)
    first = {key: i for i, key in reversed([*enumerate(own)])}
    fresh = sorted(i for key, i in first.items() if key not in known)
    trained = sum(key in known for key in own)
    say(
        f"{asked.pool}: {len(pool):,} rows; left out: {trained:,} of the training set and "
        f"{len(pool) - trained - len(fresh):,} that the pool has earlier"
    )
    if len(fresh) < asked.n:
        raise InputError(
            f"--n={asked.n}; accepted: at most {len(fresh)}, the rows of {asked.pool} that are not "
            "in the training set"
        )
    pool = pool.take(fresh)
    places, scores = _chosen(config, workdir, task, asked, pool, labelled, say)
    rows = [{name: _plain(v[i]) for name, v in pool.columns.items()} for i in places.tolist()]
    return [
        {**row, "score": round(float(score), 6), "rank": rank}
        for rank, (row, score) in enumerate(zip(rows, scores, strict=True), 1)
    ]


def _possible(task: Any, asked: Asked) -> None:
    if asked.by not in WAYS:
        raise InputError(f"--by={asked.by}; accepted: {', '.join(WAYS)}")
    if asked.over not in ("mean", "max"):
        raise InputError(f"--over={asked.over}; accepted: mean, max")
    if asked.n < 1 or asked.seed < 0:
        raise InputError(f"--n={asked.n} --seed={asked.seed}; accepted: 1 or more, 0 or more")
    if len(getattr(task, "groups", [])) > 1:
        raise InputError(
            "config.task.parts has parts with training sets of their own, and a pool is labelled "
            "for one of them; accepted: parts on the same rows, or a run of one task"
        )
    ways = (*getattr(task, "chosen_by", ()), "random")
    if asked.by not in ways:
        raise InputError(
            f"--by={asked.by} where config.task.name is {task.name!r}; accepted: {', '.join(ways)}"
        )


def _read(config: ConfigDict, uri: str, text: str, say: Callable[[str], None]) -> Rows:
    rows = source_of(config, uri, text=text).read()
    for line in rows.skipped:
        say(f"skipped {line}")
    return rows


def _labelled(config: ConfigDict, uri: str, text: str) -> Rows:
    """The rows that the run was trained on."""
    return few(config, source_of(config, uri, text=text)).read()


def _keys(rows: Rows, texts: list[str]) -> list[tuple[str, ...]]:
    """As a task reads a row's texts, of which words in a list are one."""
    columns = ([joined_words(_plain(v)) for v in rows.column(c)] for c in texts)
    return list(zip(*columns, strict=True))


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _chosen(
    config: ConfigDict,
    workdir: Path,
    task: Any,
    asked: Asked,
    pool: Rows,
    labelled: Rows,
    say: Callable[[str], None],
) -> tuple[np.ndarray, np.ndarray]:
    """(places in the pool, their scores)."""
    if asked.by == "random":
        # As few shots are: what is chosen for a larger n begins with what is for a smaller one.
        scores = np.random.default_rng(asked.seed).random(len(pool))
        places = acquisition.highest(scores, asked.n)
        return places, scores[places]
    fitted = fitted_for(config, workdir, say)
    system = assemble(config, say, sets=(), model_dir=workdir / "model", fitted=fitted)
    params, step = trained_params(system, workdir, optim.make_optimizer(config, 1), say)
    say(f"{len(pool):,} rows scored by step {step:,}")
    believe = _believer(system, params, asked.by)
    data, believed = believe(pool)
    if asked.by == "badge" and "gradient" in believed:  # of words
        flat = believed["gradient"].reshape(len(data), -1)
        gradients = acquisition.sum_by_row(flat, data.row, len(pool))
        return acquisition.badge_of(gradients, asked.n, asked.seed)
    if asked.by == "badge":
        found = believed["probabilities"], believed["pooled"]
        return acquisition.badge(*found, asked.n, asked.seed)
    if asked.by == "k_centre":
        points, centres = _points(data, believed), _points(*believe(labelled))
        return acquisition.k_centre(points, centres, asked.n, asked.seed)
    scores = getattr(acquisition, asked.by)(believed["probabilities"])
    if "owned" in data.fields:  # words
        scores = acquisition.by_row(scores, data.fields["owned"], data.row, len(pool), asked.over)
    elif scores.ndim == 2:  # of labels
        scores = getattr(np, asked.over)(scores, axis=1)
    places = acquisition.highest(scores, asked.n)
    return places, scores[places]


def _points(data: Encoded, believed: Mapping[str, np.ndarray]) -> np.ndarray:
    """(rows, H): what the last layer reads of each row, the mean over its words where it reads
    words."""
    if "row_words" not in data.fields:
        return believed["pooled"]
    words = np.maximum(data.fields["row_words"], 1)[:, None]
    return acquisition.sum_by_row(believed["pooled"] / words, data.row, data.source_rows)


# What each way reads of a task's beliefs; the rest is neither computed nor kept.
_READ = {
    "margin": ("probabilities",),
    "entropy": ("probabilities",),
    "k_centre": ("pooled",),
}


class _Believing:
    """The task, as eval_step asks it, of what the way `by` reads. BADGE reads the gradient where a
    task has it, else its two factors."""

    def __init__(self, task: Any, by: str):
        self.task, self.by = task, by

    def predict(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        found = self.task.beliefs(outputs, batch)
        badge = ("gradient",) if "gradient" in found else ("probabilities", "pooled")
        return {name: found[name] for name in _READ.get(self.by, badge)}


def _believer(
    system: System, params: Any, by: str
) -> Callable[[Rows], tuple[Encoded, dict[str, np.ndarray]]]:
    step = functools.partial(eval_step, model=system.model, task=_Believing(system.task, by))

    def believe(rows: Rows) -> tuple[Encoded, dict[str, np.ndarray]]:
        # Labels, where the rows have any, play no part.
        columns = {k: v for k, v in rows.columns.items() if k != system.config.data.label}
        rows = dataclasses.replace(rows, columns=columns)
        length = system.config.data.max_length
        data = system.task.encode(rows, system.tokenizer, length, system.fitted)
        data = with_places(data, prompt_length(system.config))
        programs = Programs(step, replicated(system.mesh), donate=False)
        return data, predictions(programs, params, eval_plan(system, data), system.mesh)

    return believe
