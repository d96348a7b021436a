"""Is a fused form of attention the plain one on this device? Values and gradients.

python -m experiments.speed.fused_attention [--form=cudnn]

In bfloat16, with three texts a row and padding behind them: how far this form and the plain one are
from the plain one in float32, as a share of the largest number. Ends with 1 where this one is
farther than bfloat16's 8 bits explain. cuDNN's can be proven nowhere but on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_ft.models.attention import Attend, attend

ROWS, HEADS, WIDTH = 4, 12, 64
SHAPES = ((128, 128), (512, 512), (4, 512))  # queries, keys; the last layer asks for few
TOLERANCE = 2e-2  # as in tests/test_attention.py


def both(form: str, queries: int, keys: int, dtype: str) -> list[np.ndarray]:
    """Values, and the gradients of their weighted sum with respect to queries, keys and values."""
    rng, every = np.random.default_rng(0), keys // queries
    drawn = [rng.normal(size=(ROWS, HEADS, n, WIDTH)) for n in (queries, keys, keys, queries)]
    *qkv, weight = (jnp.asarray(x, jnp.bfloat16).astype(dtype) for x in drawn)
    segments = 1 + np.arange(keys) * 4 // keys
    segments = np.tile(np.where(segments == 4, 0, segments), (ROWS, 1)).astype(np.int32)
    how = Attend(form, drops=False)

    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = attend(how, q, k, v, segments[:, ::every], segments)
        return (out * weight).astype(jnp.float32).sum(), out

    gradient, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*qkv)
    return [np.asarray(x, np.float32) for x in (out, *gradient)]


def differences(form: str) -> dict[str, Any]:
    found: dict[str, float] = {form: 0.0, "plain": 0.0}
    for queries, keys in SHAPES:
        with jax.default_matmul_precision("highest"):  # a GPU's float32 is TF32 otherwise
            exact = both("plain", queries, keys, "float32")
        for name in found:
            for a, b in zip(both(name, queries, keys, "bfloat16"), exact, strict=True):
                share = np.abs(a - b).max() / np.abs(b).max()
                found[name] = float(np.maximum(found[name], share))  # NaN stays
    return {"difference": found, "equal": found[form] < TOLERANCE}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--form", choices=("cudnn", "splash", "plain"), default="cudnn")
    found = differences(p.parse_args().form)
    print(json.dumps(found))
    sys.exit(0 if found["equal"] else 1)


if __name__ == "__main__":
    main()
