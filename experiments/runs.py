"""Runs of the main program for a table: made where missing, their rate chosen on dev."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_ft.config import flat
from experiments.lines import told
from experiments.parity.tasks import Task

Line = dict[str, Any]


def folder_name(of: str) -> str:
    """What says which run it is, as the name of its folder."""
    return "".join(c if c.isalnum() else "_" for c in of)


def settings_of(task: Task, seed: int) -> Line:
    """What lines.told says of a run's config."""
    config = task.read_config()
    config.train.seed = seed
    return told(flat(config))


def result_of(task: Task, seed: int, workdir: Path) -> Line:
    """result.json of a workdir, whose run is made unless it is there. Raises RuntimeError where the
    workdir is another run's."""
    if not (workdir / "result.json").exists():
        command = [sys.executable, "-m", "bert_ft.main", *task.command]
        command += [f"--workdir={workdir}", f"--config.train.seed={seed}"]
        subprocess.run(command, check=True)
    if told(json.loads((workdir / "config.json").read_text())) != settings_of(task, seed):
        raise RuntimeError(f"{workdir} holds another run; remove it")
    return json.loads((workdir / "result.json").read_text())


def by_best_rate(
    tried: Callable[[float, int], Line | None],
    rates: Sequence[float],
    seeds: Sequence[int],
    worth: Callable[[Mapping[str, Any]], float],
) -> list[Line]:
    """A line a seed, all with the rate whose line is worth most for the first, which is not asked
    of one rate alone; `tried` gives that of a rate and a seed, with its 'rate', or None where the
    run failed."""
    first, *others = seeds
    firsts = [line for rate in rates if (line := tried(rate, first))]
    if not firsts:
        return []
    best = max(firsts, key=worth) if len(firsts) > 1 else firsts[0]
    return [best, *(line for seed in others if (line := tried(best["rate"], seed)))]
