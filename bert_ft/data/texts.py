"""Strings as arrays, for what scoring reads from an encoded set: UTF-8 bytes and offsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def pack_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 (bytes,), int64 (len(texts) + 1,)): text i is bytes[offsets[i]:offsets[i + 1]]."""
    encoded = [text.encode("utf-8") for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8).copy(), offsets


def text_at(packed: np.ndarray, offsets: np.ndarray, i: int) -> str:
    """The i-th of the texts that were packed."""
    return packed[offsets[i] : offsets[i + 1]].tobytes().decode("utf-8")
