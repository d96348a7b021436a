"""BERT on one GPU: our train step beside transformers' in PyTorch, on the same card and batch.

python -m experiments.speed.gpu [--seconds=400] [--out=FILE] [--tiny]

BERT-base and -large, rows of 128 and 512 tokens, bfloat16 products over float32 parameters, AdamW,
clip, dropout 0.1 (0 on attention's probabilities in both, so that both may use their fused kernel;
a second line of ours drops there, too, in XLA's plain form). Full rows first: examples a second and
MFU, the model's operations (padding's too) over the rate of a large bfloat16 product, measured on
this card just before. Theirs: SDPA, bfloat16 autocast, fused AdamW, plain and, for the first size,
under torch.compile where that runs. Then packing: texts as long as Rotten Tomatoes' in rows of 128,
packed and one a row. It ends by itself: what has not begun after --seconds is left out, and said
so. --tiny runs it all on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

# Both frameworks share the card.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
HERE = Path(__file__).parent
TOKENS = 16_384  # a step
SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "tiny": (64, 2, 2, 128),
}


def timed(step: Callable[[], None], least_s: float) -> float:
    """Median seconds of a step, behind three that are not counted."""
    for _ in range(3):
        step()
    spent: list[float] = []
    while sum(spent) < least_s or len(spent) < 5:
        began = time.perf_counter()
        step()
        spent.append(time.perf_counter() - began)
    return float(np.median(spent))


def product_rate(size: int, least_s: float) -> float:
    """Operations a second of a bfloat16 product of two squares."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a @ a @ a @ a)
    return 4 * 2 * size**3 / timed(lambda: product(a).block_until_ready(), least_s)


def encoder(name: str) -> Any:
    from bert_ft.models.bert import EncoderConfig

    hidden, layers, heads, inner = SIZES[name]
    return EncoderConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
    )


def ours(
    name: str, lengths: np.ndarray, row: int, packed: bool = False, **how: Any
) -> tuple[Callable[[], None], int]:
    """(a step, the model's operations in it)."""
    from experiments.speed.made import Step, data_of

    sizes = encoder(name)
    data = data_of(lengths, sizes.vocab_size)
    made = Step(sizes, data, len(lengths), row, packed, dtype="bfloat16", **how)
    return made.run(), made.flops


def theirs(name: str, lengths: np.ndarray, compiled: bool) -> tuple[Callable[[], None], int | None]:
    """(a step on full rows, None)."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, layers, heads, inner = SIZES[name]
    count, length = len(lengths), int(lengths[0])
    config = BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        attention_probs_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    torch.set_float32_matmul_precision("high")
    model = BertForSequenceClassification(config).to(device).train()
    call = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=device == "cuda")
    ids = torch.randint(1, config.vocab_size, (count, length), device=device)
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.arange(count, device=device) % 2,
    }

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = call(**given).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step, None


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--seconds", type=float, default=400.0)
    p.add_argument("--out", type=Path, default=HERE / "gpu.jsonl", help="written anew")
    p.add_argument("--tiny", action="store_true", help="a small model, on whatever there is")
    args = p.parse_args()
    import jax

    card, began = jax.devices()[0], time.monotonic()
    if card.platform != "gpu" and not args.tiny:
        raise SystemExit(f"JAX found {card.platform!r}, no GPU; --tiny runs it on a CPU")
    names = ("tiny",) if args.tiny else ("base", "large")
    tokens, least = (512, 0.1) if args.tiny else (TOKENS, 2.0)
    rate = product_rate(256 if args.tiny else 8192, least)
    print(f"{card.device_kind}: a bfloat16 product alone: {rate / 1e12:.1f} TFLOP/s", flush=True)
    about = {"card": card.device_kind, "product_flops": rate, "jax": jax.__version__}

    known: dict[Any, int] = {}  # operations of a case, ours, which are theirs as well

    def note(case: dict[str, Any], examples: int, make: Callable[[], Any]) -> None:
        line = {**case, "examples": examples, **about}
        if time.monotonic() - began > args.seconds:
            line["left_out"] = "no time"
        else:
            try:
                step, flops = make()
                key = case["model"], case["length"]
                flops = flops or known.get(key)
                known[key] = flops
                spent = timed(step, least)
                line |= {"seconds": spent, "examples_per_s": examples / spent}
                line["mfu"] = flops and flops / spent / rate
            except Exception as e:  # one that doesn't fit or compile must not cost the others
                line["left_out"] = f"{type(e).__name__}: {str(e).splitlines()[0][:200]}"
        print(json.dumps(line), flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps(line) + "\n")

    args.out.unlink(missing_ok=True)
    for name in names:
        for length in (128, 512):
            count, case = tokens // length, {"model": name, "length": length}
            full = np.full(count, length)
            for who, attention, drops in (("auto", "auto", False), ("plain", "plain", True)):
                make = partial(ours, name, full, length, attention=attention, drops=drops)
                note({**case, "who": f"bert_ft, {who}"}, count, make)
            note({**case, "who": "transformers, SDPA"}, count, partial(theirs, name, full, False))
    short = np.clip(np.random.default_rng(0).gamma(4.0, 6.75, tokens // 128), 3, 128).astype(int)
    for packed, who in ((True, "bert_ft, packed"), (False, "bert_ft, one a row")):
        make = partial(ours, names[0], short, 128, packed, drops=False)
        note({"model": names[0], "length": "short texts", "who": who}, len(short), make)
    for length in (128, 512):  # last, since a compilation may take minutes
        case = {"model": names[0], "length": length, "who": "transformers, torch.compile"}
        full = np.full(tokens // length, length)
        note(case, len(full), partial(theirs, names[0], full, True))


if __name__ == "__main__":
    main()
