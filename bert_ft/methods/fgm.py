"""The fast gradient method on word vectors (Miyato, Dai & Goodfellow 2017, section 3, eq. 5 to 7).

r = epsilon g / |g|, g being the gradient of a sequence's loss with respect to its word vectors and
|g| the L2 norm over the sequence; the loss is (L(x) + w L(x + r)) / (1 + w). Their vectors are
normalised; BERT's are not, as in the common use of the method on it, so epsilon is in the units of
the word table.
"""

from __future__ import annotations

from typing import Any

import jax

from bert_ft.methods.method import SHIFT, Method, Pass, Slope
from bert_ft.methods.shifts import beside, no_shift, scaled_to
from bert_ft.models.bert import Batch


class Fgm(Method):
    """Two passes a step: the gradient that r needs is that of the clean loss."""

    name = "fgm"

    def gradient(self, slope: Pass, task: Any, model: Any) -> Pass:
        epsilon, weight = self.knobs.epsilon, self.knobs.weight

        def both(params: Any, batch: Batch, rng: jax.Array | None) -> Slope:
            clean = slope(params, {**batch, SHIFT: no_shift(model, batch)}, rng)
            assert clean.by_shift is not None
            shift = scaled_to(clean.by_shift, batch, epsilon)
            moved = slope(params, {**batch, SHIFT: shift}, rng)
            return beside(clean, moved, weight)

        return both
