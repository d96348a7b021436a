"""The loop over the trials of one program: evaluate, save, step, as loop.py has it for one run."""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bert_ft import trials
from bert_ft.data.prefetch import prefetch
from bert_ft.errors import EXIT_DONE, EXIT_PREEMPTED, NotFinite, Preempted
from bert_ft.evals.metrics import lower_is_better
from bert_ft.train import ensemble, fleet, optim, phases, preemption
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.finish import conclude, eval_programs, score_set, tune
from bert_ft.train.gather import own_metrics
from bert_ft.train.group import (
    Group,
    group_meta,
    programs_of,
    varied,
)
from bert_ft.train.record import StepClock, speed, summary, write_json
from bert_ft.train.start import (
    abstract_state,
    frozen_digest,
    full,
    meta,
    reported,
    saved_part,
)
from bert_ft.train.step import CompileCount
from bert_ft.train.writer import Writer


class Training:
    """The loop over a group: evaluate, save, step, as loop.py has it for one run."""

    def __init__(
        self,
        group: Group,
        made: list[fleet.Trial],
        first: int,
        saved: Checkpoints,
        bests: list[Checkpoints],
        writer: Writer,
        folders: list[Path],
        started: float,
    ):
        self.group, self.first, self.saved, self.bests = group, first, saved, bests
        self.writer, self.folders, self.started = writer, folders, started
        self.system = group.systems[0]
        mesh = self.system.mesh
        self.frozen = [one.state.frozen for one in made]
        alike = all(self.frozen[k] is self.frozen[w[0]] for w in group.waves for k in w)
        self.beside = [
            self.frozen[w[0]] if alike else fleet.stack([self.frozen[k] for k in w], mesh)
            for w in group.waves
        ]
        trained = [dataclasses.replace(t, state=saved_part(t.state)) for t in made]
        self.state = [fleet.stack([trained[k] for k in wave], mesh) for wave in group.waves]
        self.programs = programs_of(group, self.state[0], alike)
        self.evaluators = eval_programs(self.system)
        self.like = abstract_state(self.system, optim.make_optimizer(self.system.config, 1))
        each = {id(frozen): frozen_digest(frozen) for frozen in self.frozen}
        self.digests = [each[id(frozen)] for frozen in self.frozen]
        metric = self.system.config.eval.metric or self.system.task.metric
        self.metric, self.sign = metric, -1 if lower_is_better(metric) else 1
        self.keep_best = self.system.config.eval.keep_best
        found = [store.best() if self.keep_best else None for store in bests]
        self.best = [one or (-1, -math.inf) for one in found]
        self.lost: dict[int, int] = {}  # trials whose loss is not finite, and since when
        self.clock = StepClock()

    def trials(self) -> list[fleet.Trial]:
        return [
            one
            for wave, state in zip(self.group.waves, self.state, strict=True)
            for one in fleet.unstack(state, len(wave))
        ]

    def kept(self) -> list[Any]:
        """What is kept of each trial as its result, where an evaluation finds it."""
        places = jax.tree.map(lambda s: s.sharding, self.like.params)
        return [jax.device_put(reported(self.system, t.state), places) for t in self.trials()]

    def full(self, k: int, kept: Any, step: int) -> Any:
        """The parameters that the model is given of what is kept of a trial."""
        return full(self.system, kept, self.frozen[k], step)

    def run(self) -> int:
        group, config = self.group, self.system.config
        has_dev, every = "dev" in self.system.sets, config.eval.every_steps
        batches = prefetch(group.fetch, range(self.first, group.longest), config.data.prefetch)
        with CompileCount("train_step") as compiles, closing(batches):
            if self.first < group.longest:
                with phases.within("compilation", "the compilation of the train step"):
                    for batch in group.fetch(self.first):
                        if batch is not None:
                            self.compile(batch)
                self.writer.say(summary(self.system, group.plans[0]))
            phases.set_unsaved(True)
            for step in range(self.first, group.longest):
                if step > self.first:
                    if has_dev and every and step % every == 0:
                        try:
                            self.assess(step)
                        except Preempted:
                            return self.preempted(step)
                        self.clock.restart()
                    if self.saved.due(step):
                        self.save(step)
                        self.clock.restart()
                if preemption.due():
                    return self.preempted(step)
                self.step(step, next(batches))
                if step == self.first:
                    jax.block_until_ready(self.state)
                    self.clock.first_step_s = time.monotonic() - self.started
                    with phases.within("compilation", "the compilation of the other row counts"):
                        for batch in group.samples():
                            self.compile(batch)
                else:
                    self.clock.tick()
            self.look(self.writer.flush(), group.longest)
            self.writer.end_steps()
        try:
            scores = self.assess(group.longest) if has_dev else [{} for _ in group.systems]
        except Preempted:
            return self.preempted(group.longest)
        if self.first < group.longest:
            self.save(group.longest)
        self.conclude(scores, compiles.count)
        return EXIT_DONE

    def compile(self, batch: dict[str, jax.Array]) -> None:
        self.programs.compile(self.state[0], batch, beside=(self.beside[0],))

    def step(self, step: int, batches: list[dict[str, jax.Array] | None]) -> None:
        group, live, metrics = self.group, self.group.live(step), []
        with jax.transfer_guard("disallow"), phases.within("steps", f"step {step}"):
            for w, batch in enumerate(batches):
                if batch is not None:
                    self.state[w], of_wave = self.programs(self.state[w], batch, self.beside[w])
                    metrics.append((group.waves[w], of_wave))
            done = self.writer.trials(
                step + 1,
                metrics,
                live=live,
                examples=self.system.config.train.batch_size * int(live.sum()),
                tokens=sum(p.tokens(step) for p, on in zip(group.plans, live, strict=True) if on),
            )
        self.look(done, step)
        phases.stepped()

    def look(self, metrics: dict[str, np.ndarray] | None, step: int) -> None:
        """Notes the trials whose loss is not finite; raises NotFinite where it is so in all."""
        if metrics is None:
            return
        live = self.group.live(step - 1)
        for k in np.flatnonzero(~np.isfinite(metrics["loss"]) & live):
            if k not in self.lost:
                self.lost[int(k)] = step
                said = trials.said(varied(self.group, int(k)))
                self.writer.say(
                    f"trial {self.group.numbers[k]} ({said}): loss is not finite at step {step}"
                )
        if len(self.lost) == len(self.group):
            plan = self.group.plans[0]
            rows = np.asarray(plan.data.row[plan.examples(step - 1)])
            raise NotFinite(step, [int(r) for r in rows])

    def save(self, step: int) -> None:
        self.look(self.writer.flush(), step)
        own = {"assessed": True, "seconds": phases.seconds(), "frozen": self.digests}
        with self.writer.paused(), phases.within("saving", f"the save of step {step}"):
            self.saved.save(step, self.trials(), {**group_meta(self.group), **own})

    def preempted(self, step: int) -> int:
        self.save(step)
        with phases.within("saving", f"the save of step {step}"):
            self.saved.wait()
        self.writer.say(
            f"preempted: saved at step {step} of {self.group.longest}; start me again to go on"
        )
        return EXIT_PREEMPTED

    def assess(self, step: int) -> list[dict[str, float]]:
        """Scores dev for each trial; under keep_best keeps the parameters of the better ones."""
        scores = []
        for k, kept in enumerate(self.kept()):
            system = self.group.systems[k]
            with self.writer.paused():
                own = score_set(system, self.evaluators, self.full(k, kept, step), "dev")
            scores.append(own)
            value = -math.inf if math.isnan(own[self.metric]) else self.sign * own[self.metric]
            if self.keep_best and (self.best[k][0] < 0 or value > self.best[k][1]):
                self.best[k] = min(step, self.group.steps[k]), value
                self.bests[k].save_best(self.best[k][0], kept, self.about(k), value)
        names = scores[0]
        self.writer.scalars(step, {f"dev/{n}": np.array([s[n] for s in scores]) for n in names})
        return scores

    def conclude(self, scores: list[dict[str, float]], compiles: int) -> None:
        """Each trial's own record, in its folder."""
        group, quiet = self.group, Writer(self.folders[0], total_steps=0, active=False)
        members: dict[int, Any] = {}
        self.writer.flush()
        for k, kept in enumerate(self.kept()):
            system, own = group.systems[k], {"dev": scores[k]} if scores[k] else {}
            step = group.steps[k]
            if self.keep_best:
                found = self.bests[k].restore_best(self.like.params, {})
                assert found is not None
                kept, step = found[0], found[1]
                if step != group.steps[k]:
                    params = self.full(k, kept, step)
                    own["dev"] = score_set(system, self.evaluators, params, "dev")
            else:
                value = own.get("dev", {}).get(self.metric, 0.0)
                self.bests[k].save_best(step, kept, self.about(k), value)
            self.bests[k].wait()
            if k not in self.lost:
                members[k] = kept
            params = self.full(k, kept, step)
            system, own = tune(system, params, own, self.evaluators, self.folders[k])
            if jax.process_index() == 0:
                folder = self.folders[k]
                own_metrics(self.writer.metrics, k, folder / "metrics.jsonl")
            costs = {"speed": speed(group.plans[k], self.first, compiles, self.clock)}
            conclude(system, params, step, own, costs, self.evaluators, self.folders[k], quiet)
        if len(members) > 1 and self.system.config.trial.ensembles:
            self.together(members)

    def about(self, k: int) -> dict[str, Any]:
        """What stands beside a trial's result."""
        return {**meta(self.group.systems[k]), "frozen": self.digests[k]}

    def together(self, members: dict[int, Any]) -> None:
        """The ensembles' scores, for `gather`. Soups are cooked of what is trained: frozen weights
        that differ, those of models begun anew, have no mean that anything was trained beside."""
        group, folder = self.group, self.folders[0].parent
        each = [self.full(k, kept, group.steps[k]) for k, kept in members.items()]
        found = ensemble.averaged(group, each, self.evaluators)
        of = {}
        if len({self.digests[k] for k in members}) == 1:
            first = next(iter(members))

            def formed(kept: Any) -> Any:
                return self.full(first, kept, group.steps[first])

            about = {"frozen": self.digests[first]}
            of = ensemble.soups(
                group, members, formed, about, self.metric, self.evaluators, folder.parent
            )
        if jax.process_index() == 0:
            write_json(folder / "together.json", {"mean_prediction": found, "soups": of})
