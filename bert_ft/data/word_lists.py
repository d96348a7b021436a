"""What augmentation is given: synonyms of words, paraphrases of texts; files or a function."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bert_ft import paths
from bert_ft.errors import InputError, first_line

Listed = dict[str, list[str]]


def read_listed(key: str, uri: str, name: str, others: str) -> Listed:
    """{word: its synonyms}, or the like, of a file: a line is KEY, a tab, OTHER and so on; in a
    .jsonl file an object {name: KEY, others: [OTHER, …]}. `key` is the config's, for messages.
    A key that comes again adds to what it has. InputError on a file or a line that is not so."""
    path = paths.at(uri)
    try:
        with paths.reached(path):
            lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"config.{key}: {path}: can't be read: {paths.why(e)}") from None
    as_json = path.suffix in (".jsonl", ".json")
    found: Listed = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parsed = _from_json(line, name, others) if as_json else _from_tabs(line)
        if parsed is None:
            shape = f'{{"{name}": …, "{others}": […]}}' if as_json else f"{name}, a tab, {others}"
            raise InputError(f"{path}:{number}: {line[:60]!r}; accepted: {shape}")
        of, these = parsed
        mine = found.setdefault(of, [])
        mine += [other for other in these if other != of and other not in mine]
    if not found:
        raise InputError(f"config.{key}: {path} has no line")
    return found


def _from_tabs(line: str) -> tuple[str, list[str]] | None:
    first, *others = (part.strip() for part in line.rstrip("\r").split("\t"))
    others = [other for other in others if other]
    return (first, others) if first and others else None


def _from_json(line: str, name: str, others: str) -> tuple[str, list[str]] | None:
    try:
        value = json.loads(line)
        first, listed = value[name], value[others]
    except (ValueError, KeyError, TypeError):
        return None
    right = isinstance(first, str) and isinstance(listed, list) and first.strip()
    if not right or not all(isinstance(o, str) for o in listed):
        return None
    said = [o for o in listed if o.strip()]
    return (first.strip(), said) if said else None


def is_function(text: str) -> bool:
    """Whether this names a function, module:function, and no file."""
    module, colon, function = text.partition(":")
    named = all(part.isidentifier() for part in module.split("."))
    return bool(colon) and named and function.isidentifier()


def load_function(key: str, text: str) -> Callable[[Sequence[str]], Sequence[Sequence[str]]]:
    """What config.`key`, module:function, names. InputError where there is none."""
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise InputError(
            f"config.{key} is {text!r}: {e}; accepted: module:function that Python can import, or "
            "a file"
        ) from None
    if not callable(found):
        raise InputError(
            f"config.{key} is {text!r}, a {type(found).__name__}; accepted: a function"
        )
    return found


def paraphrased(key: str, text: str, texts: Sequence[str]) -> Listed:
    """{text: its paraphrases, one or more} of those texts that have some."""
    if not is_function(text):
        return read_listed(key, text, "text", "paraphrases")
    function = load_function(key, text)
    try:
        said: Any = function(list(texts))
    except Exception as e:  # the user's own code, which can raise anything
        where = traceback.extract_tb(e.__traceback__)[-1]
        what = f"{type(e).__name__} for {len(texts)} texts, {first_line(e)!r}"
        raise InputError(
            f"config.{key}: {text} raised {what} ({where.filename}, line {where.lineno}); "
            "accepted: a function of a list of texts"
        ) from e
    fits = isinstance(said, list | tuple) and len(said) == len(texts)
    if not fits or not all(
        isinstance(own, list | tuple) and all(isinstance(p, str) for p in own) for own in said
    ):
        raise InputError(
            f"config.{key}: {text} gives {str(said)[:60]} for {len(texts)} texts; accepted: a list "
            "with, for each text, the list of its paraphrases"
        )
    spoken = ([p for p in own if p.strip()] for own in said)
    return {of: own for of, own in zip(texts, spoken, strict=True) if own}


def digest(key: str, text: str) -> str:
    """SHA-256 (hex) of what config.`key` names: a file's bytes, a function's module; '' of ''."""
    if not text:
        return ""
    path: Path = paths.at(text) if not is_function(text) else Path(_source(key, text))
    try:
        with paths.reached(path):
            return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as e:
        raise InputError(f"config.{key}: {path}: can't be read: {paths.why(e)}") from None


def _source(key: str, text: str) -> str:
    function = load_function(key, text)
    try:
        return inspect.getsourcefile(function) or ""
    except TypeError:
        raise InputError(
            f"config.{key} is {text!r}, which has no source file; accepted: a function of a module "
            "in Python, whose file tells whether it has changed"
        ) from None
