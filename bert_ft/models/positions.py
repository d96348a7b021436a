"""The table of positions: its rows, and one for longer texts than it was trained on."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

TABLE = "encoder/position/embedding"  # its path among the parameters


def rows(batch: Mapping[str, jax.Array], offset: int, pad: int) -> jax.Array:
    """int32 (R, S): the row of the table for each token of a batch, `offset` more than its
    position. Where that is not 0, as in RoBERTa's, a token `pad` that is written inside a text has
    the row before it, the padding's own, and is not counted: as transformers has it."""
    position = batch["positions"]
    if not offset:
        return position
    pads = ((batch["tokens"] == pad) & (batch["segments"] > 0)).astype(jnp.int32)
    so_far = jnp.cumsum(pads, axis=1)
    begin = jnp.arange(position.shape[1]) - position  # of each token's sequence
    within = so_far - jnp.take_along_axis(so_far - pads, begin, axis=1)
    return offset + jnp.where(pads > 0, -1, position - within)


def stretch(table_PxH: np.ndarray, rows: int, offset: int) -> np.ndarray:
    """The table with `rows` rows, float32: positions spread evenly over the old ones, and between
    two of them the linear mix, so that the first and last stay what they were (as Chen et al. 2023,
    2.2, spread positions). The first `offset` rows stand for no position and stay."""
    fixed, old_PxH = table_PxH[:offset], table_PxH[offset:]
    at = np.linspace(0, len(old_PxH) - 1, rows - offset)
    below = np.minimum(at.astype(np.int64), max(len(old_PxH) - 2, 0))
    above = np.minimum(below + 1, len(old_PxH) - 1)
    share = (at - below)[:, None]
    mixed = (1 - share) * old_PxH[below] + share * old_PxH[above]
    return np.concatenate([fixed, mixed]).astype(np.float32)
