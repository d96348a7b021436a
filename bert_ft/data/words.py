"""Words -> sub-words, and windows over sentences that are longer than the model reads at once."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

# Blanks, ASCII's marks and Chinese characters; all of Unicode's punctuation comes with them.
_APART = re.compile(
    r"[\s!-/:-@\[-`{-~\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)


@dataclasses.dataclass(frozen=True)
class Words:
    """The words of one row. ids: the sub-words of each, at least one. begin, end: where each stands
    in `text`, in characters, end exclusive."""

    text: str
    ids: list[list[int]]
    begin: list[int]
    end: list[int]

    def __len__(self) -> int:
        return len(self.ids)


def split(
    tokenizer: Any, rows: Sequence[str | Sequence[str]], characters: bool = False
) -> list[Words]:
    """Words of texts, or of rows that are lists of words already.

    A text is cut at blanks, punctuation and Chinese characters, as BERT's tokenizer does before
    sub-words; of others (RoBERTa's, XLM-R's) the sub-words stay as they are, so that one which
    holds more than a word makes one of them. With `characters` it is cut into its characters.
    Blanks are no words. The text of a list is its words joined by single blanks. A given word (or
    character) that the tokenizer leaves nothing of becomes its unknown token, so that it is scored.
    """
    if characters:
        return _of_characters(tokenizer, rows)
    steps = _pre_tokenizers(tokenizer)
    cut = all(step["type"] != "BertPreTokenizer" for step in steps)
    out: list[Words] = []
    block = 4096  # rows at a time: the tokenizer's own objects are large
    for at in range(0, len(rows), block):
        part = rows[at : at + block]
        found: dict[int, Words] = {}
        for as_list in (True, False):
            which = [i for i, row in enumerate(part) if isinstance(row, str) != as_list]
            if not which:
                continue
            given: list[Any] = [part[i] for i in which]
            joined = as_list and _needs_text(steps)
            if joined:
                given = [" ".join(words) for words in given]
            encodings = tokenizer(
                given,
                is_split_into_words=as_list and not joined,
                add_special_tokens=False,
                truncation=False,
                padding=False,
                return_attention_mask=False,
                return_token_type_ids=False,
                verbose=False,
            ).encodings
            make: Any = functools.partial(_of_text, cut=cut)
            if as_list:
                make = functools.partial(_of_list, joined=joined)
            unknown = tokenizer.unk_token_id
            found |= {i: make(part[i], e, unknown) for i, e in zip(which, encodings, strict=True)}
        out.extend(found[i] for i in range(len(part)))
    return out


def _needs_text(steps: Sequence[dict[str, Any]]) -> bool:
    """Whether a tokenizer tells a word after a blank from one at the beginning, and so can't be
    given words: a byte-level BPE (RoBERTa's) that does not put a blank before the first one."""
    return any(step["type"] == "ByteLevel" and not step.get("add_prefix_space") for step in steps)


def _pre_tokenizers(tokenizer: Any) -> list[dict[str, Any]]:
    step = json.loads(tokenizer.backend_tokenizer.to_str()).get("pre_tokenizer")
    return step.get("pretokenizers", [step]) if step else []


def _of_list(words: Sequence[str], encoding: Any, unknown: int, joined: bool = False) -> Words:
    ids: list[list[int]] = [[] for _ in words]
    end = (np.cumsum([len(w) + 1 for w in words]) - 1).tolist() if words else []
    begin = [e - len(w) for e, w in zip(end, words, strict=True)]
    word_of: Any = encoding.word_ids
    if joined:  # a token of the joined text, or of the blank before a word, is of that word
        word_of = np.searchsorted(end, [a for a, _ in encoding.offsets], "right")
        word_of = np.minimum(word_of, len(words) - 1)  # blanks of the last begin at the text's end
    for token, word in zip(encoding.ids, word_of, strict=True):
        ids[word].append(token)
    return Words(" ".join(words), [i or [unknown] for i in ids], begin, end)


def _of_characters(tokenizer: Any, rows: Sequence[str | Sequence[str]]) -> list[Words]:
    places = [
        [k for k, c in enumerate(row) if not c.isspace()] if isinstance(row, str) else []
        for row in rows
    ]
    given = [
        [row[k] for k in at] if isinstance(row, str) else row
        for row, at in zip(rows, places, strict=True)
    ]
    return [
        Words(row, words.ids, at, [k + 1 for k in at]) if isinstance(row, str) else words
        for row, words, at in zip(rows, split(tokenizer, given), places, strict=True)
    ]


@functools.cache
def _apart(character: str) -> bool:
    """Whether a character is never part of a longer word."""
    return bool(_APART.match(character)) or unicodedata.category(character).startswith("P")


def _of_text(text: str, encoding: Any, unknown: int, cut: bool) -> Words:
    ids: list[list[int]] = []
    begin: list[int] = []
    end: list[int] = []
    last = None
    for token, word, (first, after) in zip(
        encoding.ids, encoding.word_ids, encoding.offsets, strict=True
    ):
        cuts = (
            cut
            and word == last
            and first >= end[-1]
            and any(map(_apart, text[max(first - 1, 0) : first + 1]))
            and text[begin[-1] : end[-1]].strip()
        )
        if word != last or cuts:
            ids.append([])
            begin.append(first)
            end.append(after)
            last = word
        ids[-1].append(token)
        begin[-1], end[-1] = min(begin[-1], first), after  # RoBERTa's blank can lie behind itself
    some = [i for i in range(len(ids)) if text[begin[i] : end[i]].strip()]
    ids, begin, end = [ids[i] for i in some], [begin[i] for i in some], [end[i] for i in some]
    for i, first in enumerate(begin):  # a sub-word, or a mask token, can hold the blank before
        while first + 1 < end[i] and text[first].isspace():
            first += 1
        begin[i] = first
    for i, after in enumerate(end):  # an accent that the normaliser dropped belongs to its letter
        limit = begin[i + 1] if i + 1 < len(begin) else len(text)
        while after < limit and unicodedata.category(text[after]).startswith("M"):
            after += 1
        end[i] = after
    return Words(text, ids, begin, end)


def special_ids(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that stand before and after a text."""
    out = tokenizer("a", return_special_tokens_mask=True, truncation=False, padding=False)
    ids, mask = out["input_ids"], out["special_tokens_mask"]
    first, last = mask.index(0), len(mask) - mask[::-1].index(0)
    return ids[:first], ids[last:]


@dataclasses.dataclass(frozen=True)
class Window:
    """Words first … last - 1 of a row; own_first … own_last - 1 are scored in this window."""

    first: int
    last: int
    own_first: int
    own_last: int


def windows(sizes: Sequence[int], room: int, stride: int) -> list[Window]:
    """Windows of at most `room` sub-words over words of these sizes (each 1 … room), neighbours
    sharing at most `stride` sub-words and never part of a word.

    Each word is scored once: where the smaller of its contexts, left and right, is the largest (the
    'max context' of Devlin et al.'s run_squad.py), in the earlier window where two are equal.
    """
    ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    count = len(sizes)
    spans: list[tuple[int, int]] = []
    first = 0
    while True:
        last = int(np.searchsorted(ends, ends[first] + room, "right")) - 1
        spans.append((first, last))
        if last == count:
            break
        # Shared sub-words at most `stride`, and room for at least the next word.
        least = max(ends[last] - stride, ends[last + 1] - room)
        first = max(int(np.searchsorted(ends, least, "left")), first + 1)
    owner = np.zeros(count, np.int64)
    most = np.full(count, -1, np.int64)
    for k, (first, last) in enumerate(spans):
        inside = np.arange(first, last)
        context = np.minimum(ends[inside] - ends[first], ends[last] - ends[inside + 1])
        better = context > most[inside]
        most[inside[better]], owner[inside[better]] = context[better], k
    own = np.searchsorted(owner, np.arange(len(spans) + 1), "left")
    assert (np.diff(owner) >= 0).all()
    return [Window(a, b, int(own[k]), int(own[k + 1])) for k, (a, b) in enumerate(spans)]


def lay_out(
    words: Sequence[Words], before: list[int], after: list[int], max_length: int, stride: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(tokens, offsets, row, truncated, fields) of the windows over all rows; the field word_index
    is each word's place among the words of all rows."""
    room = max_length - len(before) - len(after)
    tokens: list[list[int]] = []
    about: list[tuple[int, bool, int, int]] = []  # row, truncated, begins, ends
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("words", "owned", "begin", "end", "word_index")
    }
    first_word = 0
    for i, row in enumerate(words):
        ids = [word[:room] for word in row.ids]
        sizes = np.asarray([len(word) for word in ids], np.int64)
        cut = sizes != [len(word) for word in row.ids]
        begin, end = np.asarray(row.begin, np.int32), np.asarray(row.end, np.int32)
        for w in windows(sizes.tolist(), room, stride):
            inside = np.arange(w.first, w.last)
            tokens.append([*before, *(t for k in inside for t in ids[k]), *after])
            about.append((i, bool(cut[inside].any()), w.first == 0, w.last == len(row)))
            columns["words"].append(len(before) + np.cumsum(sizes[inside]) - sizes[inside])
            columns["owned"].append((inside >= w.own_first) & (inside < w.own_last))
            columns["begin"].append(begin[inside])
            columns["end"].append(end[inside])
            columns["word_index"].append(first_word + inside)
        first_word += len(row)
    lengths = [len(x) for x in columns["words"]]
    here = np.arange(max(1, *lengths, 1)) < np.asarray(lengths)[:, None]
    fields = {}
    for name, values in columns.items():
        fields[name] = np.full(here.shape, -1 if name == "words" else 0, np.int32)
        fields[name][here] = np.concatenate(values)
    row_of, truncated, begins, ends = (np.asarray(x) for x in zip(*about, strict=True))
    fields["edges"] = np.stack([begins, ends], axis=1).astype(np.int32)
    fields["row_words"] = np.asarray([len(words[i]) for i in row_of], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in tokens])]).astype(np.int64)
    flat = np.asarray([t for window in tokens for t in window], np.int32)
    return flat, offsets, row_of.astype(np.int64), truncated.astype(bool), fields
