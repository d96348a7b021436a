"""From the command line to a checked config, and the host made ready before JAX starts."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import difflib
import glob
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from bert_ft import config as knobs
from bert_ft import paths
from bert_ft.checks import check
from bert_ft.errors import InputError

CONFIG_FLAG = re.compile(r"--?config(?:=(.*))?", re.DOTALL)
OVERRIDE = re.compile(r"--?config\.([\w.]+)(?:=(.*))?", re.DOTALL)
# What libtpu is told of a machine that has no TPU; backend.py must not take it for a TPU machine's.
WITHOUT_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}


def usage(modes: Mapping[str, str]) -> str:
    """What --help prints: the command, the modes, and every knob with its default."""
    shown = [f"  --config.{key}={value}" for key, value in knobs.flat(knobs.default()).items()]
    return "\n".join(
        (
            "usage: python -m bert_ft.main --config=FILE[:variant] --workdir=DIR [--mode=MODE] "
            "[--config.a.b=value ...]",
            "\nmodes:",
            *(f"  {name:8} {text}" for name, text in modes.items()),
            "\nknobs and their defaults, each explained in bert_ft/config.py, those of the data in "
            "bert_ft/data/defaults.py:",
            *shown,
        )
    )


def parse(
    argv: list[str], config: Any, workdir: Any, mode: Any, trials: str = ""
) -> tuple[ConfigDict, Path]:
    """(checked config, absolute workdir). `trials`: what the config is checked with where its own
    are '', of a command that makes them itself. Whatever is wrong on the command line, or goes
    wrong in the config file, is one InputError."""
    try:
        sys.argv = _config_first(argv)  # where ml_collections looks for what it is to override
        rest = flags.FLAGS(sys.argv)
        getattr(config.value, "train", None)  # a file that raised OSError raises it here, again
    except Exception as e:  # a config file is a program: it can raise anything
        raise InputError(_readable(e, argv)) from e
    if len(rest) > 1:
        raise InputError(f"{rest[1]!r} on the command line is no flag; flags are --name=value")
    if not config.present:
        raise InputError(
            "--config is missing; give a config file, as --config=configs/sentiment.py"
        )
    path = _config_path(argv)
    if not isinstance(config.value, ConfigDict):
        raise InputError(f"{path}: get_config returns {config.value!r}, not a ConfigDict")
    if not workdir.value:
        raise InputError("--workdir is missing; give a directory for the run, as --workdir=runs/a")
    checked = config.value
    if trials and checked.get("trials") == "":
        checked = copy.deepcopy(checked)
        with checked.unlocked():
            checked.trials = trials
    check(checked, mode.value)
    where = paths.absolute(workdir.value)
    if odd := sorted({*str(where)} & {*"[]*?\\"}):  # Orbax takes them for patterns of names
        raise InputError(
            f"--workdir={where}: {' '.join(odd)} in it; accepted: a path without [ ] * ? and \\"
        )
    return config.value, where


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among those of a run: `process` is one of range(processes)."""

    coordinator: str  # HOST:PORT at which process 0 listens
    processes: int
    process: int


def place(coordinator: str | None, processes: int | None, process: int | None) -> Place | None:
    """What the three flags say together; None without any of them. Raises InputError."""
    flags = {"coordinator": coordinator, "num_processes": processes, "process_id": process}
    missing = [f"--{name}" for name, value in flags.items() if value is None]
    if len(missing) == len(flags):
        return None
    if coordinator is None or processes is None or process is None:
        raise InputError(
            f"{' and '.join(missing)} missing; several processes need --coordinator=HOST:PORT "
            "--num_processes=N --process_id=I (from 0), one process none of them"
        )
    if not re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}", coordinator):
        raise InputError(
            f"--coordinator={coordinator}; accepted: HOST:PORT of process 0, as 10.0.0.2:8476"
        )
    if processes < 1:
        raise InputError(f"--num_processes={processes}; accepted: 1 or more")
    if not 0 <= process < processes:
        raise InputError(
            f"--process_id={process} with --num_processes={processes}; accepted: 0 to "
            f"{processes - 1}, each once"
        )
    return Place(coordinator, processes, process)


def _config_first(argv: list[str]) -> list[str]:
    """The same words, --config before the flags that only its file makes known."""
    for i, word in enumerate(argv[1:], 1):
        if match := CONFIG_FLAG.fullmatch(word):
            end = i + (2 if match[1] is None else 1)
            return [argv[0], *argv[i:end], *argv[1:i], *argv[end:]]
    return argv


def _config_path(argv: list[str]) -> str | None:
    """The FILE of --config=FILE:variant; None where there is no such flag."""
    given = _given(argv, CONFIG_FLAG)
    return given[-1][1].partition(":")[0] if given else None


def _given(argv: list[str], flag: re.Pattern[str]) -> list[tuple[re.Match[str], str]]:
    """(match, value) of each --FLAG=VALUE or --FLAG VALUE; the value is the regex's last group."""
    words = zip(argv, [*argv[1:], ""], strict=True)
    found = [(match, after) for word, after in words if (match := flag.fullmatch(word))]
    return [
        (match, after if (own := match[flag.groups]) is None else own) for match, after in found
    ]


def _no_config(path: str) -> str:
    there = sorted(str(p) for p in (Path(path).parent).glob("*.py"))
    near = difflib.get_close_matches(path, there, 1, 0.5)
    return f"--config={path}: no such file{f'; did you mean {near[0]}?' if near else ''}"


def _readable(error: Exception, argv: list[str]) -> str:
    """One line for what absl, ml_collections or the config file raised."""
    path = _config_path(argv)
    if path is not None and not Path(path).is_file():
        return _no_config(path)
    known = knobs.flat(knobs.default())
    overrides = [(match[1], value) for match, value in _given(argv, OVERRIDE)]
    for key, _ in overrides:
        if any(k.startswith(key + ".") for k in known):
            return (
                f"config.{key} is a group of keys; give one of them, as --config.{key}.NAME=VALUE"
            )
        if key not in known:
            return knobs.unknown(key)
    for e in _chain(error):
        if (line := _line_in(e, path)) is not None:
            what = e.msg if isinstance(e, SyntaxError) else " ".join(str(e).split())
            kind = "" if type(e) is ValueError else f"{type(e).__name__}: "
            return f"{path}:{line}: {kind}{what}"
    text = " ".join(str(error).split())
    if isinstance(error, flags.UnrecognizedFlagError):
        hint = knobs.nearest(error.flagname, [*flags.FLAGS, *(f"config.{key}" for key in known)])
        told = hint.replace("mean ", "mean --") or "; --help names them all"
        return f"--{error.flagname} is no flag{told}"
    for key, value in overrides:
        if f"config.{key}={value}:" in text or repr(value) in text:
            return knobs.wrong_type(key, value, known[key])
    return text


def _chain(error: BaseException) -> list[BaseException]:
    """An error and those it arose from, the first one first."""
    found = [error]
    while earlier := found[-1].__cause__ or found[-1].__context__:
        found.append(earlier)
    return found[::-1]


def _line_in(error: BaseException, path: str | None) -> int | None:
    """The line of the config file at which an error arose; None where it arose elsewhere."""
    if path is None:
        return None
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == Path(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if Path(f.filename) == Path(path)]
    return lines[-1] if lines else None


def prepare_host(config: ConfigDict) -> None:
    """Settings that must stand before JAX's first computation."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # It would say that PyTorch is missing: only its tokenizers and configs are used.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    import jax

    quiet_libtpu()
    where = config.compile.cache_dir
    if where == "auto":
        where = str(
            Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bert_ft" / "xla"
        )
    if where:
        jax.config.update("jax_compilation_cache_dir", where)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    keep_freed_memory()


def quiet_libtpu() -> None:
    """Where no TPU is attached, libtpu, if installed, serves preflight only: it then looks for no
    metadata server, writes no log files, keeps no other process from loading it, and says nothing.
    """
    if not _tpu_attached():
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        for name, value in WITHOUT_TPU.items():
            os.environ.setdefault(name, value)


def _tpu_attached() -> bool:
    """Whether a TPU's device files are there, and the library that drives it."""
    files = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(files) and importlib.util.find_spec("libtpu") is not None


def keep_freed_memory(huge_pages: bool = True) -> None:
    """Tells glibc to keep freed memory instead of giving it back to the kernel, and asks the kernel
    for pages of 2 MiB in it. XLA's CPU backend allocates a step's temporaries afresh each step (325
    MB for MiniLM at 1,024 tokens), and touching new pages is a quarter of the demo's step, where
    they are small and given back each time (experiments/speed/page_faults.py)."""
    if not sys.platform.startswith("linux") or _tpu_attached():
        return
    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt = libc.mallopt
    except (OSError, AttributeError):  # another C library, which needs other settings or none
        return
    arena_max, mmap_max, trim_threshold, top_pad = -8, -4, -1, -2  # from malloc.h
    mallopt(arena_max, 1)
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)  # never
    mallopt(top_pad, 64 * 2**20)
    if huge_pages:
        _advise_huge_pages(libc)


def _advise_huge_pages(libc: ctypes.CDLL) -> None:
    """Lets the heap grow once by half of the machine's memory, of which nothing is touched, and
    hence nothing used, and advises large pages there: later growth has small ones."""
    told = Path("/proc/sys/vm/overcommit_memory")
    if told.exists() and told.read_text().strip() == "2":  # what is asked for counts as used
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    hugepage = 14  # MADV_HUGEPAGE, from mman-common.h
    page = os.sysconf("SC_PAGE_SIZE")
    length = os.sysconf("SC_PHYS_PAGES") * page // 2
    start = libc.malloc(length)
    if start:  # not where a limit of the process's address space is below
        first = -(-start // page) * page
        libc.madvise(first, start + length - first, hugepage)
        libc.free(start)
