"""Rows + tokenizer -> ragged integer arrays, cached on disk under a hash of all that made them.

The cache entry is a directory of .npy files, written under a temporary name and renamed, and read
back memory-mapped: a second start reads no text and runs no tokenizer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote

import numpy as np
from tqdm import tqdm

from bert_ft import paths
from bert_ft.data.epochs import Order
from bert_ft.data.rows import Readable, Rows
from bert_ft.data.tokenizer import tokenizer_hash
from bert_ft.errors import InputError

FORMAT = 1  # of the cache; raise it when what is stored changes


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A data set as the model reads it: N examples of `pieces` token sequences each.

    tokens int32 (T,), types int8 (T,): all sequences one after the other; sequence i is
    tokens[offsets[i]:offsets[i + 1]]; example e owns sequences e * pieces … (e + 1) * pieces - 1.
    row int64 (N,): the source row of each example, so a prediction can be joined to its text; -1
    for one of no row, such as a candidate that all rows share, which stand behind the others.
    truncated bool (N,). fields: per example, (N, …). token_fields: per token, (T, …).
    fitted: what was learnt from the training rows (label names); source_rows: rows that were read.
    aside: arrays of any shape that scoring reads on the host and no batch holds (gold texts).
    order: how training goes through the examples, where an epoch is not each of them once.
    read_from: the fingerprint of the source as it was read.
    """

    tokens: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    row: np.ndarray
    truncated: np.ndarray
    fields: Mapping[str, np.ndarray]
    token_fields: Mapping[str, np.ndarray]
    pieces: int
    fitted: Mapping[str, Any]
    source_rows: int
    skipped: Sequence[str] = ()
    fingerprint: str = ""
    aside: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    order: Order | None = None
    read_from: str = ""

    def __len__(self) -> int:
        return len(self.row)

    @property
    def of_an_epoch(self) -> float:
        """How many examples an epoch draws; the mean, where that differs."""
        return float(np.mean([*self.order.sizes])) if self.order else len(self)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """int32 (N, pieces): tokens of each sequence."""
        return np.diff(self.offsets).astype(np.int32).reshape(-1, self.pieces)

    @functools.cached_property
    def samples(self) -> np.ndarray:
        """uint64 (N,): a number of each example's length and of five of its tokens; those of
        examples that are alike are the same."""
        begins, lengths = self.offsets[: -1 : self.pieces], self.lengths.sum(axis=1)
        found = lengths.astype(np.uint64)
        for k in range(5):
            at = np.minimum(begins + lengths * k // 5, len(self.tokens) - 1)
            found = found * np.uint64(0x9E3779B97F4A7C15) + self.tokens[at].astype(np.uint64)
        return found


class Encoder(Protocol):
    """What a task gives to encoding. `signature` names every setting that changes the result. A
    task that reads training rows, or rows to predict for, otherwise than those of a set to score
    has `encode_training`, or `encode_unlabelled`, of the same form as `encode`."""

    def signature(self) -> dict[str, Any]: ...
    def columns(self) -> list[str]: ...
    def fit(self, rows: Rows) -> dict[str, Any]: ...
    def encode(
        self, rows: Rows, tokenizer: Any, max_length: int, fitted: Mapping[str, Any]
    ) -> Encoded: ...


class ReadsBoth:
    """An Encoder whose `encode` reads rows to predict for, too: with labelled=False."""

    encode: Callable[..., Encoded]

    def encode_unlabelled(self, *given: Any) -> Encoded:
        return self.encode(*given, labelled=False)


def encoder_to_predict(task: Any) -> Callable[..., Encoded]:
    """How a task reads rows to predict for."""
    return getattr(task, "encode_unlabelled", task.encode)


def tokenize(
    tokenizer: Any, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(tokens int32 (T,), types int8 (T,), offsets int64 (N + 1,), truncated bool (N,)).

    Over-long inputs are cut at the end of the (longer) text, or on the side that the tokenizer's
    truncation_side names, and counted; the special tokens stay.
    """
    tokens, types, lengths, cut = [], [], [], []
    block = 4096  # texts at a time: the tokenizer's own objects are large
    quick = len(texts) < 50_000
    for at in tqdm(range(0, len(texts), block), "tokenizing", disable=quick, unit="block"):
        second = list(pairs[at : at + block]) if pairs is not None else None
        out = tokenizer(
            list(texts[at : at + block]),
            second,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        for ids, kinds, encoding in zip(
            out["input_ids"], out["token_type_ids"], out.encodings, strict=True
        ):
            tokens.append(np.asarray(ids, np.int32))
            types.append(np.asarray(kinds, np.int8))
            lengths.append(len(ids))
            cut.append(bool(encoding.overflowing))
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)
    flat = np.concatenate(tokens) if tokens else np.zeros(0, np.int32)
    kinds_flat = np.concatenate(types) if types else np.zeros(0, np.int8)
    return flat, kinds_flat, offsets, np.asarray(cut, bool)


def shared(one: Encoded, other: Encoded) -> int:
    """How many examples of `one` have the tokens of an example of `other`: all that training sees
    of a text, up to max_length."""
    of_one, of_other = one.samples, other.samples
    near = np.isin(of_other, of_one)  # in this order: it sorts the smaller set
    known = {*_texts(other, near)}
    return sum(text in known for text in _texts(one, np.isin(of_one, of_other[near])))


def _texts(data: Encoded, where: np.ndarray) -> Iterator[bytes]:
    """The tokens of the examples of a mask (N,)."""
    begins = data.offsets[:: data.pieces]
    for i in np.flatnonzero(where).tolist():
        yield data.tokens[begins[i] : begins[i + 1]].tobytes()


def _fingerprint(
    read_from: str, task: Encoder, tokenizer: Any, max_length: int, fitted: Mapping | None
) -> str:
    made_of = {
        "format": FORMAT,
        "source": read_from,
        "tokenizer": tokenizer_hash(tokenizer),
        "max_length": max_length,
        "task": task.signature(),
        "fitted": dict(fitted) if fitted is not None else None,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def encode(
    source: Readable,
    task: Encoder,
    tokenizer: Any,
    max_length: int,
    cache_dir: Path,
    fitted: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> Encoded:
    """The source's rows as arrays, from the cache where they are there. Without `fitted` (the
    training set) the task first learns its labels from these rows. Raises InputError on a row that
    the task can't use and on a source with no rows."""
    read_from = source.fingerprint()
    fingerprint = _fingerprint(read_from, task, tokenizer, max_length, fitted)
    entry = cache_dir / "encoded" / fingerprint[:32]
    if not paths.is_whole(entry):
        rows = source.read()
        if not len(rows):
            raise InputError(f"{source.uri}: no rows")
        for column in task.columns():
            if column not in rows.columns:
                _say_which(rows, column)
        # A task that learns from other examples than it scores (pairs to rank) says so.
        make = task.encode if fitted is not None else getattr(task, "encode_training", task.encode)
        learnt = task.fit(_once(rows, source)) if fitted is None else fitted
        made = make(rows, tokenizer, max_length, learnt)
        made = dataclasses.replace(made, skipped=tuple(rows.skipped), source_rows=len(rows))
        _store(made, entry)
    found = _load(entry)
    if found.skipped:
        say(f"{source.uri}: skipped {len(found.skipped)} rows that can't be read:")
        for line in found.skipped[:20]:
            say(f"  {line}")
    return dataclasses.replace(found, fingerprint=fingerprint, read_from=read_from)


def _say_which(rows: Rows, column: str) -> None:
    """Raises InputError on a column that a task reads and rows lack."""
    try:
        rows.column(column)
    except InputError as e:
        hint = "" if "config." in str(e) else "; see config.data.text, text_pair and label"
        raise InputError(f"{e}{hint}") from None


def _once(rows: Rows, source: Readable) -> Rows:
    """The rows, of several versions of each (augment.py) the first: labels are counted by row."""
    versions = getattr(source, "versions", 1)
    return rows if versions == 1 else rows.take(list(range(len(rows) // versions)))


def _store(encoded: Encoded, entry: Path) -> None:
    """Writes a cache entry; another process may be writing the same one."""
    arrays = {
        name: getattr(encoded, name) for name in ("tokens", "types", "offsets", "row", "truncated")
    }
    arrays |= {f"field.{k}": v for k, v in encoded.fields.items()}
    arrays |= {f"token_field.{k}": v for k, v in encoded.token_fields.items()}
    arrays |= {f"aside.{k}": v for k, v in encoded.aside.items()}
    about = {
        "pieces": encoded.pieces,
        "fitted": dict(encoded.fitted),
        "source_rows": encoded.source_rows,
        "skipped": list(encoded.skipped),
    }
    try:
        with paths.new_entry(entry) as scratch:
            for name, array in arrays.items():
                np.save(scratch / f"{quote(name, safe='')}.npy", array)
            (scratch / "about.json").write_text(json.dumps(about))
    except OSError as e:
        if entry.is_dir():  # the other process was first
            return
        raise InputError(
            f"data.cache_dir: can't write {entry}: {e.strerror}; set another directory"
        ) from e


def _load(entry: Path) -> Encoded:
    about = json.loads((entry / "about.json").read_text())
    arrays = {
        unquote(path.name[: -len(".npy")]): np.load(path, mmap_mode="r")
        for path in entry.glob("*.npy")
    }

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {k[len(prefix) :]: arrays.pop(k) for k in list(arrays) if k.startswith(prefix)}

    fields, token_fields, aside = group("field."), group("token_field."), group("aside.")
    return Encoded(**arrays, fields=fields, token_fields=token_fields, aside=aside, **about)
