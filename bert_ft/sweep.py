"""python -m bert_ft.sweep --config=FILE --workdir=DIR --space=JSON [--trials=N] [--config.a.b=… …]

Searches a space of settings by the score on dev: asks for a group of trials, trains them as one
run of config.trials in DIR/groups/N, tells the scores, and so on. The same command goes on where it
was stopped. With eval.every_steps a trial that falls behind is stopped early.
"""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from bert_ft import errors, paths, trials
from bert_ft import main as program
from bert_ft.checks import check, check_space
from bert_ft.command_line import parse, prepare_host
from bert_ft.config import fixed, flat
from bert_ft.errors import EXIT_DONE, InputError, NotFinite
from bert_ft.evals.search_page import search_page
from bert_ft.parts import has_dev
from bert_ft.search import PRUNERS, SAMPLERS, Search
from bert_ft.space import Dimension, parsed
from bert_ft.varying import Settings, said

SPACE = flags.DEFINE_string("space", None, "what is searched, as JSON: see bert_ft/space.py")
SAMPLER = flags.DEFINE_string("sampler", "tpe", "tpe, cmaes or random")
PRUNER = flags.DEFINE_string("pruner", "median", "median or none; needs config.eval.every_steps")
TRIALS = flags.DEFINE_integer("trials", 32, "trials in all")
GROUP = flags.DEFINE_integer("group", 8, "trials at a time, one run of config.trials")
SEED = flags.DEFINE_integer("sampler_seed", 0, "of the sampler")

STAND_IN = "[{}]"  # for the trials of a group: the config as it is


def sweep(
    config: ConfigDict, workdir: Path, space: Sequence[Dimension], search: Search, command: str
) -> int:
    """Runs the groups that are left; returns the exit code. `command`: the one that trains with
    what was found, but for that."""
    for group in range(TRIALS.value // GROUP.value):
        if search.is_done(group):
            continue
        settings = search.ask(group)
        first = group * len(settings)
        wanted = list[Settings]()
        for i, one in enumerate(settings):
            if fault := _fault(config, one):
                _say(f"trial {first + i} is not trained: {fault}")
                search.tell(first + i, None, None)
            elif one not in wanted:
                wanted.append(one)
        if not wanted:
            continue
        numbers = [[first + i for i, s in enumerate(settings) if s == one] for one in wanted]
        _say(f"group {group}: " + "; ".join(map(said, wanted)))
        c = copy.deepcopy(config)
        with c.unlocked():
            c.trials = json.dumps(wanted)
            _fill_mesh(c, wanted)
        check(c)
        folder = workdir / "groups" / str(group)
        code = _train(c, folder, search.prune(numbers))
        if code not in (EXIT_DONE, errors.EXIT_NOT_FINITE):
            return code
        for k, (score, stop) in enumerate(_outcomes(folder, search.metric, len(wanted))):
            for number in numbers[k]:
                search.tell(number, score, stop)
        _record(workdir, space, search, command)
    best = _record(workdir, space, search, command)
    if best is None:
        _say("no trial has ended with a score")
    else:
        _say(f"best: trial {best['number']}, dev {search.metric} {best['value']:.4f}")
        print(_command(command, best["settings"]), flush=True)
    _say(f"results: {workdir / 'search.html'}, {workdir / 'search.json'}")
    return EXIT_DONE


def _fault(config: ConfigDict, settings: Settings) -> str:
    """Why a trial can't be trained, '' where it can: values that go with the config one by one may
    not go together."""
    try:
        check(trials.config_of(config, settings))
    except InputError as e:
        return str(e)
    return ""


def _fill_mesh(config: ConfigDict, wanted: Sequence[Settings]) -> None:
    """A smaller mesh.trial where a group lacks trials, or needs several programs, so that they
    don't fill it. What is left of the devices goes to the examples."""
    from bert_ft.train.group import programs_of_trials

    axis, most, config.mesh.trial = config.mesh.trial, config.trial.at_once, 1
    counts = [len(numbers) for numbers in programs_of_trials(config, list(wanted))]
    config.mesh.trial = math.gcd(axis, *(min(n, most or n) for n in counts))
    if config.mesh.trial < axis:
        config.mesh.data = -1
        _say(f"config.mesh.trial is {axis}, which {max(counts)} trials of a program don't fill; "
             f"for this group it is {config.mesh.trial}")  # fmt: skip


def _train(config: ConfigDict, folder: Path, prune: Any) -> int:
    """One run of trials. All losses being lost is how a group may end, too."""
    import jax

    from bert_ft.train.guard import guarded
    from bert_ft.train.trial_loop import run_trials

    started = time.monotonic()
    try:
        with guarded(config, folder, "train", None, started):
            if jax.process_count() > 1:
                raise InputError("a sweep works in one process; in several, config.trials do")
            return run_trials(config, folder, started, prune)
    except NotFinite as e:
        _say(f"{e}: no trial of this group has a score")
        return errors.EXIT_NOT_FINITE


def _outcomes(folder: Path, metric: str, count: int) -> list[tuple[float | None, Any]]:
    """(score on dev, where it was stopped) of each trial of a run. One that was lost counts as
    stopped: a sampler learns nothing from failures."""
    path = folder / "result.json"
    if not path.exists():
        return [(None, {"step": 0, "score": None})] * count
    result = json.loads(path.read_text())
    scores = result["eval"].get(f"dev/{metric}", {}).get("per_trial", [None] * count)
    return [(v, one["stopped"]) for v, one in zip(scores, result["trials"], strict=True)]


def _record(
    workdir: Path, space: Sequence[Dimension], search: Search, command: str
) -> dict[str, Any] | None:
    """search.json and search.html; the best trial so far."""
    best = search.best()
    found = {
        "metric": f"dev/{search.metric}",
        "space": {one.key: {one.kind: list(one.values)} for one in space},
        "best": best,
        "command": _command(command, best["settings"]) if best else None,
        "trials": search.trials(),
    }
    paths.write_whole(workdir / "search.json", json.dumps(found, indent=1) + "\n")
    paths.write_whole(workdir / "search.html", search_page(workdir.name, found))
    return best


def _command(command: str, settings: Settings) -> str:
    return shlex.join([*shlex.split(command), *(f"--config.{k}={v}" for k, v in settings.items())])


def _given(argv: Sequence[str], config: ConfigDict, workdir: Path) -> str:
    """The command of a run of the same config, but for what is of trials, in WORKDIR/best."""
    words, before = list[str](), ""
    for word in argv[1:]:
        bare = before.startswith("-") and "=" not in before  # so its value is the next word
        own = re.match("--?(no)?config", word)
        if own or (bare and words[-1:] == [before] and not word.startswith("--")):
            words.append(word)
        before = word
    usual = flat(config)
    alone = {k: v for k, v in flat(trials.config_of(config, {})).items() if v != usual[k]}
    words += [f"--config.{k}={v}" for k, v in alone.items()]
    return shlex.join(["python", "-m", "bert_ft.main", *words, f"--workdir={workdir / 'best'}"])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _checked(config: ConfigDict, workdir: Path) -> list[Dimension]:
    """The space. Raises InputError on flags that can't work, before anything is made."""
    if program.MODE.value != "train" or program.COORDINATOR.value:
        raise InputError("a sweep trains, in one process; accepted: no --mode, no --coordinator")
    if not SPACE.value:
        raise InputError('--space is missing; accepted: {"learning_rate": {"log": [1e-5, 1e-3]}}')
    for flag, allowed in ((SAMPLER, SAMPLERS), (PRUNER, PRUNERS)):
        if flag.value not in allowed:
            accepted = " or ".join(map(repr, allowed))
            raise InputError(f"--{flag.name}={flag.value}; accepted: {accepted}")
    if GROUP.value < 1 or TRIALS.value < 1 or TRIALS.value % GROUP.value:
        raise InputError(
            f"--trials={TRIALS.value} with --group={GROUP.value}; "
            f"accepted: 1 or more each, and whole groups, such as --group={max(TRIALS.value, 1)}"
        )
    places = min(GROUP.value, config.trial.at_once or GROUP.value)
    if places % config.mesh.trial:
        raise InputError(
            f"config.mesh.trial is {config.mesh.trial}; accepted: a divisor of {places}, the "
            "trials at once (--group, config.trial.at_once)"
        )
    if config.trials or config.trial.samples:
        raise InputError("config.trials or trial.samples is given; accepted: '' and 0, for --space")
    if not has_dev(config):
        raise InputError("config.data.dev is ''; accepted: a data URI, whose score is searched for")
    if paths.is_remote(str(workdir)):
        raise InputError(f"--workdir={workdir}; accepted: a local one, for the search's database")
    space = parsed(SPACE.value, "--space")
    check_space(config, space, "--space", "train")
    return space


def main(argv: list[str]) -> int:
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(__doc__)
        print("\n".join(f"  --{f.name}  {flags.FLAGS[f.name].help}" for f in
                        (SPACE, SAMPLER, PRUNER, TRIALS, GROUP, SEED)))  # fmt: skip
        return EXIT_DONE
    try:
        config, workdir = parse(argv, program.CONFIG, program.WORKDIR, program.MODE, STAND_IN)
        space = _checked(config, workdir)
        prepare_host(config)
        from bert_ft.tasks.registry import make_task

        about = {
            "--space": {one.key: {one.kind: list(one.values)} for one in space},
            "--sampler": SAMPLER.value,
            "--pruner": PRUNER.value if config.eval.every_steps else "none",
            "--group": GROUP.value,
            "--sampler_seed": SEED.value,
            "metric": config.eval.metric or make_task(config).metric,
            "eval.every_steps": config.eval.every_steps,
            **fixed(config),
        }
        paths.require_writable(workdir, "--workdir")
        search = Search(workdir, space, about)
        return sweep(config, workdir, space, search, _given(argv, config, workdir))
    except errors.KNOWN as e:
        return errors.told(e)


if __name__ == "__main__":
    errors.run(main)
