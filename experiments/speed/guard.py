"""A guard against regressions that other work on the machine can't trip: make bench.

python -m experiments.speed.guard

Every figure is a ratio of two computations timed by turns in this process, so load falls on both;
it is the median over the rounds, and a limit is far from what was ever seen. Ends with 1 and a line
that says which limit was passed by how much, else with 0.

packed / padded   a train step of the same 32 short reviews, packed and one a row: what packing is
                  for. At most 0.7; their rows are as 1 to 4.
step / products   a padded train step over the time of matrix products of as many operations: what
                  is added to the products. At most 6.
plan / sort       a packed plan of 65,536 examples over a sort of as many numbers, NumPy both. At
                  most 150.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from bert_ft import command_line, config
from experiments.speed.turns import by_turns, ratios

LIMITS = {"packed / padded": 0.7, "step / products": 6.0, "plan / sort": 150.0}


def steps() -> tuple[Callable[[], None], Callable[[], None], Callable[[], None]]:
    """(a packed step, the padded one, products of as many operations as the padded one's)."""
    import jax
    import jax.numpy as jnp

    from bert_ft.models.bert import EncoderConfig
    from experiments.speed.made import Step, data_of

    sizes = EncoderConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=128,
    )
    lengths = 8 + np.random.default_rng(0).integers(0, 40, 32)
    packed, padded = (
        Step(sizes, data_of(lengths, sizes.vocab_size), 32, 128, packed) for packed in (True, False)
    )
    places, h, inner = padded.rows * 128, sizes.hidden_size, sizes.intermediate_size
    a, b = jnp.ones((places, h)), jnp.ones((h, inner))
    product = jax.jit(jnp.dot)
    turns = max(1, round(padded.flops / (2 * places * h * inner)))

    def products() -> None:
        for _ in range(turns):
            product(a, b).block_until_ready()

    return packed.run(), padded.run(), products


def plans() -> tuple[Callable[[], Any], Callable[[], Any]]:
    from bert_ft.data.batches import BatchPlan
    from experiments.speed.input import made_up

    data = made_up(65_536)
    numbers = np.random.default_rng(0).random(len(data))
    return (lambda: BatchPlan(data, 32, len(data) // 32, 128).counts), (lambda: np.sort(numbers))


def measured(rounds: int) -> dict[str, float]:
    packed, padded, products = steps()
    seconds = by_turns({"packed": packed, "padded": padded, "products": products}, rounds)
    plan, sort = plans()
    seconds |= {"step": seconds["padded"], **by_turns({"plan": plan, "sort": sort}, rounds)}
    return {
        name: statistics.median(ratios(*(seconds[part] for part in name.split(" / "))))
        for name in LIMITS
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--rounds", type=int, default=9)
    args = p.parse_args()
    command_line.prepare_host(config.default())
    found, slower = measured(args.rounds), 0
    for name, value in found.items():
        passed = value > LIMITS[name]
        slower += passed
        said = f"REGRESSION: {value / LIMITS[name]:.2f} times its limit" if passed else "ok"
        print(f"{name}: {value:.3g}, at most {LIMITS[name]:g}: {said}", flush=True)
    sys.exit(1 if slower else 0)


if __name__ == "__main__":
    main()
