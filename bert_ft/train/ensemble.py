"""What several trials of one program are worth together: their averaged predictions, and the
averages of their weights (model soups, Wortsman et al. 2022).

Where methods train factors of the weights, as LoRA does, the weights are averaged, not the factors:
the product of two means is not the mean of the products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_ft.config import flat
from bert_ft.evals.merit import defined, merit
from bert_ft.train.finish import conclude, eval_programs, score_set, tune, tuned
from bert_ft.train.gather import soup_config
from bert_ft.train.group import Group
from bert_ft.train.record import SPEED, write_json
from bert_ft.train.start import checkpoints, meta
from bert_ft.train.system import System, save_model_files
from bert_ft.train.writer import Writer

UNIFORM, GREEDY = "soup_uniform", "soup_greedy"  # their folders, and their names for export.trial


@dataclasses.dataclass
class Members:
    """The trials that went to their end, by their places in the group; `dev`: the metric of each on
    dev, where there is one."""

    system: System
    numbers: list[int] = dataclasses.field(default_factory=list)
    dev: dict[int, float] = dataclasses.field(default_factory=dict)
    _sums: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)

    @property
    def wanted(self) -> bool:
        """Whether predictions are averaged: some have no mean."""
        asked = self.system.config.trial.ensembles
        return asked and getattr(self.system.task, "predictions_have_a_mean", False)

    def add(self, name: str, predicted: Mapping[str, np.ndarray]) -> None:
        """What one of them predicts for a set."""
        if self.wanted:
            sums = self._sums.setdefault(name, {})
            for key, values in predicted.items():
                sums[key] = sums.get(key, 0.0) + np.asarray(values, np.float64)

    def mean_prediction(self) -> dict[str, dict[str, float | None]] | None:
        """{set: scores} of the mean of their predictions; None where there is none. A score that is
        undefined is None."""
        if not self._sums or len(self.numbers) < 2:
            return None
        count, system = len(self.numbers), self.system
        means = {
            name: {key: (total / count).astype(np.float32) for key, total in sums.items()}
            for name, sums in self._sums.items()
        }
        if "dev" in means:
            system = tuned(system, means["dev"])
        found = {name: system.task.score(mean, system.sets[name]) for name, mean in means.items()}
        return {name: {k: defined(v) for k, v in own.items()} for name, own in found.items()}


def mean_of(members: Sequence[int], kept: Callable[[int], Any]) -> Any:
    """The mean of what is kept of some trials, leaf by leaf, in float32; one is read at a time."""
    total = kept(members[0])
    for k in members[1:]:
        total = jax.tree.map(jax.numpy.add, total, kept(k))
    return _divided(total, len(members))


def _divided(total: Any, count: int) -> Any:
    return jax.tree.map(lambda x: x / count, total)


def greedy(
    members: Sequence[int],
    scores: Mapping[int, float],
    kept: Callable[[int], Any],
    dev: Callable[[Any], float],
) -> list[int]:
    """The members of the greedy soup, by rising `scores` the best first: a trial stays in where the
    mean with it is no worse on dev (Wortsman et al. 2022, recipe 1)."""
    order = sorted(members, key=lambda k: -scores[k])
    chosen, best = order[:1], scores[order[0]]
    total = kept(order[0])
    for k in order[1:]:
        more = jax.tree.map(jax.numpy.add, total, kept(k))
        value = dev(_divided(more, len(chosen) + 1))
        if value >= best:
            chosen, best, total = [*chosen, k], value, more
    return chosen


def together(
    group: Group,
    members: Members,
    kept: Callable[[int], Any],
    full: Callable[[int, Any, int], Any],
    digests: Mapping[int, str],
    workdir: Path,
) -> dict[str, Any]:
    """What `gather` reads: scores of the mean prediction, members of the soups. `kept` reads what
    was kept of a trial, `full` makes what the model is given of that, at a step. Soups are cooked
    of what is trained: frozen weights that differ (`digests`), those of models begun anew, have no
    mean that anything was trained beside. Nor has LoRA beside what cannot be merged (a prefix)."""
    numbers, weights = members.numbers, group.systems[0].weights
    soups: dict[str, list[int]] = {}
    cookable = not weights.factors or all(m.merges for m in weights.methods)
    if cookable and len(numbers) > 1 and len({digests[k] for k in numbers}) == 1:
        soups = _soups(group, members, kept, full, digests[numbers[0]], workdir)
    return {"mean_prediction": members.mean_prediction(), "soups": soups}


def _soups(
    group: Group,
    members: Members,
    kept: Callable[[int], Any],
    full: Callable[[int, Any, int], Any],
    digest: str,
    workdir: Path,
) -> dict[str, list[int]]:
    """Leaves a finished run of the uniform soup, and with a dev set of the greedy one, in
    WORKDIR/trials; {its name: the numbers of its members}."""
    numbers, first = members.numbers, members.numbers[0]
    system = group.systems[first]
    if system.weights.factors:
        kept, full, digest = _merging(group, kept, full), lambda k, soup, step: soup, ""
        system = dataclasses.replace(system, config=soup_config(system.config))
    programs = eval_programs(system)
    metric = system.config.eval.metric or system.task.metric
    found = {UNIFORM + group.tag: numbers}
    if "dev" in system.sets:

        def dev(soup: Any) -> float:
            params = full(first, soup, group.steps[first])
            return merit(metric, score_set(system, programs, params, "dev")[metric])

        scores = {k: merit(metric, members.dev[k]) for k in numbers}
        found[GREEDY + group.tag] = greedy(numbers, scores, kept, dev)
    for name, chosen in found.items():
        folder, steps = workdir / "trials" / name, max(group.steps[k] for k in chosen)
        soup = mean_of(chosen, kept)
        if jax.process_index() == 0:
            save_model_files(system, folder)
            write_json(folder / "config.json", flat(system.config))
        with checkpoints(system.config, folder, lambda _: None) as saved:
            saved.forget_best()
            saved.save_best(steps, soup, {**meta(system), "frozen": digest}, 0.0)
        params, own = full(first, soup, group.steps[first]), {}
        if "dev" in system.sets:
            own["dev"] = score_set(system, programs, params, "dev")
        cooked, own = tune(system, params, own, programs, folder)
        silent = Writer(folder, total_steps=0, active=False)
        costs = {"speed": dict.fromkeys(SPEED)}
        conclude(cooked, params, steps, own, costs, programs, folder, silent)
    return {name: [group.numbers[k] for k in chosen] for name, chosen in found.items()}


def _merging(
    group: Group, kept: Callable[[int], Any], full: Callable[[int, Any, int], Any]
) -> Callable[[int], Any]:
    """As `kept`, the plain weights that the model of a trial comes to."""
    system = group.systems[0]
    places = jax.tree.map(lambda leaf: leaf.sharding, system.abstract_params)
    merge = jax.jit(system.weights.merged, out_shardings=places)
    return lambda k: merge(full(k, kept(k), group.steps[k]))
