"""Places for a prompt's soft tokens in encoded data: they are laid out, packed and counted as all
other tokens are, so that a packed step of theirs is the padded one."""

from __future__ import annotations

import dataclasses

import numpy as np

from bert_ft.data.encode import Encoded


def with_places(data: Encoded, length: int) -> Encoded:
    """`length` more tokens behind the first of each sequence, at positions 1 to `length`. The model
    does not look up what they are. Fields of single tokens, which none of the tasks that may have a
    prompt reads, are left out."""
    if not length:
        return data
    count = np.ones(len(data.tokens), np.int64)
    count[data.offsets[:-1]] += length
    return dataclasses.replace(
        data,
        tokens=np.repeat(data.tokens, count),
        types=np.repeat(data.types, count),
        offsets=data.offsets + length * np.arange(len(data.offsets)),
        token_fields={},
    )
