"""`run_trials(config, workdir)`: the trials of config.trials, many in one program.

Each trial leaves a finished run of its own in WORKDIR/trials/NUMBER, which --mode=predict, export
and eval take like any other; WORKDIR has the record of all of them.
"""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bert_ft import trials
from bert_ft.config import fixed, flat
from bert_ft.errors import EXIT_DONE, InputError, NotFinite
from bert_ft.train import phases
from bert_ft.train.barriers import share
from bert_ft.train.ensemble import Members
from bert_ft.train.finish import adding_writer, evaluate, require_metric
from bert_ft.train.gather import (
    STOPPED,
    gather,
    is_done,
    merged_metrics,
    soup_config,
    together_path,
    trial_dir,
)
from bert_ft.train.group import Group, Prune, make_group, programs_of_trials
from bert_ft.train.held import Held
from bert_ft.train.loop import Voice, open_writer
from bert_ft.train.record import write_json
from bert_ft.train.refuse import check_meta
from bert_ft.train.start import checkpoints, scored
from bert_ft.train.system import assemble, save_model_files
from bert_ft.train.teacher import taught
from bert_ft.train.trial_results import Results
from bert_ft.train.trial_training import Training
from bert_ft.varying import said

OF_RESULT = ("trial.halving", "trial.share_batches")  # the other keys of trial. bear on memory
DRAWN = ("trial.space", "trial.samples", "train.seed")


def run_trials(
    config: ConfigDict, workdir: Path, started: float, prune: Prune | None = None
) -> int:
    """Trains, evaluates and reports all trials; returns the exit code. `prune` is asked at each
    evaluation on dev whether a trial stops there."""
    settings = trials.settings(config)
    numbers_of = programs_of_trials(config, settings)
    say = Voice()
    _require_same(settings, workdir, config)
    several, lost = len(numbers_of) > 1, None
    drawn = config.trial.samples
    waiting = 0 < config.trial.at_once < len(settings)
    say(
        f"trials: {len(settings)}"
        + (f", {drawn} of them drawn from trial.space" if drawn else "")
        + (f", {config.trial.at_once} at a time" if waiting else "")
        + (f" in {len(numbers_of)} programs" if several else "")
    )
    for number, numbers in enumerate(numbers_of):
        folder, tag = workdir / f"group_{number}" if several else workdir, _tag(number, numbers_of)
        if _is_over(workdir, tag, numbers, config):
            continue
        if several:
            say(f"group {number}: {'; '.join(said(settings[k]) for k in numbers)}")
        base = trials.program_config(config, settings[numbers[0]])
        with phases.within("input", "the preparation of data"):
            system = taught(assemble(base, say), say)
        if "train" not in system.sets:
            raise InputError("config.data.train is ''; give a data URI")
        group = make_group(system, config, settings, numbers, tag)
        if (times := len(group.waves)) > 1:
            width = len(group.waves[0])
            say(f"trials: {width} computed at a time, {times} times a step{_wider(group)}")
        try:
            code = _run_group(group, config, folder, workdir, say, started, prune)
        except NotFinite as e:
            if not several:
                raise
            lost = e
            say(f"group {number}: {e}; none of its trials has a score")
            continue
        if code != EXIT_DONE:
            return code
    ended = [is_done(trial_dir(workdir, k)) for k in range(len(settings))]
    if lost is not None and not any(share("trials that ended", ended)[0]):
        raise lost
    if jax.process_index() == 0:
        if several:
            parts = [
                (workdir / f"group_{g}" / "metrics.jsonl", own) for g, own in enumerate(numbers_of)
            ]
            merged_metrics(parts, workdir / "metrics.jsonl")
        _gather(config, workdir, settings)
    return EXIT_DONE


def evaluate_trials(config: ConfigDict, workdir: Path) -> None:
    """--mode=eval: scores each trial again, and what they are worth together, and renews the record
    of all."""
    settings = trials.settings(config)
    _require_same(settings, workdir)
    # Else the scores of what was best so far would be taken for those of a trial's end.
    if not (workdir / "result.json").is_file():
        raise InputError(f"{workdir}: no trial has a score; train it to its end (--mode=train)")
    numbers_of = programs_of_trials(config, settings)
    for number, numbers in enumerate(numbers_of):
        members = None
        for k in numbers:
            at = trial_dir(workdir, k)
            # Of one that its program lost, best/ may be there, of a step before.
            if (at / STOPPED).exists() or not (at / "result.json").exists():
                continue
            own = trials.config_of(config, settings[k])
            system, predicted = evaluate(own, trial_dir(workdir, k))
            members = members or Members(system)
            members.numbers.append(k)
            for name, of_set in predicted.items():
                members.add(name, of_set)
        path = together_path(workdir, _tag(number, numbers_of))
        if members is None or not path.exists() or not config.trial.ensembles:
            continue
        together = json.loads(path.read_text())
        for name, cooked in together["soups"].items():
            own = soup_config(trials.config_of(config, settings[cooked[0]]))
            evaluate(own, workdir / "trials" / name)
        if jax.process_index() == 0:
            write_json(path, {**together, "mean_prediction": members.mean_prediction()})
    if jax.process_index() == 0:
        _gather(config, workdir, settings)


def _gather(config: ConfigDict, workdir: Path, settings: list[trials.Settings]) -> None:
    with closing(adding_writer(config, workdir)) as writer:
        for line in gather(config, workdir, settings):
            writer.say(line)


def _wider(group: Group) -> str:
    """What to do where their number leaves few that divide it, such as a prime one."""
    wide = group.width * group.systems[0].mesh.shape["trial"]
    if 2 * len(group.waves[0]) >= wide or wide > (places := group.waves[-1].stop):
        return ""
    return f"; with --config.trial.at_once={places - places % wide} {wide} at a time"


def _is_over(workdir: Path, tag: str, numbers: list[int], config: ConfigDict) -> bool:
    """Whether a program has nothing left to do, as process 0 sees it: a network file system may
    show its files to others late."""
    over = not config.trial.ensembles or together_path(workdir, tag).exists()
    mine = over and all(is_done(trial_dir(workdir, k)) for k in numbers)
    return bool(share("the end of a program", mine)[0])


def _tag(number: int, programs: list[list[int]]) -> str:
    """Group.tag of a program."""
    return f"_{number}" if len(programs) > 1 else ""


def _require_same(
    settings: list[trials.Settings], workdir: Path, config: ConfigDict | None = None
) -> None:
    """Raises InputError where the workdir is of other trials, or was begun with another `config`:
    what has ended would stand beside what has not."""
    path = workdir / "config.json"
    if not path.exists():
        return
    before = {"trials": "", **json.loads(path.read_text())}
    if trials.made(before) != settings:
        keys = DRAWN if before.get("trial.samples") else ()
        drawn = "".join(f" and {key}={before[key]!r}" for key in keys)
        raise InputError(
            f"config.trials has changed since {workdir} was begun, with {before['trials']!r}"
            f"{drawn}; accepted: the same trials, or another --workdir"
        )
    if config is not None:
        whole = fixed(config).items()
        now = {k: v for k, v in whole if not k.startswith("trial") or k in OF_RESULT}
        old = {k: v for k, v in before.items() if k in now}
        check_meta(f"{workdir} was begun", {"config": old}, {"config": now}, ())


def _run_group(
    group: Group,
    config: ConfigDict,
    folder: Path,
    workdir: Path,
    say: Voice,
    started: float,
    prune: Prune | None,
) -> int:
    with checkpoints(config, folder, say) as saved, ExitStack() as opened:
        with phases.within("restoring", "the start from a checkpoint or a model"):
            system = group.systems[0]
            places = group.places(system.config.eval.metric or system.task.metric)
            held = Held(group, places)
            first, assessed = held.begin(saved, say)
        if first < places.last() and system.config.eval.metric:
            require_metric(system, scored(system, held.whole(0)))
        folders = [trial_dir(workdir, k) for k in group.numbers]
        if jax.process_index() == 0:
            write_json(workdir / "config.json", flat(config))
            for one, own in zip(group.systems, folders, strict=True):
                write_json(own / "config.json", flat(one.config))
                # As in loop.py: what was tuned on dev stays until it is tuned anew.
                if first < places.last() or not (own / "model" / "task.json").is_file():
                    save_model_files(one, own)
        turns = -(-len(group) // group.waves[-1].stop)  # at most, of a place
        writer = opened.enter_context(
            open_writer(config, folder, group.longest * turns, first, say)
        )
        bests = [
            opened.enter_context(checkpoints(s.config, own, say))
            for s, own in zip(group.systems, folders, strict=True)
        ]
        if not first:
            for store in bests:
                store.forget_best()
        results = Results(group, places, held, bests, folders)
        return Training(results, first, assessed, saved, writer, started, prune).run()
