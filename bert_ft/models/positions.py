"""A pretrained table of positions for longer texts than it was trained on."""

from __future__ import annotations

import numpy as np

TABLE = "encoder/position/embedding"  # its path among the parameters


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
