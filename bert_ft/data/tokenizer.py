"""Tokenizers: read from a model's directory, named by their state, and kept in the cache.

Of transformers' most of a second is its import. What every start asks of a tokenizer is kept
therefore, and a run whose sets are encoded reads none.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import re
import shutil
from pathlib import Path
from typing import Any

from bert_ft import paths
from bert_ft.errors import InputError


def _casing(path: Path) -> dict[str, Any]:
    """{'do_lower_case'} of a WordPiece vocabulary that no other file says it of: a vocab.txt, or a
    directory with that and neither tokenizer.json nor tokenizer_config.json. Where no entry but
    special tokens ([UNK], <S>) has a capital, text is lower-cased. {} for other directories."""
    if path.is_dir():
        settled = any((path / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json"))
        path /= "vocab.txt"
        if settled or not path.is_file():
            return {}
    entries = path.read_text("utf-8").split("\n")
    plain = [entry for entry in entries if not re.fullmatch(r"\[.*\]|<.*>", entry)]
    return {"do_lower_case": all(entry == entry.lower() for entry in plain)}


def _names_bert(path: Path) -> bool:
    """Whether a directory's files name BERT's tokenizer, which transformers' AutoTokenizer would
    then choose. To import that one takes PyTorch along where it is installed: 1.5 s of a start."""
    try:
        model, own = (
            json.loads((path / name).read_text("utf-8"))
            for name in ("config.json", "tokenizer_config.json")
        )
        named = str(own.get("tokenizer_class")).removesuffix("Fast") == "BertTokenizer"
        return named and "auto_map" not in own and model.get("model_type") == "bert"
    except (OSError, ValueError, AttributeError):
        return False  # who reads them says what is wrong


def load_tokenizer(path: Path) -> Any:
    """The fast tokenizer of a model directory, or of a bare vocab.txt."""
    from transformers.models.bert.tokenization_bert import BertTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    # Without any of them transformers 5 makes an empty tokenizer, to which every word is unknown.
    files = ("tokenizer.json", "vocab.txt", "vocab.json")
    if not (path.is_file() or any((path / f).is_file() for f in files)):
        raise InputError(f"{path}: no tokenizer there; expected: tokenizer.json or vocab.txt")
    try:
        if path.is_file():
            tokenizer: Any = BertTokenizer(vocab=str(path), **_casing(path))
        elif _names_bert(path):
            tokenizer = BertTokenizer.from_pretrained(path, **_casing(path))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(path, use_fast=True, **_casing(path))
    except Exception as e:
        raise InputError(
            f"{path}: no tokenizer there that can be loaded: {str(e).splitlines()[0]}"
        ) from e
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{path}: its tokenizer is not a fast one (tokenizer.json)")
    model = tokenizer.backend_tokenizer.model
    unknown = getattr(model, "unk_token", None)
    if unknown and model.token_to_id(unknown) is None:
        raise InputError(f"{path}: its vocabulary has no {unknown}, which stands for unknown words")
    return tokenizer


@functools.lru_cache(maxsize=8)
def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of a fast tokenizer's state (vocabulary, normaliser, special tokens), read once for
    each tokenizer: a start asks for every set, 0.1 s for 30,000 tokens.

    Truncation and padding are left out: each call sets them, so with them the hash would be another
    one after the first use than before it, and `tokenize` decides both anyway, but for the side on
    which texts are cut."""
    if isinstance(tokenizer, KeptTokenizer):
        return tokenizer.sha256
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    lasting = {k: v for k, v in state.items() if k not in ("truncation", "padding")}
    if (side := getattr(tokenizer, "truncation_side", "right")) != "right":
        lasting["truncation_side"] = side
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()


VERSION = 1  # of how tokenizers are read here and of what is kept; raise it when either changes
# What a directory's tokenizer is read from.
_FILES = (
    *("config.json", "tokenizer*", "vocab*", "merges.txt", "*.model", "*.jinja"),
    *("special_tokens_map.json", "added_tokens.json"),
)


class KeptTokenizer:
    """The tokenizer of `path`: its size, its hash and the files that save it come from the cache.
    For anything else that it is asked, it is read, once. Raises InputError, when it is made, on a
    path that has no tokenizer."""

    def __init__(self, path: Path, cache_dir: Path):
        self._path = path
        entry = cache_dir / "tokenizers" / _name(path)
        self._files = entry / "files"
        if paths.is_whole(entry):
            about = json.loads((entry / "about.json").read_text())
        else:
            about = {"sha256": tokenizer_hash(self._read), "tokens": len(self._read)}
            self._store(entry, about)
        self.sha256: str = about["sha256"]
        self._tokens: int = about["tokens"]

    def __len__(self) -> int:
        return self._tokens

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._read(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._read, name)

    @functools.cached_property
    def _read(self) -> Any:
        return load_tokenizer(self._path)

    def save_pretrained(self, directory: Path) -> None:
        """Writes what transformers' `save_pretrained` wrote before the tokenizer was used."""
        if not self._files.is_dir():
            _save(self._read, directory)
            return
        for file in sorted(p for p in self._files.rglob("*") if p.is_file()):
            to = directory / file.relative_to(self._files)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)  # not its permissions, which are those of the cache

    def _store(self, entry: Path, about: dict[str, Any]) -> None:
        """Where nothing can be written, as beside another process that was first, the tokenizer
        itself does."""
        with contextlib.suppress(OSError), paths.new_entry(entry) as scratch:
            _save(self._read, scratch / "files")
            (scratch / "about.json").write_text(json.dumps(about))


def _save(tokenizer: Any, directory: Path) -> None:
    """Raises OSError where there is no room: what is written in Rust raises a bare Exception."""
    try:
        tokenizer.save_pretrained(directory)
    except OSError:
        raise
    except Exception as e:
        raise OSError(errno.EIO, str(e), str(directory)) from e


def _name(path: Path) -> str:
    """Of a cache entry: a hash of what a tokenizer is read from, and of who reads it."""
    made = hashlib.sha256(f"{VERSION}\n".encode())
    for package in ("transformers", "tokenizers"):
        made.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    found = {file for pattern in _FILES for file in path.glob(pattern)} if path.is_dir() else {path}
    for file in sorted(file for file in found if file.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        made.update(f"{file.name if path.is_dir() else ''} {content}\n".encode())
    return made.hexdigest()[:32]
