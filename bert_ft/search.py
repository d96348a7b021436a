"""The trials of a sweep, in an Optuna study. The only file that imports Optuna.

WORKDIR/search.db has all that a sweep must know to go on. Trial n is asked for with a sampler whose
seed is f(seed, n, setting), so a sweep that was killed anywhere asks for what it would have asked
for.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_ft.errors import InputError
from bert_ft.evals.merit import lower_is_better, merit
from bert_ft.space import Dimension
from bert_ft.varying import Settings, known

SAMPLERS = ("tpe", "cmaes", "random")
PRUNERS = ("median", "none")
STATES = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}


class Search:
    """A study of `space`, asked for `group` trials at a time, that are told together."""

    def __init__(
        self,
        workdir: Path,
        space: Sequence[Dimension],
        about: Mapping[str, Any],
    ):
        """Opens the study, or makes it. `about`: what it is of, as JSON, in which each key is the
        name of what the user gives: --space, --sampler, --pruner, --group, --sampler_seed, the
        metric, and the config's keys. Raises InputError where that has changed, or Optuna is
        missing."""
        for name in ("optuna", "cmaes"):
            if not importlib.util.find_spec(name):
                raise InputError(
                    f"a sweep needs {name}, which is not installed; pip install 'bert_ft[sweep]'"
                )
        import optuna
        import sqlalchemy

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._about = optuna, space, dict(about)
        self._size, self.metric = about["--group"], about["metric"]
        lower = lower_is_better(self.metric)
        pruner = optuna.pruners.MedianPruner() if about["--pruner"] == "median" else None
        workdir.mkdir(parents=True, exist_ok=True)
        try:
            self._study = optuna.create_study(
                storage=f"sqlite:///{workdir / 'search.db'}",
                study_name="sweep",
                direction="minimize" if lower else "maximize",
                pruner=pruner or optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            self._require_same(workdir)
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as e:
            raise InputError(
                f"{workdir / 'search.db'} can't be read or written: {str(e).splitlines()[0]}; "
                "accepted: what it was, from a copy, or another --workdir"
            ) from e

    def _require_same(self, workdir: Path) -> None:
        before = self._study.user_attrs.get("about")
        now = json.loads(json.dumps(self._about))
        if before is None:
            self._study.set_user_attr("about", now)
            return
        changed = [
            f"{key}: {json.dumps(before.get(key))} -> {json.dumps(now.get(key))}"
            for key in [*now, *(before.keys() - now.keys())]
            if before.get(key) != now.get(key)
        ]
        if changed:
            raise InputError(
                f"the search in {workdir} was begun otherwise: {'; '.join(changed[:4])}; accepted: "
                "as it was, or another --workdir"
            )

    def _numbers(self, group: int) -> range:
        return range(group * self._size, (group + 1) * self._size)

    def is_done(self, group: int) -> bool:
        trials = self._study.get_trials(deepcopy=False)
        last = self._numbers(group).stop
        return len(trials) >= last and all(
            trials[n].state.is_finished() for n in self._numbers(group)
        )

    def ask(self, group: int) -> list[Settings]:
        """What the trials of a group set; those that were asked for before, as they were."""
        return [self._asked(number) for number in self._numbers(group)]

    def _asked(self, number: int) -> Settings:
        trials = self._study.get_trials(deepcopy=False)
        if number < len(trials) and trials[number].state.is_finished():
            return known(trials[number].params, "search.db")
        self._study.sampler = self._sampler(number, "")
        if number < len(trials):  # a kill may have come before all was drawn
            trial = self._optuna.trial.Trial(self._study, trials[number]._trial_id)
        else:
            trial = self._study.ask()
        values = {}
        for one in self._space:
            # Of its own seed, for one that was drawn before a kill is not drawn again.
            self._study.sampler = self._sampler(number, one.key)
            values[one.key] = _suggest(trial, one)
        return known(values, "search.db")

    def _sampler(self, number: int, key: str) -> Any:
        digest = hashlib.sha256(f"{self._about['--sampler_seed']}/{number}{key}".encode()).digest()
        seed, samplers = int.from_bytes(digest[:4], "big"), self._optuna.samplers
        if self._about["--sampler"] == "random":
            return samplers.RandomSampler(seed=seed)
        if self._about["--sampler"] == "cmaes":
            # It draws by itself what CMA-ES has no place for: choices.
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        # Those of a group that are still running count as bad ones, so that not all of it is drawn
        # at the same place.
        return samplers.TPESampler(seed=seed, constant_liar=True)

    def prune(self, numbers: Sequence[Sequence[int]]) -> Callable[[int, int, float | None], bool]:
        """Whether a trial of a group's run stops: `numbers` are those of the study that each one
        stands for. A verdict is kept, for it is asked for again after a restart, when the study has
        the scores of later steps."""

        def verdict(number: int, step: int, score: float | None) -> bool:
            trial = self._trial(number)
            kept = trial.user_attrs.get(f"judged/{step}")
            if kept is None:
                trial.report(math.nan if score is None else score, step)
                kept = bool(trial.should_prune())
                trial.set_user_attr(f"judged/{step}", kept)
            return kept

        return lambda k, step, score: all([verdict(n, step, score) for n in numbers[k]])

    def _trial(self, number: int) -> Any:
        return self._optuna.trial.Trial(
            self._study, self._study.get_trials(deepcopy=False)[number]._trial_id
        )

    def tell(self, number: int, score: float | None, stop: Mapping[str, Any] | None) -> None:
        """How a trial ended: its score on dev (None: undefined), or where it was stopped."""
        state = self._optuna.trial.TrialState
        if self._study.get_trials(deepcopy=False)[number].state.is_finished():
            return
        if stop is not None:
            trial = self._trial(number)
            if f"judged/{stop['step']}" not in trial.user_attrs and stop["score"] is not None:
                trial.report(stop["score"], stop["step"])
            self._study.tell(number, state=state.PRUNED)
        elif score is None:
            # A sampler learns nothing from failures, so it counts as the worst there is.
            self._trial(number).set_user_attr("unscored", True)
            self._study.tell(number, state=state.PRUNED)
        else:
            self._study.tell(number, score)

    def trials(self) -> list[dict[str, Any]]:
        """All so far, by number. 'step' is that of a score at which a trial was stopped."""
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            values = trial.intermediate_values
            last = max(values, default=None)
            unscored = "unscored" in trial.user_attrs
            stopped = trial.state.name == "PRUNED" and not unscored
            value = values[last] if stopped and last is not None else trial.value
            value = None if unscored else value
            found.append(
                {
                    "number": trial.number,
                    "group": trial.number // self._size,
                    "state": "no score" if unscored else STATES[trial.state.name],
                    "value": None if value is None or math.isnan(value) else value,
                    "step": last if stopped else None,
                    "settings": known(trial.params, "search.db"),
                }
            )
        return found

    def best(self) -> dict[str, Any] | None:
        """The trial that ended best, the first of those that tie."""
        ended = [one for one in self.trials() if one["state"] == "complete"]
        return max(ended, key=lambda one: merit(self.metric, one["value"])) if ended else None


def _suggest(trial: Any, one: Dimension) -> Any:
    if one.kind == "choice":
        return trial.suggest_categorical(one.key, one.values)
    if one.kind == "int":
        return trial.suggest_int(one.key, *one.values)
    return trial.suggest_float(one.key, *one.values, log=one.kind == "log")
