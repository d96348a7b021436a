"""What the trials of a program stand beside: frozen parameters, which are there once where they are
the same for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bert_ft.errors import InputError
from bert_ft.train import fleet
from bert_ft.train.group import Group, frozen_of
from bert_ft.train.halving import Places
from bert_ft.train.start import frozen_digest


class Beside:
    """`of_wave`: of each wave one tree, with a leading axis where its trials' differ (`alike` is
    False); `digests` of the trials that have begun."""

    def __init__(self, group: Group, places: Places, trials: Sequence[fleet.Trial]):
        self.group, self.places = group, places
        self.mesh = group.systems[0].mesh
        self._frozen = {k: t.state.frozen for k, t in zip(places.trial, trials, strict=True)}
        self.digests = {k: frozen_digest(frozen) for k, frozen in self._frozen.items()}
        waves = [self._here(w) for w in range(len(group.waves))]
        self.alike = all(one is each[0] for each in waves for one in each)
        self.of_wave = [self._together(each) for each in waves]

    def _here(self, w: int) -> list[Any]:
        return [self._frozen[self.places.trial[place]] for place in self.group.waves[w]]

    def _together(self, each: list[Any]) -> Any:
        return each[0] if self.alike else fleet.stack(each, self.mesh)

    def begin(self, w: int, frozen: Mapping[int, Any]) -> None:
        """Trials begin in a wave, in the places that they have by now; `frozen` of each."""
        for k, own in frozen.items():
            digest = frozen_digest(own)
            same = next((other for other, known in self.digests.items() if known == digest), None)
            self._frozen[k] = own if same is None else self._frozen[same]
            self.digests[k] = digest
        each = self._here(w)
        if self.alike and any(one is not each[0] for one in each):
            numbers = ", ".join(str(self.group.numbers[k]) for k in frozen)
            raise InputError(
                f"trial {numbers} freezes other weights than those beside it, of a "
                "model that begins from nothing; accepted: config.model.pretrained, or "
                "trial.width=1"
            )
        self.of_wave[w] = self._together(each)

    def of(self, k: int, digest: str = "") -> Any:
        """Of a trial; `digest` is that of one which ended before this start."""
        if k not in self._frozen:
            self.digests[k], self._frozen[k] = digest, frozen_of(self.group, k, digest)
        return self._frozen[k]
