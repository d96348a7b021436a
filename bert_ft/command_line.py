"""From the command line to a checked config, and the host made ready before JAX starts."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from bert_ft import config as knobs
from bert_ft.errors import InputError


def parse(argv: list[str], config: Any, workdir: Any, mode: Any) -> tuple[ConfigDict, Path]:
    """(checked config, workdir). Whatever is wrong on the command line is one InputError."""
    try:
        rest = flags.FLAGS(argv)
    except (
        flags.Error,
        KeyError,
        AttributeError,
        TypeError,
        ValueError,
        OSError,
        ImportError,
    ) as e:
        raise InputError(_readable(e, argv)) from e
    if len(rest) > 1:
        raise InputError(f"{rest[1]!r} on the command line is no flag; flags are --name=value")
    if config.value is None:
        raise InputError(
            "--config is missing; give a config file, as --config=configs/sentiment.py"
        )
    known = knobs.flat(knobs.default())
    for key in knobs.flat(config.value):
        if key not in known:
            raise InputError(f"config.{key} is no key{knobs.nearest(key, list(known))}")
    knobs.check(config.value, mode.value)
    return config.value, Path(workdir.value).expanduser()


def _readable(error: Exception, argv: list[str]) -> str:
    """One line for what absl and ml_collections raise on a command line."""
    known = knobs.flat(knobs.default())
    given = [re.match(r"--config\.([\w.]+)", word) for word in argv]
    for key in (m.group(1) for m in given if m):
        if key not in known:
            return f"config.{key} is no key{knobs.nearest(key, list(known))}"
    text = " ".join(str(error).split())
    for word in argv:
        match = re.match(r"--config\.([\w.]+)=(.*)", word)
        if (
            match
            and match.group(1) in known
            and (match.group(1) in text or repr(match.group(2)) in text)
        ):
            kind = type(known[match.group(1)]).__name__
            return f"config.{match.group(1)} is {match.group(2)!r}; accepted: {kind} (default {known[match.group(1)]!r})"
    return text


def prepare_host(config: ConfigDict) -> None:
    """Settings that must stand before JAX's first computation."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    where = config.compile.cache_dir
    if where == "auto":
        where = str(
            Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bert_ft" / "xla"
        )
    if where:
        jax.config.update("jax_compilation_cache_dir", where)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory instead of giving it back to the kernel. XLA's CPU backend
    allocates a step's temporaries afresh each step (325 MB for MiniLM at 1,024 tokens), and touching
    new pages was a fifth of the step's CPU time (experiments/speed/page_faults.py)."""
    if not sys.platform.startswith("linux") or importlib.util.find_spec("libtpu"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library, which needs other settings or none
        return
    arena_max, mmap_max, trim_threshold, top_pad = -8, -4, -1, -2  # from malloc.h
    mallopt(arena_max, 1)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)
