"""`python -m bert_ft.main`, observed: what it reads and writes, and faults at moments it names.

Environment: OBSERVED_OUT, a directory for what was seen; OBSERVED_FAULT, as "step 7=KILL": the
signal that the process sends itself on its first entry of a phase of such a name, once a workdir;
OBSERVED_COMMANDS, as "step 7=rm FILE", a line each: what the shell does then; OBSERVED_SLOW, the
seconds that each step takes longer; OBSERVED_SHARE, a setting that one process alone has, as
"1:OBSERVED_FAULT=step 7=KILL".
"""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

WRITING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.symlink"}


def flag(name: str) -> str:
    return next((w.split("=", 1)[1] for w in sys.argv if w.startswith(f"--{name}=")), "0")


class Counted(np.memmap):
    """Counts the elements that are read by index, which is how a batch reads its tokens."""

    read: collections.Counter = collections.Counter()

    def __getitem__(self, index: Any) -> Any:
        out = super().__getitem__(index)
        if isinstance(index, np.ndarray):
            Counted.read["tokens"] += out.size
        return np.asarray(out)


def count_tokens() -> None:
    from bert_ft.data import encode

    load = encode._load

    def counting(entry: Path) -> Any:
        made = load(entry)
        made.__dict__["tokens"] = made.tokens.view(Counted)
        return made

    encode._load = counting


def note_writes(workdir: Path, seen: set[str]) -> None:
    def hook(event: str, args: tuple) -> None:
        writes = event in WRITING or (
            event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        )
        if writes and isinstance(args[0], str | bytes | os.PathLike):
            path = os.fsdecode(args[0])
            if path.startswith(str(workdir)):
                seen.add(os.path.relpath(path, workdir))

    sys.addaudithook(hook)


def fail_at(fault: str, workdir: Path) -> None:
    """A second start goes on: what has happened is noted beside the workdir."""
    from bert_ft.train import phases

    wanted, _, name = fault.rpartition("=")
    commands = dict(x.split("=", 1) for x in os.environ.get("OBSERVED_COMMANDS", "").splitlines())
    done = workdir.with_name(f"{workdir.name}-{flag('process_id')}-{fault.replace(' ', '-')}")
    within = phases.within

    @contextmanager
    def failing(kind: str, entered: str) -> Any:
        with within(kind, entered):
            if wanted in entered and not done.exists():
                done.write_text("")
                os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
            for where in [x for x in commands if x in entered]:
                subprocess.run(commands.pop(where), shell=True, check=False)
            if kind == "steps":
                time.sleep(float(os.environ.get("OBSERVED_SLOW", "0")))
            yield

    phases.within = failing


def main() -> NoReturn:
    number, workdir = flag("process_id"), Path(flag("workdir"))
    process, _, share = os.environ.get("OBSERVED_SHARE", "").partition(":")
    if share and process == number:
        key, _, value = share.partition("=")
        os.environ[key] = value
    out, seen = os.environ.get("OBSERVED_OUT"), set[str]()
    if out:
        count_tokens()
        note_writes(workdir, seen)
    fail_at(os.environ.get("OBSERVED_FAULT", "no such phase=TERM"), workdir)
    from bert_ft import errors
    from bert_ft.main import main as program

    def observed(argv: list[str]) -> int:
        code = program(argv)
        if out:
            about = {"tokens": Counted.read["tokens"], "writes": sorted(seen)}
            (Path(out) / f"{number}.json").write_text(json.dumps(about))
        return code

    errors.run(observed)


if __name__ == "__main__":
    main()
