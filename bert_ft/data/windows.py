"""Questions with slices of their contexts: every token of a context is in at least one window."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from bert_ft.errors import InputError


@dataclasses.dataclass(frozen=True)
class Windows:
    """W windows, those of a row one after the other.

    tokens int32 (T,), types int8 (T,), offsets int64 (W + 1,): as in Encoded. row int64 (W,).
    context int32 (W, 2): the window's first token of the context, and one past its last.
    characters int32 (T, 2): where each token of the context lies in it, end exclusive, with the
    accents and other marks after it that are no token themselves; else 0, 0.
    cut bool (W,): whether the question was longer than allowed.
    """

    tokens: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    row: np.ndarray
    context: np.ndarray
    characters: np.ndarray
    cut: np.ndarray


def window_room(tokenizer: Any, max_length: int, max_question: int, stride: int) -> int:
    """Tokens of the context in a window whose question is the longest allowed. Raises InputError
    where windows that share `stride` of them would not advance."""
    if (side := getattr(tokenizer, "truncation_side", "right")) != "right":
        raise InputError(f"the tokenizer's truncation_side is {side!r}; accepted: 'right'")
    special = tokenizer.num_special_tokens_to_add(pair=True)
    room = max_length - max_question - special
    if room <= stride:
        raise InputError(
            f"config.task.stride is {stride}; accepted: less than {room}, the room that "
            f"config.data.max_length ({max_length}) leaves beside config.task.max_question "
            f"({max_question}) and {special} special tokens"
        )
    return room


def cut_question(tokenizer: Any, question: str, max_question: int) -> str:
    """The beginning of a question that is at most so many tokens."""
    while True:
        ends = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        if len(ends["input_ids"]) <= max_question:
            return question
        # A word that is cut can fall into other pieces, hence the loop; it always gets shorter.
        shorter = question[: ends["offset_mapping"][max_question - 1][1]]
        question = shorter if len(shorter) < len(question) else question[:-1]


def make_windows(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    max_length: int,
    max_question: int,
    stride: int,
) -> Windows:
    """Windows of at most `max_length` tokens, [CLS] question [SEP] slice [SEP] (or what the
    tokenizer makes of a pair); consecutive slices of a context share `stride` tokens."""
    window_room(tokenizer, max_length, max_question, stride)
    tokens, types, rows, bounds, characters, cut = [], [], [], [], [], []
    block = 512  # rows at a time: the tokenizer's own objects are large
    for at in range(0, len(questions), block):
        asked = list(questions[at : at + block])
        counts = tokenizer(asked, add_special_tokens=False, return_attention_mask=False)
        long = [len(ids) > max_question for ids in counts["input_ids"]]
        asked = [
            cut_question(tokenizer, text, max_question) if too_long else text
            for text, too_long in zip(asked, long, strict=True)
        ]
        out = tokenizer(
            asked,
            list(contexts[at : at + block]),
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        for i, row in enumerate(out["overflow_to_sample_mapping"]):
            encoding = out.encodings[i]
            mine = np.asarray([side == 1 for side in encoding.sequence_ids])
            inside = np.flatnonzero(mine)
            tokens.append(np.asarray(encoding.ids, np.int32))
            types.append(np.asarray(out["token_type_ids"][i], np.int8))
            rows.append(at + row)
            bounds.append((inside[0], inside[-1] + 1) if len(inside) else (0, 0))
            characters.append(np.where(mine[:, None], np.asarray(encoding.offsets, np.int32), 0))
            cut.append(long[row])
    first = np.searchsorted(rows, np.arange(len(contexts) + 1))
    for row, context in enumerate(contexts):
        if not context.isascii():
            _take_marks(context, characters[first[row] : first[row + 1]])
    lengths = np.asarray([len(t) for t in tokens], np.int64)
    return Windows(
        tokens=np.concatenate(tokens),
        types=np.concatenate(types),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        row=np.asarray(rows, np.int64),
        context=np.asarray(bounds, np.int32),
        characters=np.concatenate(characters).astype(np.int32),
        cut=np.asarray(cut, bool),
    )


def _take_marks(context: str, windows: Sequence[np.ndarray]) -> None:
    """Moves the ends of tokens behind the marks (an accent, a variation selector) that follow them
    and are in no token: those that the normaliser drops. `windows`: all of the context's."""
    marks = {k for k, c in enumerate(context) if unicodedata.category(c).startswith("M")}
    marks.difference_update(*(places[:, 0].tolist() for places in windows))
    for places in windows if marks else ():
        for i in np.flatnonzero(np.isin(places[:, 1], list(marks - {0}))):
            while int(places[i, 1]) in marks:
                places[i, 1] += 1


def find_span(windows: Windows, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """int32 (W, 2): first and last token of the characters [start, end) of each window's row,
    counted from the window's first token; 0, 0 (the [CLS]) where it does not hold all of them.

    start and end are int64 (rows,); -1 for a row without an answer. Characters that are part of a
    token count as all of it.
    """
    found = np.zeros((len(windows.row), 2), np.int32)
    for w, row in enumerate(windows.row):
        (first, last), begin = windows.context[w], windows.offsets[w]
        if start[row] < 0 or last <= first:
            continue
        places = windows.characters[begin + first : begin + last]
        # Past the window's own edges lie tokens of the context only where another window follows.
        opens = w == 0 or windows.row[w - 1] != row or places[0, 0] <= start[row]
        closes = w + 1 == len(windows.row) or windows.row[w + 1] != row or places[-1, 1] >= end[row]
        touched = np.flatnonzero((places[:, 1] > start[row]) & (places[:, 0] < end[row]))
        if opens and closes and len(touched):
            found[w] = first + touched[0], first + touched[-1]
    return found
