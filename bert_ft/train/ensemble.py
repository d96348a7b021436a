"""What several trials of one program are worth together: their averaged predictions, and the
averages of their weights (model soups, Wortsman et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_ft.evals.merit import merit
from bert_ft.train.finish import conclude, predict_set, score_set
from bert_ft.train.group import Group
from bert_ft.train.record import SPEED
from bert_ft.train.start import checkpoints, meta
from bert_ft.train.step import Programs
from bert_ft.train.system import save_model_files
from bert_ft.train.writer import Writer

UNIFORM, GREEDY = "soup_uniform", "soup_greedy"  # their folders, and their names for export.trial


def mean_of(trees: Sequence[Any]) -> Any:
    """The mean of trees of arrays, leaf by leaf, in float32."""
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]) / len(leaves), *trees)


def averaged(
    group: Group, params: Sequence[Any], programs: Programs
) -> dict[str, dict[str, float]] | None:
    """{set: scores} of the mean of the trials' predictions; None for a task whose predictions have
    no mean."""
    system = group.systems[0]
    if not getattr(system.task, "predictions_have_a_mean", False):
        return None
    scores = {}
    for name in ("dev", "test"):
        if name in system.sets:
            each = [predict_set(system, programs, p, system.sets[name]) for p in params]
            together = {k: np.mean([one[k] for one in each], axis=0) for k in each[0]}
            scores[name] = system.task.score(together, system.sets[name])
    return scores


def greedy(
    params: Sequence[Any], scores: Sequence[float], dev: Callable[[Any], float]
) -> list[int]:
    """The members of the greedy soup, by rising `scores` the best first: a trial stays in where the
    mean with it is no worse on dev (Wortsman et al. 2022, recipe 1)."""
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    members, best = order[:1], scores[order[0]]
    for k in order[1:]:
        value = dev(mean_of([params[i] for i in (*members, k)]))
        if value >= best:
            members, best = [*members, k], value
    return members


def soups(
    group: Group,
    members: Mapping[int, Any],
    formed: Callable[[Any], Any],
    about: Mapping[str, Any],
    metric: str,
    dev_scores: Mapping[int, float],
    programs: Programs,
    workdir: Path,
) -> dict[str, list[int]]:
    """Leaves a finished run of the uniform soup, and with a dev set of the greedy one, in
    WORKDIR/trials; {its name: the numbers of its members}. `members`: {place in the group: what is
    trained}, of which `formed` makes what the model is given; `dev_scores`: the metric of each on
    dev, where there is one; `about` goes beside what is kept."""
    system, places, params = group.systems[0], list(members), list(members.values())
    found = {UNIFORM: places}
    if "dev" in system.sets:

        def dev(one: Any) -> float:
            return merit(metric, score_set(system, programs, formed(one), "dev")[metric])

        known = [merit(metric, dev_scores[k]) for k in places]
        found[GREEDY] = [places[i] for i in greedy(params, known, dev)]
    for name, chosen in found.items():
        folder = workdir / "trials" / name
        soup = mean_of([members[k] for k in chosen])
        steps = max(group.steps[k] for k in chosen)
        if jax.process_index() == 0:
            save_model_files(system, folder)
        with checkpoints(system.config, folder, lambda _: None) as saved:
            saved.save_best(steps, soup, {**meta(system), **about}, 0.0)
        soup = formed(soup)
        own = {"dev": score_set(system, programs, soup, "dev")} if "dev" in system.sets else {}
        quiet = Writer(folder, total_steps=0, active=False)
        costs = {"speed": dict.fromkeys(SPEED)}
        conclude(system, soup, steps, own, costs, programs, folder, quiet)
    return {name: [group.numbers[k] for k in chosen] for name, chosen in found.items()}


def together(
    group: Group,
    members: Mapping[int, Any],
    full: Callable[[int, Any, int], Any],
    digests: set[str],
    metric: str,
    dev_scores: Mapping[int, float],
    programs: Programs,
    workdir: Path,
) -> dict[str, Any]:
    """What `gather` reads: scores of the mean prediction, members of the soups. `full` makes what
    the model is given of a trial, of what is kept of it, at a step; `dev_scores` as of `soups`.
    Soups are cooked of what is trained: frozen weights that differ (`digests`), those of models
    begun anew, have no mean that anything was trained beside."""
    if len(members) < 2:
        return {"mean_prediction": None, "soups": {}}
    each = [full(k, kept, group.steps[k]) for k, kept in members.items()]
    found = averaged(group, each, programs)
    of: dict[str, list[int]] = {}
    if len(digests) == 1:
        first, (digest,) = next(iter(members)), digests

        def formed(kept: Any) -> Any:
            return full(first, kept, group.steps[first])

        by = metric, dev_scores, programs
        of = soups(group, members, formed, {"frozen": digest}, *by, workdir)
    return {"mean_prediction": found, "soups": of}
