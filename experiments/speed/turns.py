"""Cases measured by turns in one process, so that a change of the machine's load falls on all."""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.dot_chart import dot_chart

PACKAGES = (
    *("jax", "jaxlib", "libtpu", "numpy", "tokenizers", "torch", "transformers"),
    *("sentence-transformers", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"),
)

# A machine with other work tells nothing by the wall. On one core (`taskset -c 0`) a process's
# processor seconds are what the wall would be on a quiet one; on several, spinning threads count.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def by_turns(
    cases: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: str = "wall",
    warm: bool = True,
    rest: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of each case in each round, behind one call of each that is not counted. No case
    always follows the same other one. Before each turn it waits `rest` seconds, for what the last
    one left running: OpenMP's threads spin for some 15 ms after the work that they did."""
    now = CLOCKS[clock]
    names = list(cases)
    for name in names if warm else ():
        cases[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(rest)
            began = now()
            cases[name]()
            seconds[name].append(now() - began)
    return seconds


def repeated(
    case: Callable[[], Any], least_s: float, clock: str = "wall"
) -> tuple[Callable[[], None], int]:
    """(the case, so often in a row that it takes about `least_s`; how often): a call of a few ms is
    noise. It is called twice to find that out."""
    now = CLOCKS[clock]
    case()
    began = now()
    case()
    times = max(1, math.ceil(least_s / max(now() - began, 1e-6)))

    def run() -> None:
        for _ in range(times):
            case()

    return run, times


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """'78.1 (77.4 to 79.0)': median, least, most."""
    return (
        f"{statistics.median(values):.{digits}f} "
        f"({min(values):.{digits}f} to {max(values):.{digits}f})"
    )


def best_batches(
    sides: Mapping[str, tuple[Callable[[int], Any], Sequence[int]]], clock: str
) -> tuple[dict[str, int], dict[str, list[float]]]:
    """(the batch size with which each side, a call and the sizes to try, is fastest; the seconds of
    each by its name). All take turns: what one side may choose, the other may."""

    def named(name: str, size: int) -> str:
        return f"{name}, batches of {size}"

    cases = {
        named(name, size): functools.partial(call, size)
        for name, (call, sizes) in sides.items()
        for size in sizes
    }
    spent = by_turns(cases, 2, clock)
    best = {
        name: min(sizes, key=lambda size: statistics.median(spent[named(name, size)]))
        for name, (_, sizes) in sides.items()
    }
    return best, spent


def about() -> dict[str, Any]:
    """What a line of results says of the machine and the programs."""
    from bert_ft.train.record import git_commit  # imports JAX, which not every script needs

    versions = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "versions": versions,
        "commit": git_commit(),
    }


def write(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def compared(
    seconds: Mapping[str, Sequence[float]], ours: str, theirs: str, texts: int, wanted: float
) -> dict[str, list[float]]:
    """Prints the table of two cases that read so many `texts`; their rates by name, to draw."""
    rates = {name: [texts / s for s in seconds[name]] for name in (ours, theirs)}
    faster = spread(ratios(seconds[theirs], seconds[ours]))
    print("| | texts/s | ours is faster by | wanted |\n|---|---|---|---|")
    print(f"| {ours} | {spread(rates[ours], 0)} | | |")
    print(f"| {theirs} | {spread(rates[theirs], 0)} | {faster} | {wanted} |")
    return rates


def race_parser(description: str, sample: int, out: Path) -> argparse.ArgumentParser:
    """The flags that `race` reads."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--texts", type=int, default=10_000)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--sample", type=int, default=sample, help="texts that choose batch sizes")
    p.add_argument("--clock", choices=list(CLOCKS), default="wall")
    p.add_argument("--out", type=Path, default=out, help="written anew")
    return p


def race(
    args: argparse.Namespace,
    texts: list[str],
    sides: Mapping[str, tuple[Callable[[list[str], int], Any], Sequence[int]]],
    apart: Callable[[Any, Any], float],
    wanted: float,
    title: str,
) -> None:
    """Two sides, ours first, that answer the texts: a call with texts and a batch size, and the
    sizes to try. `apart` gives the largest difference of what they answer, or fails. Prints and
    draws their rates, each at its best batch size, and writes args.out."""
    sample = texts[: args.sample]
    tries = {n: (functools.partial(call, sample), sizes) for n, (call, sizes) in sides.items()}
    best, tried = best_batches(tries, args.clock)
    ours, theirs = names = [f"{name}, batches of {size}" for name, size in best.items()]
    calls = [functools.partial(sides[name][0], texts, size) for name, size in best.items()]
    worst = apart(*(call() for call in calls))
    seconds = by_turns(dict(zip(names, calls, strict=True)), args.rounds, args.clock, warm=False)
    found = {
        **{"texts": len(texts), "clock": args.clock, "seconds": seconds, "batch": best},
        **{"sample_s": tried, "largest_difference": worst, **about()},
    }
    write(args.out, [found])
    rates = compared(seconds, ours, theirs, len(texts), wanted)
    for name, values in tried.items():
        print(f"{name}: {len(sample) / statistics.median(values):.0f} texts/s")
    args.out.with_suffix(".svg").write_text(dot_chart(f"{title}, texts/s", rates))
