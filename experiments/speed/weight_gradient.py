"""Does a custom weight gradient pay on this CPU? JAX's own against bert_ft.models.ops.matmul.

python experiments/speed/weight_gradient.py [--repeats=41]

The feed-forward block of MiniLM (384 -> 1536 -> 384, erf-GELU between) on 8 rows of 128 tokens,
float32: the gradient with respect to its input and both weights, each way by turns, so that a
change of the machine's load falls on all. "x @ w" is jnp.dot differentiated by JAX; "2-D" reshapes
to tokens x features first and lets JAX differentiate; "ops.matmul" is the custom_vjp.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from bert_ft.models import ops

ROWS, TOKENS, HIDDEN, INNER = 8, 128, 384, 1536


def as_2d(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.dot(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], w.shape[-1])


WAYS: dict[str, Callable] = {"x @ w": jnp.dot, "2-D": as_2d, "ops.matmul": ops.matmul}


def gradient_of(matmul: Callable) -> Callable:
    def block(x: jax.Array, up: jax.Array, down: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.vdot(matmul(ops.gelu(matmul(x, up)), down), g)

    return jax.jit(jax.grad(block, argnums=(0, 1, 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=41)
    repeats = parser.parse_args().repeats
    rng = np.random.default_rng(0)
    x, g = (rng.normal(0, 1, (ROWS, TOKENS, HIDDEN)) for _ in range(2))
    up, down = rng.normal(0, 0.05, (HIDDEN, INNER)), rng.normal(0, 0.05, (INNER, HIDDEN))
    given = [jnp.asarray(a, jnp.float32) for a in (x, up, down, g)]
    programs = {name: gradient_of(way) for name, way in WAYS.items()}
    answers = {name: jax.block_until_ready(run(*given)) for name, run in programs.items()}
    for name, answer in answers.items():
        for ours, theirs in zip(answer, answers["x @ w"], strict=True):
            error = float(jnp.abs(ours - theirs).max() / jnp.abs(theirs).max())
            assert error < 1e-5, f"{name}: off by {error:.1e} of the largest"
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, run in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(run(*given))
            seconds[name].append(time.perf_counter() - began)
    # Five products: up, then two gradients of each; the block's own output is not needed.
    flops = 5 * 2 * ROWS * TOKENS * HIDDEN * INNER
    print(
        f"{jax.devices()[0].device_kind}, {len(os.sched_getaffinity(0))} cores, load "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, jax {jax.__version__}, "
        f"jaxlib {jaxlib.__version__}, numpy {np.__version__}; {repeats} repeats by turns"
    )
    print("| way | median ms | 10 % | 90 % | best | GFLOP/s at the median |")
    print("|---|---|---|---|---|---|")
    for name, values in seconds.items():
        low, middle, high = np.percentile(values, (10, 50, 90)) * 1e3
        best, rate = min(values) * 1e3, flops / middle / 1e6
        print(f"| `{name}` | {middle:.1f} | {low:.1f} | {high:.1f} | {best:.1f} | {rate:.0f} |")


if __name__ == "__main__":
    main()
