"""Learning rates of parts of the model: factors of the run's own (train/optim.py `by_part`)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bert_ft.errors import InputError
from bert_ft.method_checks import rate_rules
from bert_ft.methods.method import Method, matched

_LAYER = re.compile(r"^encoder/layer_(\d+)/")


class LayerDecay(Method):
    """The rate of layer l of L is decay^(L - l) times that of the head, the last of them (Howard &
    Ruder 2018, 3.2; Clark et al. 2020, appendix B). The embeddings are layer 0, the encoder's first
    layer is 1, what is no part of the encoder has the factor 1. L - 1 is the last of the encoder's
    layers in which something is trained."""

    name = "layer_decay"

    def rates(self, paths: Sequence[str]) -> dict[str, float]:
        numbers = {p: int(m[1]) for p in paths if (m := _LAYER.search(p))}
        if not numbers:
            raise InputError(
                "config.methods.use names layer_decay, and no layer of the encoder is trained; "
                "accepted: a run that trains some"
            )
        head = max(numbers.values()) + 2
        depth = {p: numbers.get(p, -1) + 1 for p in paths if p.startswith("encoder/")}
        return {p: self.knobs.decay ** (head - d) for p, d in depth.items()}


class Rates(Method):
    """A factor for the parameters that a regex is found in; the first that is counts."""

    name = "rates"

    def rates(self, paths: Sequence[str]) -> dict[str, float]:
        rules = rate_rules(self.knobs.rules)
        for pattern, _ in rules:
            matched("rates.rules", pattern, paths, "trained parameters")
        found = {p: [f for pattern, f in rules if re.search(pattern, p)] for p in paths}
        return {path: factors[0] for path, factors in found.items() if factors}
