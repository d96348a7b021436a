"""The products of a train step, each alone: XLA's against PyTorch's, by turns in one process.

python -m experiments.speed.products [--rounds=20]          # taskset -c 0 … for one core

Those of MiniLM's dense layers over 960 tokens, float32: forward (x W), the gradient of the input (g
W^T) and of the weight (x^T g). A turn is as many calls as take 20 ms, after a rest in which the
threads of the last one's library stop spinning. Needs the extra [torch].
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bert_ft import command_line, config
from experiments.speed.turns import about, by_turns, ratios, repeated, spread, write

HERE = Path(__file__).parent
TOKENS = 960
LAYERS = {"query, key, value, output": (384, 384), "up": (384, 1536), "down": (1536, 384)}
KINDS = {"x W": ("x", "w", (1, 0)), "g W^T": ("g", "w", (1, 1)), "x^T g": ("x", "g", (0, 0))}
SECONDS, REST = 0.02, 0.1


def both(
    left: np.ndarray, right: np.ndarray, over: tuple[int, int]
) -> dict[str, Callable[[], Any]]:
    """A product that contracts these axes of its two operands, by each library; they must agree."""
    import jax
    import torch

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(a, b, (((over[0],), (over[1],)), ((), ())))

    jitted, arrays = jax.jit(product), [jax.numpy.asarray(x) for x in (left, right)]
    a, b = (torch.from_numpy(x) for x in (left, right))
    a, b = (a if over[0] else a.T), (b.T if over[1] else b)
    np.testing.assert_allclose(jitted(*arrays), torch.mm(a, b).numpy(), rtol=1e-3, atol=1e-2)
    return {
        "XLA": lambda: jitted(*arrays).block_until_ready(),
        "PyTorch": lambda: torch.mm(a, b),
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--rounds", type=int, default=20)
    p.add_argument("--out", type=Path, default=HERE / "products.jsonl", help="written anew")
    args = p.parse_args()
    command_line.prepare_host(config.default())
    import torch

    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    rng, cases = np.random.default_rng(0), {}
    for layer, (inner, outer) in LAYERS.items():
        sizes = {"x": (TOKENS, inner), "w": (inner, outer), "g": (TOKENS, outer)}
        drawn = {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}
        for kind, (left, right, over) in KINDS.items():
            found = both(drawn[left], drawn[right], over)
            for library, run in found.items():
                cases[layer, kind, library] = (*repeated(run, SECONDS), 2 * TOKENS * inner * outer)
    calls = {str(key): run for key, (run, _, _) in cases.items()}
    seconds = by_turns(calls, args.rounds, rest=REST)
    lines = []
    print(f"GFLOP/s, {cores} cores\n")
    print("| | | XLA | PyTorch | PyTorch is faster by |\n|---|---|---|---|---|")
    for layer in LAYERS:
        for kind in KINDS:
            rates = {}
            for library in ("XLA", "PyTorch"):
                _, times, flops = cases[layer, kind, library]
                spent = seconds[str((layer, kind, library))]
                rates[library] = [times * flops / s / 1e9 for s in spent]
            faster = ratios(rates["PyTorch"], rates["XLA"])
            shown = " | ".join(f"{statistics.median(rates[n]):.0f}" for n in rates)
            print(f"| {layer} | {kind} | {shown} | {spread(faster)} |")
            lines.append({"layer": layer, "product": kind, "gflop_s": rates, **about()})
    write(args.out, lines)


if __name__ == "__main__":
    main()
