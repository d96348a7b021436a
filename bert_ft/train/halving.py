"""Which trial each place of a program computes, since when, and which trials are stopped early.

Successive halving (Jamieson & Talwalkar 2016): after eval.every_steps steps of its own, and eta,
eta^2, … times as many, a trial goes on where it is among the best 1/eta of those that have come so
far. Trials that wait take the places of those that stop or end; they meet the scores that are there
already (the asynchronous kind, Li et al. 2020, with stopping in the place of promotion).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from bert_ft.evals.merit import merit

Seat = tuple[int, int, int]  # a trial, the program's step before its first, and after its last
LOST = "its loss is not finite"


@dataclasses.dataclass(frozen=True)
class Stop:
    """Where a trial was stopped: after `step` steps of its own, with this score (None: undefined),
    as one of so many that had come to the rung; 0 where it was no rung's decision. `why`: LOST, or
    '' of one that was stopped for its score."""

    step: int
    score: float | None
    among: int
    why: str = ""


@dataclasses.dataclass
class Places:
    """`steps` of each trial; `every`: steps of its own between two evaluations, 0 for at its end
    only; `eta`: 0 stops none; `metric`: that of the scores. `trial` of each place is what it
    computes, or computed last; `begun` of each trial the program's step before its first, None
    while it waits."""

    steps: list[int]
    every: int
    eta: int
    metric: str
    trial: list[int]
    begun: list[int | None]
    rungs: dict[int, dict[int, float | None]] = dataclasses.field(default_factory=dict)
    stopped: dict[int, Stop] = dataclasses.field(default_factory=dict)

    def seats(self) -> list[Seat]:
        """Of each place, as long as nothing changes."""
        found = []
        for k in self.trial:
            begun = self.begun[k] or 0
            done = self.stopped[k].step if k in self.stopped else self.steps[k]
            found.append((k, begun, begun + done))
        return found

    def age(self, k: int, step: int) -> int:
        """Steps of its own that a trial has done after `step` of the program's."""
        return step - (self.begun[k] or 0)

    def live(self, step: int) -> np.ndarray:
        """bool (trials,): those that have a step to do at `step`."""
        out = np.zeros(len(self.steps), bool)
        out[[k for k, _, end in self.seats() if step < end]] = True
        return out

    def recorded(self, step: int, every: int) -> np.ndarray:
        """bool (trials,): those that have a place and of which `step`, the last of the program's,
        is recorded: each multiple of `every` steps of its own, and its end."""
        out = np.zeros(len(self.steps), bool)
        for k in self.trial:
            age = self.age(k, step)
            out[k] = age % max(1, every) == 0 or age == self.steps[k]
        return out

    def last(self) -> int:
        """The step at which no trial that has a place has anything left to do."""
        return max(end for _, _, end in self.seats())

    def due(self, step: int) -> list[int]:
        """The places whose trial is to be scored after `step` steps of the program."""
        found = []
        for place, k in enumerate(self.trial):
            age = self.age(k, step)
            at_its_end = age == self.steps[k]
            between = self.every and 0 < age < self.steps[k] and age % self.every == 0
            if k not in self.stopped and (at_its_end or between):
                found.append(place)
        return found

    def judge(self, step: int, scores: Mapping[int, float | None]) -> list[int]:
        """Takes the scores of trials at `step`; the trials that stop there. Of two that score the
        same the first one is the better."""
        arrived = [k for k in scores if self._at_rung(k, step)]
        for k in arrived:
            self.rungs.setdefault(self.age(k, step), {})[k] = scores[k]
        losers = []
        for k in arrived:
            rung = self.rungs[self.age(k, step)]
            order = sorted(rung, key=lambda one: (-merit(self.metric, rung[one]), one))
            if order.index(k) >= max(1, len(rung) // self.eta):
                losers.append(k)
                self.stop(k, step, scores[k], len(rung))
        return losers

    def _at_rung(self, k: int, step: int) -> bool:
        age = self.age(k, step)
        if not self.eta or not 0 < age < self.steps[k] or age % self.every:
            return False
        turns = age // self.every
        while turns % self.eta == 0:
            turns //= self.eta
        return turns == 1

    def stop(self, k: int, step: int, score: float | None, among: int = 0, why: str = "") -> None:
        self.stopped[k] = Stop(self.age(k, step), score, among, why)

    def free(self, step: int) -> list[int]:
        """The places that a trial which waits could have at `step`. That of a lost one is free a
        step later than it ended: by then its loss is known, whether or not there was a save."""
        late = [k in self.stopped and self.stopped[k].why == LOST for k in self.trial]
        ends = [end + lost for (_, _, end), lost in zip(self.seats(), late, strict=True)]
        return [place for place, end in enumerate(ends) if end <= step]

    def waiting(self) -> list[int]:
        return [k for k, begun in enumerate(self.begun) if begun is None]

    def fill(self, step: int) -> list[tuple[int, int, int]]:
        """Gives the places of trials that have stopped or ended to those that wait; [(place, the
        trial that leaves it, the one that begins there)]."""
        moved = []
        for place, new in zip(self.free(step), self.waiting(), strict=False):
            moved.append((place, self.trial[place], new))
            self.trial[place], self.begun[new] = new, step
        return moved

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        rungs = [[rung, k, v] for rung, of in self.rungs.items() for k, v in of.items()]
        stopped = [[k, *dataclasses.astuple(stop)] for k, stop in self.stopped.items()]
        return {"trial": self.trial, "begun": self.begun, "rungs": rungs, "stopped": stopped}

    def restore(self, record: Mapping[str, Any]) -> None:
        self.trial, self.begun = list(record["trial"]), list(record["begun"])
        for rung, k, value in record["rungs"]:
            self.rungs.setdefault(rung, {})[k] = value
        self.stopped = {k: Stop(*stop) for k, *stop in record["stopped"]}
