"""The loop over the trials of one program: evaluate, save, step, as loop.py has it for one run."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_ft.data.prefetch import prefetch
from bert_ft.errors import EXIT_DONE, EXIT_PREEMPTED, Preempted
from bert_ft.evals.merit import defined, merit
from bert_ft.train import ensemble, fleet, optim, phases, preemption
from bert_ft.train.beside import Beside
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.finish import conclude, eval_programs, score_set, tune
from bert_ft.train.gather import STOPPED, TOGETHER, own_metrics
from bert_ft.train.group import (
    Group,
    Prune,
    Start,
    alone,
    fresh_trial,
    group_meta,
    named,
    note_lost,
    programs_of,
    quiet,
)
from bert_ft.train.record import StepClock, old_costs, speed, summary, write_json
from bert_ft.train.start import abstract_state, full, meta, reported
from bert_ft.train.step import CompileCount
from bert_ft.train.writer import Writer


class Training:
    """The loop over a group: evaluate, save, step, as loop.py has it for one run."""

    def __init__(
        self,
        group: Group,
        start: Start,
        saved: Checkpoints,
        bests: list[Checkpoints],
        writer: Writer,
        folders: list[Path],
        started: float,
        prune: Prune | None = None,
    ):
        self.group, self.saved, self.bests = group, saved, bests
        self.first, self.assessed = start.step, start.assessed
        self.places, self.writer, self.folders = start.places, writer, folders
        self.started, self.prune = started, prune
        self.system = group.systems[0]
        mesh = self.system.mesh
        held = [alone(one) for one in start.trials]
        self.state = [fleet.stack([held[k] for k in wave], mesh) for wave in group.waves]
        self.beside = Beside(group, start.places, start.trials)
        start.trials.clear()  # stacked, they would lie in memory twice
        self.programs = programs_of(group, self.state[0], self.beside.alike)
        self.evaluators = eval_programs(self.system)
        self.like = abstract_state(self.system, optim.make_optimizer(self.system.config, 1))
        self.metric = start.places.metric
        self.keep_best = self.system.config.eval.keep_best
        found = [store.best() if self.keep_best else None for store in bests]
        self.best = [one or (-1, -math.inf) for one in found]
        self.scores: dict[int, dict[str, float]] = {}  # on dev, of trials at their end
        self.clock = StepClock()

    def trials(self) -> list[fleet.Trial]:
        """Of each place."""
        return [
            one
            for wave, state in zip(self.group.waves, self.state, strict=True)
            for one in fleet.unstack(state, len(wave))
        ]

    def kept(self) -> list[Any]:
        """What is kept of the trial of each place as its result, where an evaluation finds it."""
        at = jax.tree.map(lambda s: s.sharding, self.like.params)
        return [jax.device_put(reported(self.system, one.state), at) for one in self.trials()]

    def full(self, k: int, kept: Any, step: int) -> Any:
        """The parameters that the model is given of what is kept of a trial."""
        return full(self.system, kept, self.beside.of(k), step)

    def about(self, k: int) -> dict[str, Any]:
        """What stands beside a trial's result."""
        return {**meta(self.group.systems[k]), "frozen": self.beside.digests[k]}

    def run(self) -> int:
        step, compiled = self.first, False
        with CompileCount("train_step") as compiles, ExitStack() as opened:
            batches = opened.enter_context(closing(self.batches(step)))
            while True:
                fresh = step > self.first or not self.assessed
                if fresh and self.places.due(step):
                    try:
                        moved = self.assess(step)
                    except Preempted:
                        return self.preempted(step, assessed=False)
                    self.clock.restart()
                    if moved:
                        batches.close()
                        batches = opened.enter_context(closing(self.batches(step)))
                if step > self.first and self.saved.due(step):
                    self.save(step)
                    self.clock.restart()
                if not self.places.live(step).any():
                    break
                if preemption.due():
                    return self.preempted(step)
                of_waves = next(batches)
                if not compiled:
                    self.compile(of_waves)
                self.step(step, of_waves)
                if not compiled:
                    self.compile_others()
                    compiled = True
                else:
                    self.clock.tick()
                step += 1
            self.look(self.writer.flush(), step)
            self.writer.end_steps()
        if self.first < step:
            self.save(step)
        with phases.within("saving", f"the save of step {step}"):
            self.saved.wait()
        phases.set_unsaved(False)  # what follows is done again by a start of the finished run
        self.conclude(compiles.count)
        return EXIT_DONE

    def batches(self, step: int) -> Generator[Any]:
        """Those of the waves from `step` on, as long as no trial gives its place to another."""
        fetch = functools.partial(self.group.fetch, self.places.seats())
        steps = range(step, self.places.last())
        return prefetch(fetch, steps, self.system.config.data.prefetch)

    def compile(self, batches: list[dict[str, jax.Array] | None]) -> None:
        with phases.within("compilation", "the compilation of the train step"):
            for batch in batches:
                if batch is not None:
                    self.programs.compile(self.state[0], batch, beside=(self.beside.of_wave[0],))
        self.writer.say(summary(self.system, self.group.plans[0]))
        phases.set_unsaved(True)

    def compile_others(self) -> None:
        """Those of other row counts, once a run has shown that it runs."""
        jax.block_until_ready(self.state)
        self.clock.first_step_s = time.monotonic() - self.started
        with phases.within("compilation", "the compilation of the other row counts"):
            for batch in self.group.samples():
                self.programs.compile(self.state[0], batch, beside=(self.beside.of_wave[0],))

    def step(self, step: int, batches: list[dict[str, jax.Array] | None]) -> None:
        group, live, metrics = self.group, self.places.live(step), []
        due = self.places.recorded(step + 1, self.system.config.log.every_steps) & live
        tokens = [
            group.plans[k].tokens(self.places.age(k, step)) for k in map(int, np.flatnonzero(live))
        ]
        with jax.transfer_guard("disallow"), phases.within("steps", f"step {step}"):
            for w, batch in enumerate(batches):
                if batch is not None:
                    beside = self.beside.of_wave[w]
                    self.state[w], of_wave = self.programs(self.state[w], batch, beside)
                    metrics.append(([self.places.trial[p] for p in group.waves[w]], of_wave))
            done = self.writer.trials(
                step + 1,
                metrics,
                live=live,
                due=due,
                examples=self.system.config.train.batch_size * len(tokens),
                tokens=sum(tokens),
            )
        self.look(done, step)
        phases.stepped()

    def look(self, metrics: dict[str, np.ndarray] | None, step: int) -> None:
        if metrics is not None:
            note_lost(self.group, self.places, metrics["loss"], step, self.writer.say)

    def save(self, step: int, assessed: bool = True) -> None:
        self.look(self.writer.flush(), step)
        about = {
            **group_meta(self.group),
            "places": self.places.record(),
            "frozen": [self.beside.digests[k] for k in self.places.trial],
            "assessed": assessed,
            "seconds": phases.seconds(),
        }
        with self.writer.paused(), phases.within("saving", f"the save of step {step}"):
            for store in self.bests:  # a run that goes on from `step` must find the best before it
                store.wait()
            self.saved.save(step, self.trials(), about)

    def preempted(self, step: int, assessed: bool = True) -> int:
        self.save(step, assessed)
        with phases.within("saving", f"the save of step {step}"):
            self.saved.wait()
        last = self.places.last()
        self.writer.say(f"preempted: saved at step {step} of {last}; start me again to go on")
        return EXIT_PREEMPTED

    def assess(self, step: int) -> bool:
        """Scores the trials that are due, where there is dev, and gives places that are free to
        those that wait; whether there were any."""
        self.look(self.writer.flush(), step)  # while places are those of the step before
        if "dev" not in self.system.sets and None not in self.places.begun:
            return False
        kept = self.kept()
        if "dev" in self.system.sets:
            self.score(step, kept)
        return self.fill(step, kept)

    def score(self, step: int, kept: list[Any]) -> None:
        """Scores dev for each trial that is due; under keep_best keeps the parameters of the better
        ones. Stops those that lose."""
        group, places, due = self.group, self.places, self.places.due(step)
        scores: dict[int, dict[str, float]] = {}
        for place in due:
            k = places.trial[place]
            params = self.full(k, kept[place], places.age(k, step))
            with self.writer.paused():
                scores[k] = score_set(group.systems[k], self.evaluators, params, "dev")
        live = np.zeros(len(group), bool)
        live[list(scores)] = True
        for name in next(iter(scores.values())):
            values = np.full(len(group), np.nan)
            values[list(scores)] = [own[name] for own in scores.values()]
            self.writer.scalars(step, {f"dev/{name}": values}, live)
        on_dev = {k: defined(own[self.metric]) for k, own in scores.items()}
        for place in due:
            k = places.trial[place]
            value, age = merit(self.metric, on_dev[k]), places.age(k, step)
            if self.keep_best and (self.best[k][0] < 0 or value > self.best[k][1]):
                self.best[k] = age, value
                self.bests[k].save_best(age, kept[place], self.about(k), value)
            if age == group.steps[k]:
                self.scores[k] = scores[k]
            elif self.prune and self.prune(group.numbers[k], age, on_dev[k]):
                places.stop(k, step, on_dev[k])
        places.judge(step, {k: v for k, v in on_dev.items() if k not in places.stopped})
        for k in scores.keys() & places.stopped.keys():
            self.writer.say(f"{named(self.group, k)}: stopped after {places.age(k, step)} steps")

    def fill(self, step: int, kept: list[Any]) -> bool:
        """Begins the trials that wait where there is room; whether there was."""
        moved = self.places.fill(step)
        for w, wave in enumerate(self.group.waves):
            here = [one for one in moved if one[0] in wave]
            if not here:
                continue
            trials, frozen = fleet.unstack(self.state[w], len(wave)), {}
            for place, old, new in here:
                if old not in self.places.stopped and not self.keep_best:
                    self.keep(old, kept[place])
                self.bests[old].wait()
                with phases.within("restoring", f"the start of trial {self.group.numbers[new]}"):
                    begun = fresh_trial(self.group, new, quiet)
                trials[place - wave.start], frozen[new] = alone(begun), begun.state.frozen
                begins = f"{named(self.group, new)} begins at step {step}"
                self.writer.say(f"{begins} in the place of {self.group.numbers[old]}")
            self.state[w] = fleet.stack(trials, self.system.mesh)
            self.beside.begin(w, frozen)
        return bool(moved)

    def keep(self, k: int, kept: Any) -> None:
        """What is kept of a trial's end, as that which it reports."""
        value = self.scores.get(k, {}).get(self.metric, 0.0)
        self.bests[k].save_best(self.group.steps[k], kept, self.about(k), value)

    def conclude(self, compiles: int) -> None:
        """Each trial's own record, in its folder."""
        group, quiet = self.group, Writer(self.folders[0], total_steps=0, active=False)
        here = dict(zip(self.places.trial, self.kept(), strict=True))
        self.state = []  # what follows needs no moments
        members: dict[int, Any] = {}
        dev_scores: dict[int, float] = {}
        self.writer.flush()
        for k, system in enumerate(group.systems):
            folder, begun = self.folders[k], self.places.begun[k] or 0
            if jax.process_index() == 0:
                own_metrics(self.writer.metrics, k, folder / "metrics.jsonl", begun)
            if k in self.places.stopped:
                if jax.process_index() == 0:
                    stop = dataclasses.asdict(self.places.stopped[k])
                    write_json(folder / STOPPED, {"metric": self.metric, **stop})
                continue
            if k in here and not self.keep_best:
                self.keep(k, here[k])
            found = self.bests[k].restore_best(self.like.params, {})
            assert found is not None
            kept, step = found[0], found[1]
            self.beside.of(k, found[2].get("frozen", ""))
            params, own = self.full(k, kept, step), {}
            if "dev" in system.sets:
                known = self.scores.get(k) if step == group.steps[k] else None
                own["dev"] = known or score_set(system, self.evaluators, params, "dev")
                dev_scores[k] = own["dev"][self.metric]
            if k not in self.places.lost and self.system.config.trial.ensembles:
                members[k] = kept
            system, own = tune(system, params, own, self.evaluators, folder)
            first, costs = max(0, self.first - begun), old_costs(folder)
            if first < group.steps[k]:
                costs = {"speed": speed(group.plans[k], first, compiles, self.clock)}
            conclude(system, params, step, own, costs, self.evaluators, folder, quiet)
        if self.system.config.trial.ensembles:
            digests, workdir = {self.beside.digests[k] for k in members}, self.folders[0].parents[1]
            by = self.metric, dev_scores, self.evaluators, workdir
            together = ensemble.together(group, members, self.full, digests, *by)
            if jax.process_index() == 0:  # the last of all: without it the run is not over
                write_json(workdir / TOGETHER, together)
