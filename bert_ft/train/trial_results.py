"""What the trials of a program leave: what is kept of each while they run, and once all have ended
a record each, in its own folder, and what they are worth together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from bert_ft.errors import InputError
from bert_ft.train import ensemble
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.finish import conclude, eval_programs, judge_set, tune
from bert_ft.train.gather import STOPPED, own_metrics, together_path
from bert_ft.train.group import Group
from bert_ft.train.halving import Places
from bert_ft.train.held import Held
from bert_ft.train.record import StepClock, keep_speed, old_costs, speed, write_json
from bert_ft.train.start import full, meta
from bert_ft.train.writer import Writer


class Results:
    """`bests`: where what is kept of each trial goes, `folders` theirs; `scores` on dev of those
    that have come to their end."""

    def __init__(
        self,
        group: Group,
        places: Places,
        held: Held,
        bests: list[Checkpoints],
        folders: list[Path],
    ):
        self.group, self.places, self.held = group, places, held
        self.bests, self.folders = bests, folders
        self.config = group.systems[0].config
        self.programs = eval_programs(group.systems[0])
        self.scores: dict[int, dict[str, float]] = {}

    def full(self, k: int, kept: Any, step: int) -> Any:
        """The parameters that the model is given of what is kept of a trial."""
        return full(self.group.systems[0], kept, self.held.beside(k), step)

    def keep(self, k: int, step: int, kept: Any, value: float) -> None:
        about = {**meta(self.group.systems[k]), "frozen": self.held.digests[k]}
        self.bests[k].save_best(step, kept, about, value)

    def keep_end(self, k: int, place: int) -> None:
        """What is kept of a trial's end, as that which it reports."""
        value = self.scores.get(k, {}).get(self.places.metric, 0.0)
        self.keep(k, self.group.steps[k], self.held.kept(place), value)
        self.bests[k].wait()

    def conclude(self, writer: Writer, first: int, compiles: int, clock: StepClock) -> None:
        """Scores and records each trial, then their averages. No states are held any more."""
        group, places = self.group, self.places
        if not self.config.eval.keep_best:
            for place, k in enumerate(places.trial):
                if k not in places.stopped:
                    self.keep_end(k, place)
        self.held.waves.clear()  # what follows needs no moments
        writer.flush()
        members = ensemble.Members(group.systems[0])
        self._keep_speeds(first, compiles, clock)
        for k, folder in enumerate(self.folders):
            begun = places.begun[k] or 0
            if jax.process_index() == 0:
                own_metrics(writer.metrics, k, folder / "metrics.jsonl", begun)
            if k in places.stopped:
                if jax.process_index() == 0:
                    stop = {"metric": places.metric, **dataclasses.asdict(places.stopped[k])}
                    write_json(folder / STOPPED, stop)
                continue
            self._conclude_one(k, members, old_costs(folder))
        if self.config.trial.ensembles:
            workdir = self.folders[0].parents[1]
            of = ensemble.together(
                group, members, self._kept, self.full, self.held.digests, workdir
            )
            if jax.process_index() == 0:  # the last of all: without it the run is not over
                write_json(together_path(workdir, group.tag), of)

    def _keep_speeds(self, first: int, compiles: int, clock: StepClock) -> None:
        for k, folder in enumerate(self.folders):
            done = max(0, first - (self.places.begun[k] or 0))
            if k not in self.places.stopped and done < self.group.steps[k]:
                keep_speed(folder, speed(self.group.plans[k], done, compiles, clock))

    def _restored(self, k: int) -> tuple[Any, int]:
        """(what was kept of a trial, its step)."""
        found = self.bests[k].restore_best(self.held.like, {})
        if found is None:
            raise InputError(
                f"{self.folders[k]}: what was kept of a trial that has ended is not there; put it "
                "back, or start again with another --workdir"
            )
        self.held.frozen_of(k, found[2].get("frozen", ""))
        return found[0], found[1]

    def _kept(self, k: int) -> Any:
        return self._restored(k)[0]

    def _conclude_one(self, k: int, members: ensemble.Members, costs: dict[str, Any]) -> None:
        system, folder = self.group.systems[k], self.folders[k]
        kept, step = self._restored(k)
        params, own = self.full(k, kept, step), {}
        if "dev" in system.sets:
            known = self.scores.get(k) if step == self.group.steps[k] else None
            if known is None or members.wanted:
                predicted, known = judge_set(system, self.programs, params, "dev")
                members.add("dev", predicted)
            own["dev"] = known
            members.dev[k] = known[self.places.metric]
        members.numbers.append(k)
        system, own = tune(system, params, own, self.programs, folder)
        silent = Writer(folder, total_steps=0, active=False)
        on_test = conclude(system, params, step, own, costs, self.programs, folder, silent)
        if on_test is not None:
            members.add("test", on_test)
