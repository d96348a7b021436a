"""Several heads on one encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bert_ft.models import ops
from bert_ft.models.bert import Batch
from bert_ft.models.heads import kind_of
from bert_ft.models.noise import Noise


def kinds_of(head: Any) -> str | Mapping[str, str]:
    """The kind of a head, or {part: kind} of a partial of a MultiHead."""
    if getattr(head, "func", None) is MultiHead:
        return {part: kind_of(own) for part, own in head.args[0]}
    return kind_of(head)


class MultiHead(nn.Module):
    """The heads of the parts, each reading the same last hidden states. Gives {part: its outputs},
    and under '' {'learnt': float32 (parts,)}, zeros at first, where the losses' weights are learnt.

    What a head reads passes a tap: the gradient with respect to the variable 'PART-tap' of the
    collection 'perturbations', where that is given, is that part's gradient at the encoder's
    output."""

    heads: tuple[tuple[str, Any], ...]  # (part, partial of a head) in the parts' order
    learnt: str  # the name of the parameter that the weights are made of; '' for none
    rate: float
    config: Any
    dtype: jnp.dtype

    @property
    def first_only(self) -> bool:
        made = (head(self.config, self.dtype, parent=None) for _, head in self.heads)
        return all(head.first_only for head in made)

    @nn.compact
    def __call__(self, hidden: jax.Array, batch: Batch, noise: Noise | None) -> dict[str, Any]:
        first = hidden if self.first_only else self._of_texts(hidden, batch)
        outputs: dict[str, Any] = {"": {}}
        for part, head in self.heads:
            top = head(self.config, self.dtype, name=part)
            read = self.perturb(f"{part}-tap", first if top.first_only else hidden)
            outputs[part] = top(read, batch, noise)
        if self.learnt:
            raw = self.param(self.learnt, nn.initializers.zeros, (len(self.heads),), jnp.float32)
            outputs[""] = {"learnt": ops.scaled(raw, self.rate)}
        return outputs

    def _of_texts(self, hidden: jax.Array, batch: Batch) -> jax.Array:
        """(R, E, H) of (R, S, H): what heads of whole texts read, such as an LSTM's pooled states,
        for its first token has not read the text."""
        if hasattr(self.config, "pooled"):
            return self.config.pooled(hidden, batch["segments"], batch["slots"])
        return jnp.take_along_axis(hidden, batch["slots"][..., None], axis=1)
