"""The trials that a program holds: their states in waves, and the frozen parameters beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bert_ft.errors import InputError
from bert_ft.train import fleet, optim, phases
from bert_ft.train.checkpoint import Checkpoints
from bert_ft.train.group import Group, abstract_trial, alone, quiet
from bert_ft.train.halving import Places
from bert_ft.train.knobs import knobs_of
from bert_ft.train.start import abstract_state, fresh_state, frozen_again, frozen_digest, reported
from bert_ft.train.step import TrainState


class Held:
    """`waves`: the states, without what is frozen; `frozen` of each wave one tree, with a leading
    axis where its trials' differ (`alike` is False); `digests` of the trials that have begun.
    Frozen parameters that are the same are there once."""

    def __init__(self, group: Group, places: Places):
        self.group, self.places = group, places
        self.mesh, self.size = group.systems[0].mesh, len(group.waves[0])
        self.digests: dict[int, str] = {}
        self._known: dict[str, Any] = {}  # frozen parameters by their digest
        self.waves: list[fleet.Trial] = []
        self.alike, self.frozen = True, list[Any]()
        config = group.systems[0].config
        self.like = abstract_state(group.systems[0], optim.make_optimizer(config, 1)).params

    def begin(self, saved: Checkpoints, say: Callable[[str], None]) -> tuple[int, bool]:
        """Takes the trials of the last checkpoint, or new ones; (the step to go on from, whether
        the evaluation that may be due there was made). `places` is then as it was."""
        group = self.group
        like = fleet.abstract_wave(alone(abstract_trial(group, 0)), self.size, self.mesh)
        restored = saved.restore([like] * len(group.waves), group.meta)
        if restored is None:
            for wave in group.waves:
                begun = (self._fresh(k, quiet if k else say) for k in wave)
                self.waves.append(fleet.stack(begun, self.size, self.mesh))
            step, assessed = 0, True
        else:
            self.waves, step, about = restored
            say(f"start: own checkpoint of step {step}, {group.waves[-1].stop} trials")
            phases.add(about.get("seconds", {}))
            self.places.restore(about["places"])
            for k, digest in zip(self.places.trial, about["frozen"], strict=True):
                self.frozen_of(k, digest)
            assessed = about["assessed"]
        waves = [self._here(w) for w in range(len(group.waves))]
        self.alike = all(one is each[0] for each in waves for one in each)
        self.frozen = [self._together(each) for each in waves]
        return step, assessed

    def _fresh(self, k: int, say: Callable[[str], None]) -> fleet.Trial:
        """A trial before its first step; its frozen parameters are known from here on."""
        system = self.group.systems[k]
        state = fresh_state(system, optim.make_optimizer(system.config, 1), say)
        knobs = knobs_of(system.config, self.group.steps[k], system.task)
        digest = frozen_digest(state.frozen)
        self.digests[k] = digest
        self._known.setdefault(digest, state.frozen)
        return alone(fleet.make_trial(state, knobs, self.mesh))

    def frozen_of(self, k: int, digest: str) -> Any:
        """What a trial's parameters stand beside, made anew where it is not there; its digest must
        be this."""
        self.digests[k] = digest
        if digest not in self._known:
            system = self.group.systems[k]
            optimizer = optim.make_optimizer(system.config, 1)
            self._known[digest] = frozen_again(system, optimizer, digest, quiet)
        return self._known[digest]

    def beside(self, k: int) -> Any:
        """The frozen parameters of a trial that has begun."""
        return self._known[self.digests[k]]

    def _here(self, w: int) -> list[Any]:
        return [self.beside(self.places.trial[place]) for place in self.group.waves[w]]

    def _together(self, each: list[Any]) -> Any:
        return each[0] if self.alike else fleet.stack(each, self.size, self.mesh)

    def state(self, place: int) -> fleet.Trial:
        """The trial in a place, without what is frozen."""
        return fleet.take(self.waves[place // self.size], place % self.size, self.size)

    def whole(self, place: int) -> TrainState:
        """That of a trial, with what is frozen."""
        frozen = self.beside(self.places.trial[place])
        return dataclasses.replace(self.state(place).state, frozen=frozen)

    def kept(self, place: int) -> Any:
        """What is kept of the trial in a place as its result, where an evaluation finds it."""
        at = jax.tree.map(lambda s: s.sharding, self.like)
        return jax.device_put(reported(self.group.systems[0], self.state(place).state), at)

    def change(self, moved: Mapping[int, int]) -> None:
        """{place: trial}: begins these trials, in the places that they have by now."""
        for place, k in moved.items():
            w = place // self.size
            with phases.within("restoring", f"the start of trial {self.group.numbers[k]}"):
                begun = self._fresh(k, quiet)
            self.waves[w] = fleet.put(self.waves[w], place % self.size, begun, self.size)
            del begun  # before the next is made
        for w in sorted({place // self.size for place in moved}):
            each = self._here(w)
            if self.alike and any(one is not each[0] for one in each):
                here = [k for place, k in moved.items() if place // self.size == w]
                numbers = ", ".join(str(self.group.numbers[k]) for k in here)
                raise InputError(
                    f"trial {numbers} freezes other weights than those beside it, of a model that "
                    "begins from nothing; accepted: config.model.pretrained, or trial.width=1"
                )
            self.frozen[w] = self._together(each)
