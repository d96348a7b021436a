"""After training, and without it: scores of a set, the record of a run."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bert_ft import config as defaults
from bert_ft.config import flat
from bert_ft.data.batches import EvalPlan
from bert_ft.data.encode import Encoded
from bert_ft.data.rows import Rows
from bert_ft.errors import InputError
from bert_ft.evals.report import write_report
from bert_ft.train import optim, phases, record
from bert_ft.train.checksum import params_sha256
from bert_ft.train.evaluate import predictions
from bert_ft.train.gather import refuse_trials
from bert_ft.train.processes import tell
from bert_ft.train.refuse import scored_with
from bert_ft.train.sharding import replicated
from bert_ft.train.start import fitted_for, trained_params
from bert_ft.train.step import Programs, eval_step
from bert_ft.train.system import (
    System,
    assemble,
    rows_of,
    save_model_files,
    trained_on,
)
from bert_ft.train.writer import Writer

Scores = dict[str, dict[str, float]]
SHOWN = 3  # sentences at the end of a run


def eval_plan(system: System, data: Encoded) -> EvalPlan:
    c = system.config
    return EvalPlan(
        data,
        c.eval.batch_size,
        system.row_length,
        c.data.packing == "on",
        system.shards,
        getattr(system.task, "draw", None),
    )


def eval_programs(system: System) -> Programs:
    step = functools.partial(eval_step, model=system.model, task=system.task)
    return Programs(step, replicated(system.mesh), donate=False)


def predict_set(system: System, programs: Programs, params: Any, data: Encoded) -> dict[str, Any]:
    """What the task predicts for each example of a set, in its order."""
    return predictions(
        programs, params, eval_plan(system, data), system.mesh, system.config.data.prefetch
    )


def judge_set(
    system: System, programs: Programs, params: Any, name: str
) -> tuple[dict[str, Any], dict[str, float]]:
    """(what is predicted for a set, {metric: value})."""
    with phases.within("evaluation", f"the evaluation on {name}"):
        predicted = predict_set(system, programs, params, system.sets[name])
        return predicted, system.task.score(predicted, system.sets[name])


def score_set(system: System, programs: Programs, params: Any, name: str) -> dict[str, float]:
    """{metric: value} of a set."""
    return judge_set(system, programs, params, name)[1]


def require_metric(system: System, params: Any) -> None:
    """Raises InputError where config.eval.metric is not among the scores of dev. Those of untrained
    parameters tell, before any time is spent on training."""
    metric = system.config.eval.metric
    if metric:
        scores = score_set(system, eval_programs(system), params, "dev")
        if metric not in scores:
            raise InputError(f"config.eval.metric is {metric!r}; accepted: {', '.join(scores)}")


def tune(
    system: System, params: Any, scores: Scores, programs: Programs, workdir: Path
) -> tuple[System, Scores]:
    """What a task chooses on dev once training is over, such as thresholds (its optional method
    `tune(predicted, data)`), joins what it learnt from the training rows: in the system, in
    WORKDIR/model, and in dev's scores. Without such a method, or a dev set, nothing changes."""
    if not hasattr(system.task, "tune") or "dev" not in system.sets:
        return system, scores
    predicted = predict_set(system, programs, params, system.sets["dev"])
    system = tuned(system, predicted)
    if jax.process_index() == 0:
        save_model_files(system, workdir)
    return system, {**scores, "dev": system.task.score(predicted, system.sets["dev"])}


def tuned(system: System, predicted: Mapping[str, Any]) -> System:
    """The system with what its task chooses by what is predicted for dev."""
    choose = getattr(system.task, "tune", None)
    if choose is None:
        return system
    chosen = choose(predicted, system.sets["dev"])
    sets = {
        name: dataclasses.replace(data, fitted=_with(data.fitted, chosen))
        for name, data in system.sets.items()
    }
    return dataclasses.replace(system, sets=sets, fitted=_with(system.fitted, chosen))


def _with(fitted: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Both, of several parts by part: a set keeps the labels that it alone has, and lacks the parts
    of which it has no rows."""
    both = dict(fitted)
    for key, value in chosen.items():
        if not isinstance(value, Mapping):
            both[key] = value
        elif key in fitted:
            both[key] = _with(fitted[key], value)
    return both


def conclude(
    system: System,
    params: Any,
    step: int,
    scores: Scores,
    costs: Mapping[str, Any],
    programs: Programs,
    workdir: Path,
    writer: Writer,
) -> dict[str, Any] | None:
    """Scores the test set, writes result.json, predictions/test.jsonl and report.html, and says the
    score, a few predictions and where the results are; returns what is predicted for the test set,
    where there is one. `scores` already has dev's; `costs` are those of record.result, of which
    'goodput' is by default that of this start."""
    answers: list[dict[str, Any]] = []
    predicted = None
    if "test" in system.sets:
        predicted, on_test = judge_set(system, programs, params, "test")
        scores = {**scores, "test": on_test}
        writer.scalars(step, {f"test/{k}": v for k, v in on_test.items()})
        if system.config.eval.report:
            try:
                rows = rows_of(system, "test")
            except InputError as e:  # what was trained must not be lost by it
                writer.say(f"WARNING: no predictions are written: {e}")
                if jax.process_index() == 0:
                    (workdir / "predictions" / "test.jsonl").unlink(missing_ok=True)
            else:
                answers = system.task.answers(predicted, system.sets["test"], rows)
                if isinstance(rows, Rows):
                    ids = zip(rows.ids(), answers, strict=True)
                    answers = [a if i is None else {"id": i, **a} for i, a in ids]
    digest = params_sha256(params)
    writer.flush()
    if jax.process_index() != 0:
        return predicted
    costs = {"goodput": {k: round(v, 4) for k, v in phases.goodput().items()}, **costs}
    sizes = {name: data.source_rows for name, data in system.sets.items()}
    if hasattr(system.task, "sizes"):
        for name, own in scores.items():
            of = system.task.sizes(system.sets[name], own)
            sizes |= {f"{name}/{metric}": n for metric, n in of.items()}
    record.write_json(
        workdir / "result.json",
        record.result(system, step, scores, sizes, digest, trained_on(workdir), costs),
    )
    (workdir / record.UNTIL_THEN).unlink(missing_ok=True)
    if answers:
        record.write_lines(workdir / "predictions" / "test.jsonl", answers)
    if system.config.eval.report:
        with record.writing(workdir / "report.html"):
            write_report(workdir, defaults.default().to_dict())
    for line in _last_words(system, scores, answers, workdir):
        writer.say(line)
    return predicted


def _last_words(
    system: System, scores: Scores, answers: list[dict[str, Any]], workdir: Path
) -> list[str]:
    lines = []
    for name, values in scores.items():
        shown = ", ".join(f"{k} {v:.4f}" for k, v in values.items())
        lines.append(f"{name} (n = {system.sets[name].source_rows:,}): {shown}")
    stride = max(len(answers) // SHOWN, 1)
    for answer in answers[::stride][:SHOWN]:
        lines.append("  " + system.task.sentence(answer))
    files = ["result.json"]
    if system.config.eval.report:
        files = ["report.html", *files]
    if answers:  # not an earlier evaluation's
        files.append("predictions/test.jsonl")
    lines.append(f"results: {', '.join(str(workdir / f) for f in files)}")
    return lines


def adding_writer(config: ConfigDict, workdir: Path) -> Writer:
    """One that adds to the record of a run and removes nothing from it."""
    return Writer(
        workdir,
        total_steps=0,  # it has no step to do
        start_step=sys.maxsize,  # a training may be under way: no line is of a step to come
        progress=False,
        active=jax.process_index() == 0,
        config=flat(config),
    )


def evaluate(config: ConfigDict, workdir: Path) -> tuple[System, dict[str, dict[str, Any]]]:
    """--mode=eval: scores a trained workdir on dev and test, and renews its record and report;
    returns what was scored, and {set: what is predicted for it}."""
    refuse_trials(workdir)
    fitted, lines = fitted_for(config, workdir, tell), list[str]()
    system = assemble(
        config, lines.append, sets=("dev", "test"), model_dir=workdir / "model", fitted=fitted
    )
    if not system.sets:
        raise InputError("config.data.dev and config.data.test are both ''; nothing to evaluate on")
    params, step = trained_params(system, workdir, optim.make_optimizer(config, 1), lines.append)
    programs, writer = eval_programs(system), adding_writer(config, workdir)
    try:
        for line in lines:
            writer.say(line)
        scores, predicted = {}, {}
        if "dev" in system.sets:
            predicted["dev"], scores["dev"] = judge_set(system, programs, params, "dev")
        costs = {"goodput": None, **record.old_costs(workdir)}  # its own is none of the training's
        if changed := scored_with(config, workdir):
            costs["scored_with"] = changed
        on_test = conclude(system, params, step, scores, costs, programs, workdir, writer)
        return system, predicted if on_test is None else {**predicted, "test": on_test}
    finally:
        writer.close()
