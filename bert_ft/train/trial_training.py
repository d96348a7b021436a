"""The loop over the trials of one program: evaluate, save, step, as loop.py has it for one run."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Generator
from contextlib import ExitStack, closing
from typing import Any

import jax
import numpy as np

from bert_ft.data.prefetch import prefetch
from bert_ft.errors import EXIT_DONE, EXIT_PREEMPTED, Preempted
from bert_ft.evals.merit import beats, defined, merit, undefined
from bert_ft.train import phases, preemption
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.finish import score_set
from bert_ft.train.group import Prune, named, note_lost, programs_of
from bert_ft.train.record import StepClock, finite, summary
from bert_ft.train.step import CompileCount
from bert_ft.train.trial_results import Results
from bert_ft.train.writer import Writer


class Training:
    """The loop over a group, whose trials are those of `results.held` after `first` steps of the
    program; `assessed`: whether the evaluation that may be due there was made."""

    def __init__(
        self,
        results: Results,
        first: int,
        assessed: bool,
        saved: Checkpoints,
        writer: Writer,
        started: float,
        prune: Prune | None = None,
    ):
        self.group, self.places, self.held = results.group, results.places, results.held
        self.results, self.first, self.assessed = results, first, assessed
        self.saved, self.writer, self.started, self.prune = saved, writer, started, prune
        self.system = self.group.systems[0]
        self.programs = programs_of(self.group, self.held.waves[0], self.held.alike)
        self.metric = self.places.metric
        self.keep_best = self.system.config.eval.keep_best
        found = [store.best() if self.keep_best else None for store in results.bests]
        self.best = [one or (-1, -math.inf) for one in found]
        self.clock = StepClock()

    def run(self) -> int:
        step, compiled, seats = self.first, False, self.places.seats()
        with CompileCount("train_step") as compiles, ExitStack() as opened:
            batches = opened.enter_context(closing(self.batches(step)))
            while True:
                fresh = step > self.first or not self.assessed
                waiting = bool(self.places.waiting())
                if (fresh and self.places.due(step)) or (waiting and self.places.free(step)):
                    try:
                        self.assess(step, fresh)
                    except Preempted:
                        return self.preempted(step, assessed=False)
                    self.clock.restart()
                if step > self.first and self.saved.due(step):
                    self.save(step)
                    self.clock.restart()
                if not self.places.live(step).any():
                    if not self.places.waiting():
                        break
                    step += 1  # the place of a lost trial is about to be free
                    continue
                if preemption.due():
                    return self.preempted(step)
                if self.places.seats() != seats:
                    batches.close()
                    batches = opened.enter_context(closing(self.batches(step)))
                    seats = self.places.seats()
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
        self.results.conclude(self.writer, self.first, compiles.count, self.clock)
        return EXIT_DONE

    def batches(self, step: int) -> Generator[Any]:
        """Those of the waves from `step` on, as long as no place changes hands or falls idle."""
        fetch = functools.partial(self.group.fetch, self.places.seats())
        steps = range(step, self.places.last())
        return prefetch(fetch, steps, self.system.config.data.prefetch)

    def compile(self, batches: list[dict[str, jax.Array] | None]) -> None:
        with phases.within("compilation", "the compilation of the train step"):
            for batch in batches:
                if batch is not None:
                    self.programs.compile(self.held.waves[0], batch, beside=(self.held.frozen[0],))
        self.writer.say(summary(self.system, self.group.plans[0]))
        phases.set_unsaved(True)

    def compile_others(self) -> None:
        """Those of other row counts, once a run has shown that it runs."""
        jax.block_until_ready(self.held.waves)
        self.clock.first_step_s = time.monotonic() - self.started
        with phases.within("compilation", "the compilation of the other row counts"):
            for batch in self.group.samples():
                self.programs.compile(self.held.waves[0], batch, beside=(self.held.frozen[0],))

    def step(self, step: int, batches: list[dict[str, jax.Array] | None]) -> None:
        group, held = self.group, self.held
        live, metrics = self.places.live(step), []
        due = self.places.recorded(step + 1, self.system.config.log.every_steps) & live
        tokens = [
            group.plans[k].tokens(self.places.age(k, step)) for k in map(int, np.flatnonzero(live))
        ]
        with jax.transfer_guard("disallow"), phases.within("steps", f"step {step}"):
            for w, batch in enumerate(batches):
                if batch is not None:
                    held.waves[w], of_wave = self.programs(held.waves[w], batch, held.frozen[w])
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
            note_lost(self.group, self.places, finite(metrics), step, self.writer.say)

    def save(self, step: int, assessed: bool = True) -> None:
        self.look(self.writer.flush(), step)
        about = {
            **self.group.meta,
            "places": self.places.record(),
            "frozen": [self.held.digests[k] for k in self.places.trial],
            "assessed": assessed,
            "seconds": phases.seconds(),
        }
        with self.writer.paused(), phases.within("saving", f"the save of step {step}"):
            # A run that goes on from `step` must find the best before it, and no other's.
            for store in self.results.bests:
                store.drop_foreign()
                store.wait()
            self.saved.save(step, self.held.waves, about)

    def preempted(self, step: int, assessed: bool = True) -> int:
        self.save(step, assessed)
        with phases.within("saving", f"the save of step {step}"):
            self.saved.wait()
        last = self.places.last()
        self.writer.say(f"preempted: saved at step {step} of {last}; start me again to go on")
        return EXIT_PREEMPTED

    def assess(self, step: int, fresh: bool) -> None:
        """Scores the trials that are due, unless that was done before a restart, and gives places
        that are free to those that wait."""
        self.look(self.writer.flush(), step)  # while places are those of the step before
        due = self.places.due(step) if fresh and "dev" in self.system.sets else []
        if due:
            self.score(step, due)
        self.fill(step)

    def score(self, step: int, due: list[int]) -> None:
        """Scores dev for the trials of these places; under keep_best keeps the parameters of the
        better ones. Stops those that lose."""
        group, places = self.group, self.places
        scores: dict[int, dict[str, float]] = {}
        on_dev: dict[int, float | None] = {}
        for place in due:
            k = places.trial[place]
            kept, age = self.held.kept(place), places.age(k, step)
            with self.writer.paused():
                params = self.results.full(k, kept, age)
                scores[k] = score_set(group.systems[k], self.results.programs, params, "dev")
            del params  # no longer than kept below is
            on_dev[k] = defined(scores[k][self.metric])
            value = merit(self.metric, on_dev[k])
            if self.keep_best and beats(value, self.best[k][1]):
                if value == -math.inf:
                    self.writer.say(f"{named(self.group, k)}: {undefined(self.metric, age)}")
                self.best[k] = age, value
                self.results.keep(k, age, kept, value)
            del kept
        live = np.zeros(len(group), bool)
        live[list(scores)] = True
        # One trial may predict types that another does not, which then have no score there.
        for name in dict.fromkeys(name for own in scores.values() for name in own):
            values = np.full(len(group), np.nan)
            values[list(scores)] = [own.get(name, np.nan) for own in scores.values()]
            self.writer.scalars(step, {f"dev/{name}": values}, live)
        for k, own in scores.items():
            if places.age(k, step) == group.steps[k]:
                self.results.scores[k] = own
            elif self.prune and self.prune(group.numbers[k], places.age(k, step), on_dev[k]):
                places.stop(k, step, on_dev[k])
        places.judge(step, {k: v for k, v in on_dev.items() if k not in places.stopped})
        for k in scores.keys() & places.stopped.keys():
            self.writer.say(f"{named(self.group, k)}: stopped after {places.age(k, step)} steps")

    def fill(self, step: int) -> None:
        """Begins the trials that wait where there is room."""
        moved = self.places.fill(step)
        for place, old, new in moved:
            if old not in self.places.stopped and not self.keep_best:
                self.results.keep_end(old, place)
            self.results.bests[old].wait()
            begins = f"{named(self.group, new)} begins at step {step}"
            self.writer.say(f"{begins} in the place of {self.group.numbers[old]}")
        if moved:
            self.held.change({place: new for place, _, new in moved})
