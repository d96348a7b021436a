"""`run_trials(config, workdir)`: the trials of config.trials, many in one program.

Each trial leaves a finished run of its own in WORKDIR/trials/NUMBER, which --mode=predict, export
and eval take like any other; WORKDIR has the record of all of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bert_ft import trials
from bert_ft.config import flat
from bert_ft.errors import EXIT_DONE, InputError
from bert_ft.tasks.registry import make_task
from bert_ft.train import phases
from bert_ft.train.finish import evaluate, require_metric
from bert_ft.train.gather import gather, merged_metrics, trial_dir
from bert_ft.train.group import (
    Group,
    initial_trials,
    make_group,
)
from bert_ft.train.loop import open_writer
from bert_ft.train.record import write_json
from bert_ft.train.start import checkpoints, scored
from bert_ft.train.system import assemble, save_model_files
from bert_ft.train.teacher import taught
from bert_ft.train.trial_training import Training


def run_trials(config: ConfigDict, workdir: Path, started: float) -> int:
    """Trains, evaluates and reports all trials; returns the exit code."""
    settings = trials.settings(config)
    numbers_of = trials.groups(config, settings, _of_task(make_task(config)))
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if jax.process_index() == 0:
            print(line, file=sys.stderr, flush=True)

    _require_same(settings, workdir)
    several = len(numbers_of) > 1
    say(f"trials: {len(settings)}" + (f" in {len(numbers_of)} programs" if several else ""))
    for number, numbers in enumerate(numbers_of):
        folder = workdir / f"group_{number}" if several else workdir
        if all((trial_dir(workdir, k) / "result.json").exists() for k in numbers):
            continue
        if several:
            say(f"group {number}: {'; '.join(trials.said(settings[k]) for k in numbers)}")
        base = trials.config_of(config, settings[numbers[0]])
        with base.unlocked():
            base.train.seed = config.train.seed
        with phases.within("input", "the preparation of data"):
            system = taught(assemble(base, say), say)
        if "train" not in system.sets:
            raise InputError("config.data.train is ''; give a data URI")
        group = make_group(system, settings, numbers)
        code = _run_group(group, config, folder, workdir, lines, say, started)
        if code != EXIT_DONE:
            return code
    if jax.process_index() == 0:
        if several:
            parts = [
                (workdir / f"group_{g}" / "metrics.jsonl", own) for g, own in enumerate(numbers_of)
            ]
            merged_metrics(parts, workdir / "metrics.jsonl")
        for line in gather(config, workdir, settings):
            print(line, file=sys.stderr, flush=True)
    return EXIT_DONE


def evaluate_trials(config: ConfigDict, workdir: Path) -> None:
    """--mode=eval: scores each trial again, and renews the record of all."""
    settings = trials.settings(config)
    _require_same(settings, workdir)
    for number, one in enumerate(settings):
        evaluate(trials.config_of(config, one), trial_dir(workdir, number))
    for line in gather(config, workdir, settings) if jax.process_index() == 0 else ():
        print(line, file=sys.stderr, flush=True)


def _require_same(settings: list[trials.Settings], workdir: Path) -> None:
    """Raises InputError where the workdir is of other trials."""
    path = workdir / "config.json"
    if path.exists():
        before = json.loads(path.read_text()).get("trials", "")
        if trials.parsed(before) != settings:
            raise InputError(
                f"config.trials has changed since {workdir} was begun, with {before!r}; accepted: "
                "the same trials, or another --workdir"
            )


def _of_task(task: Any) -> list[str]:
    named = list(getattr(task, "knobs", {}))
    return [*named, "task.alpha"] if "task.weights" in named else named


def _run_group(
    group: Group,
    config: ConfigDict,
    folder: Path,
    workdir: Path,
    lines: list[str],
    say: Callable[[str], None],
    started: float,
) -> int:
    with checkpoints(config, folder, say) as saved, ExitStack() as opened:
        with phases.within("restoring", "the start from a checkpoint or a model"):
            made, first = initial_trials(group, saved, say)
        if first < group.longest:
            system = group.systems[0]
            require_metric(system, scored(system, made[0].state))
        folders = [trial_dir(workdir, k) for k in group.numbers]
        if jax.process_index() == 0:
            write_json(workdir / "config.json", flat(config))
            for system, own in zip(group.systems, folders, strict=True):
                write_json(own / "config.json", flat(system.config))
                save_model_files(system, own)
        writer = open_writer(config, folder, group.longest, first, lines)
        opened.callback(writer.close)
        bests = [
            opened.enter_context(checkpoints(s.config, own, say))
            for s, own in zip(group.systems, folders, strict=True)
        ]
        return Training(group, made, first, saved, bests, writer, folders, started).run()
