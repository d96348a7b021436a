"""The trials of one compiled program: their configs, batches, state, and what a checkpoint of them
must agree with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bert_ft import trials
from bert_ft.data.batches import BatchPlan, in_waves
from bert_ft.errors import InputError, NotFinite
from bert_ft.method_checks import check_steps
from bert_ft.tasks.registry import make_task
from bert_ft.train import fleet, optim
from bert_ft.train.halving import LOST, Places, Seat
from bert_ft.train.knobs import knobs_of
from bert_ft.train.loop import batch_plan, total_steps
from bert_ft.train.sharding import abstract_batch, place
from bert_ft.train.start import abstract_state, meta, saved_part
from bert_ft.train.step import Programs
from bert_ft.train.system import System
from bert_ft.varying import NAMES, VARYING, Settings, said

# Trials that a device computes at once, by platform: on a CPU one after the other is as fast
# (experiments/trials), on the others a small batch leaves most of the chip idle.
WIDTHS = {"cpu": 1}
WIDEST = 64

# Of a trial's number, steps and score on dev (None: undefined): whether it stops there. Asked again
# after a restart it must answer the same.
Prune = Callable[[int, int, float | None], bool]


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials of one program. `systems`: all share everything but their config and task; `numbers`:
    theirs among all trials; `steps` of each. `waves`: of the places that trials are computed in,
    the first ones' at the start; `width`: how many of them a device was to compute at a time;
    `halving`, `share_batches`: of config.trial, which a trial's own config has not. `tag` tells a
    program from the others of the same command, '' where it is the only one."""

    systems: list[System]
    numbers: list[int]
    steps: list[int]
    waves: list[range]
    plans: list[BatchPlan]
    width: int
    halving: int
    share_batches: bool
    tag: str

    def __len__(self) -> int:
        return len(self.systems)

    @property
    def longest(self) -> int:
        return max(self.steps)

    @functools.cached_property
    def meta(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        own = [meta(system) for system in self.systems]
        first = own[0]["config"]
        shared = {k: v for k, v in first.items() if all(o["config"][k] == v for o in own)}
        about = {
            "config": shared,
            "data": own[0]["data"],
            "trials": [{k: v for k, v in o["config"].items() if k not in shared} for o in own],
            "numbers": self.numbers,
            "at_once": {
                "trial.at_once": self.waves[-1].stop,
                "trial.share_batches": self.share_batches,
                "trial.halving": self.halving,
            },
            "wave": {"trial.width * mesh.trial": len(self.waves[0])},
        }
        if self.halving:  # the number of evaluations bears on who goes on
            every = self.systems[0].config.eval.every_steps
            about["halving"] = {"eval.every_steps": every}
        return about

    def places(self, metric: str) -> Places:
        """Who is where before the first step."""
        first = range(self.waves[-1].stop)
        begun = [0 if k in first else None for k in range(len(self))]
        every = self.systems[0].config.eval.every_steps
        return Places(self.steps, every, self.halving, metric, list(first), begun)

    def fetch(self, seats: Sequence[Seat], step: int) -> list[dict[str, jax.Array] | None]:
        """A batch for each wave, None where all of it has done its steps."""
        return [
            self._batch([(k, min(step - begun, self.longest - 1)) for k, begun, _ in here])
            if any(step < end for _, _, end in here)
            else None
            for here in ([seats[place] for place in wave] for wave in self.waves)
        ]

    def _batch(self, wanted: Sequence[tuple[int, int]]) -> dict[str, jax.Array]:
        """Of a wave: (the trial, its own step) for each."""
        mesh, accumulate = self.systems[0].mesh, self.systems[0].config.train.accumulate
        makes = [functools.partial(self.plans[k].batch, step) for k, step in wanted]
        first, step = wanted[0]
        shape = self.plans[first].shape(step)
        if len(wanted) == 1 or self.share_batches:
            return place(makes[0], shape, mesh, accumulate)
        return fleet.place_wave(makes, shape, mesh, accumulate)

    def samples(self) -> list[dict[str, jax.Array]]:
        """A batch of each row count, the first step's first."""
        found: dict[int, dict[str, jax.Array]] = {}
        waiting = range(self.waves[-1].stop, len(self))
        waves = [*self.waves, *([k] * len(self.waves[0]) for k in waiting)]
        for wave in waves:
            for step in range(self.longest):
                rows = self.plans[wave[0]].shape(step).rows
                if rows not in found:
                    found[rows] = self._batch([(k, step) for k in wave])
                if len(found) == len(self.plans[0].counts):
                    return list(found.values())
        return list(found.values())


def programs_of_trials(config: ConfigDict, settings: list[Settings]) -> list[list[int]]:
    """The numbers of the trials of each program. Raises InputError, before any data is read, where
    they don't fill the mesh's axis."""
    task = make_task(config)
    free = list(getattr(task, "knobs", {}))
    found = trials.groups(config, settings, free + ["task.alpha"] * ("task.weights" in free))
    if config.trial.samples and len(found) > 1:
        names = [name for name, key in NAMES.items() if key in (*VARYING, *free)]
        raise InputError(
            f"config.trial.space: the trials and the draws need {len(found)} programs; accepted: "
            f"those of one, which differ in {', '.join(names)}"
        )
    for numbers in found:
        fleet.require_full(_places(config, len(numbers)), config.mesh.trial)
    return found


def _places(config: ConfigDict, count: int) -> int:
    """How many of so many trials there are at a time."""
    given = count - config.trial.samples
    return min(given, config.trial.at_once or given)


def make_group(
    system: System,
    whole: ConfigDict,
    settings: list[Settings],
    numbers: list[int],
    tag: str = "",
) -> Group:
    """The trials `numbers` of the `whole` run's config, whose own differ only in what a program
    takes as arguments."""
    config, data = system.config, system.sets["train"]
    configs = [trials.config_of(whole, settings[k]) for k in numbers]
    systems = [_with(system, c) for c in configs]
    steps = [total_steps(c, data.of_an_epoch) for c in configs]
    for c, count in zip(configs, steps, strict=True):
        check_steps(c, count)
    places = _places(config, len(numbers))
    platform = system.mesh.devices.flat[0].platform
    width = config.trial.width or WIDTHS.get(platform, WIDEST)
    waves = fleet.waves(places, system.mesh, width)
    plans = [batch_plan(s, max(steps)) for s in systems]
    halving, shared = config.trial.halving, config.trial.share_batches
    if shared:
        plans = [dataclasses.replace(plan, seed=config.train.seed) for plan in plans]
    alike = waves
    if places < len(plans):  # a wave's trials may be at any steps, so its batches have one shape
        alike = [range(k, k + 1) for k in range(len(plans))]
        if len(waves[0]) > 1:
            alike = [range(len(plans))]
            plans = [dataclasses.replace(plan, at_most=1) for plan in plans]
    plans = in_waves(plans, alike)
    return Group(systems, numbers, steps, waves, plans, width, halving, shared, tag)


def _with(system: System, config: ConfigDict) -> System:
    """The system of another config, with a task of its own."""
    task = make_task(config)
    task.head(system.fitted)  # from then on it knows what its labels allow
    return dataclasses.replace(system, config=config, task=task)


def programs_of(group: Group, first: fleet.Trial, alike: bool) -> Programs:
    """The step of a wave; `alike`: its trials stand beside the same frozen parameters."""
    system = group.systems[0]
    step = functools.partial(
        fleet.trial_step,
        model=system.model,
        task=system.task,
        config=system.config,
        noisy=any(s.config.model.dropout > 0 for s in group.systems),
    )
    size = len(group.waves[0])
    return fleet.wave_programs(first, size, step, system.mesh, group.share_batches, alike)


def abstract_trial(group: Group, k: int) -> fleet.Trial:
    """A trial's shapes with their shardings."""
    system = group.systems[k]
    state = abstract_state(system, optim.make_optimizer(system.config, 1))
    knobs = knobs_of(system.config, group.steps[k], system.task)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=state.step.sharding),
        fleet.as_arrays(knobs),
    )
    return fleet.Trial(shapes, state)


def abstract_step(
    group: Group,
) -> tuple[Programs, fleet.Trial, dict[str, Any], dict[str, Any], tuple]:
    """(the step of a wave, its trials and its batch of the most rows, the batch of one of its
    trials, and the frozen parameters beside all), as shapes with their shardings."""
    system, plan, size = group.systems[0], group.plans[0], len(group.waves[0])
    mesh, accumulate = system.mesh, system.config.train.accumulate
    shape = plan.shape(plan.first_step_of(max(plan.counts)))
    trial = abstract_trial(group, 0)
    wave = fleet.abstract_wave(alone(trial), size, mesh)
    one = abstract_batch(plan.batch(0, range(1)), shape, mesh, accumulate)
    batch = one if group.share_batches else fleet.abstract_wave(one, size, mesh)
    return programs_of(group, wave, alike=True), wave, batch, one, (trial.state.frozen,)


def alone(trial: fleet.Trial) -> fleet.Trial:
    """A trial without the frozen parameters that it stands beside."""
    return dataclasses.replace(trial, state=saved_part(trial.state))


def quiet(line: str) -> None:
    """In the place of `say`."""


def varied(group: Group, k: int) -> Settings:
    """What distinguishes a trial of a group."""
    return group.meta["trials"][k]


def named(group: Group, k: int) -> str:
    return f"trial {group.numbers[k]} ({said(varied(group, k))})"


def note_lost(
    group: Group, places: Places, good: np.ndarray, step: int, say: Callable[[str], None]
) -> None:
    """Stops the trials whose loss or gradient in the program's step before `step` was not `good`,
    bool (trials,); raises NotFinite where none is left, unless a sweep stopped some, which has
    learnt from them."""
    for k in map(int, np.flatnonzero(~good & places.live(step - 1))):
        places.stop(k, step, None, why=LOST)
        say(f"{named(group, k)}: loss is not finite at step {places.age(k, step)}; it ends here")
    lost = [(k, stop) for k, stop in places.stopped.items() if stop.why == LOST]
    pruned = any(not stop.why and not stop.among for stop in places.stopped.values())
    if lost and len(places.stopped) == len(group) and not pruned:
        last, stop = lost[-1]
        plan = group.plans[last]
        rows = np.asarray(plan.data.row[plan.examples(stop.step - 1)])
        raise NotFinite(stop.step, [int(r) for r in rows])
