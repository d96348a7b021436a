"""The trials of one compiled program: their configs, batches, state, and what a checkpoint of them
must agree with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bert_ft import trials
from bert_ft.data.batches import BatchPlan, in_waves
from bert_ft.tasks.registry import make_task
from bert_ft.train import fleet, optim, phases
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.knobs import knobs_of
from bert_ft.train.loop import batch_plan, total_steps
from bert_ft.train.sharding import place
from bert_ft.train.start import (
    abstract_state,
    fresh_state,
    frozen_again,
    frozen_digest,
    meta,
    saved_part,
)
from bert_ft.train.step import Programs, TrainState
from bert_ft.train.system import System

# Trials that a device computes at once, by platform: on a CPU one after the other is as fast
# (experiments/trials), on the others a small batch leaves most of the chip idle.
WIDTHS = {"cpu": 1}
WIDEST = 64


@dataclasses.dataclass(frozen=True)
class Group:
    """Trials of one program. `systems`: all share everything but their config and task; `numbers`:
    theirs among all trials; `steps` of each."""

    systems: list[System]
    numbers: list[int]
    steps: list[int]
    waves: list[range]
    plans: list[BatchPlan]

    def __len__(self) -> int:
        return len(self.systems)

    @property
    def longest(self) -> int:
        return max(self.steps)

    def live(self, step: int) -> np.ndarray:
        """bool (K,): the trials that have a step `step` to do."""
        return np.asarray([step < own for own in self.steps])

    def fetch(self, step: int) -> list[dict[str, jax.Array] | None]:
        """A batch for each wave, None where all of it has done its steps."""
        live = self.live(step)
        return [self._batch(w, step) if live[w].any() else None for w in self.waves]

    def _batch(self, wave: range, step: int) -> dict[str, jax.Array]:
        mesh, accumulate = self.systems[0].mesh, self.systems[0].config.train.accumulate
        plan = self.plans[wave[0]]
        shape = plan.shape(step)
        if len(wave) == 1 or self.systems[0].config.trial.share_batches:
            return place(functools.partial(plan.batch, step), shape, mesh, accumulate)
        makes = [functools.partial(self.plans[k].batch, step) for k in wave]
        return fleet.place_wave(makes, shape, mesh, accumulate)

    def samples(self) -> list[dict[str, jax.Array]]:
        """A batch of each row count, the first step's first."""
        found: dict[int, dict[str, jax.Array]] = {}
        firsts = (self.plans[wave[0]] for wave in self.waves)
        for wave, plan in zip(self.waves, firsts, strict=True):
            for step in range(self.longest):
                rows = plan.shape(step).rows
                if rows not in found:
                    found[rows] = self._batch(wave, step)
                if len(found) == len(plan.counts):
                    return list(found.values())
        return list(found.values())


def make_group(system: System, settings: list[trials.Settings], numbers: list[int]) -> Group:
    """The trials `numbers`, whose configs differ only in what a program takes as arguments."""
    config, data = system.config, system.sets["train"]
    configs = [trials.config_of(config, settings[k]) for k in numbers]
    systems = [dataclasses.replace(system, config=c, task=make_task(c)) for c in configs]
    steps = [total_steps(c, data.of_an_epoch) for c in configs]
    platform = system.mesh.devices.flat[0].platform
    width = config.trial.width or WIDTHS.get(platform, WIDEST)
    waves = fleet.waves(len(numbers), system.mesh, width)
    plans = [batch_plan(s, max(steps)) for s in systems]
    if config.trial.share_batches:
        plans = [dataclasses.replace(plan, seed=config.train.seed) for plan in plans]
    return Group(systems, numbers, steps, waves, in_waves(plans, waves))


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
    shared = system.config.trial.share_batches
    return fleet.wave_programs(first, len(group.waves[0]), step, system.mesh, shared, alike)


def initial_trials(
    group: Group, saved: Checkpoints, say: Callable[[str], None]
) -> tuple[list[fleet.Trial], int]:
    """(trials, the step to go on from). Frozen parameters that are the same are there once."""
    known: dict[str, Any] = {}

    def sharing(state: TrainState) -> TrainState:
        frozen = known.setdefault(frozen_digest(state.frozen), state.frozen)
        return dataclasses.replace(state, frozen=frozen)

    def abstract(k: int) -> fleet.Trial:
        system = group.systems[k]
        state = abstract_state(system, optim.make_optimizer(system.config, 1))
        knobs = knobs_of(system.config, group.steps[k], system.task)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=state.step.sharding),
            fleet.as_arrays(knobs),
        )
        return fleet.Trial(shapes, state)

    def with_frozen(k: int, one: fleet.Trial, digest: str) -> fleet.Trial:
        system = group.systems[k]
        optimizer = optim.make_optimizer(system.config, 1)
        frozen = frozen_again(system, optimizer, digest, lambda _: None)
        return dataclasses.replace(
            one, state=sharing(dataclasses.replace(one.state, frozen=frozen))
        )

    everyone = range(len(group))
    likes = [abstract(k) for k in everyone]
    held = [dataclasses.replace(one, state=saved_part(one.state)) for one in likes]
    restored = saved.restore(held, group_meta(group))
    if restored is not None:
        say(f"start: own checkpoint of step {restored[1]}, {len(group)} trials")
        phases.add(restored[2].get("seconds", {}))
        digests = restored[2].get("frozen", [""] * len(group))
        made = [with_frozen(k, one, digests[k]) for k, one in enumerate(restored[0])]
        return made, restored[1]

    def fresh(k: int) -> fleet.Trial:
        system = group.systems[k]
        optimizer = optim.make_optimizer(system.config, 1)
        state = fresh_state(system, optimizer, say if k == 0 else lambda _: None)
        knobs = knobs_of(system.config, group.steps[k], system.task)
        return fleet.make_trial(sharing(state), knobs, system.mesh)

    return [fresh(k) for k in everyone], 0


def group_meta(group: Group) -> dict[str, Any]:
    """What a checkpoint of a group must agree with."""
    own = [meta(system) for system in group.systems]
    shared = {k: v for k, v in own[0]["config"].items() if all(o["config"][k] == v for o in own)}
    own_keys = [{k: v for k, v in o["config"].items() if k not in shared} for o in own]
    return {"config": shared, "data": own[0]["data"], "trials": own_keys, "numbers": group.numbers}


def varied(group: Group, k: int) -> trials.Settings:
    """What distinguishes a trial of a group."""
    return group_meta(group)["trials"][k]
