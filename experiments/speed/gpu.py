"""BERT on one GPU: our train step beside transformers' in PyTorch, on the same card and batch.

python -m experiments.speed.gpu [--seconds=330] [--models=base,large] [--out=FILE] [--tiny]

BERT-base and -large, rows of 128 and 512 tokens, bfloat16 products over float32 parameters, AdamW,
clip, dropout 0.1. Ours with cuDNN's attention, which can't drop probabilities, and in XLA's plain
form without that dropout and with it. Theirs without it: SDPA, bfloat16 autocast, fused AdamW;
under torch.compile, too, for the first size. Full rows first, then, before the second size, texts
as long as Rotten Tomatoes' in rows of 128, packed and one a row. A line has examples a second and
MFU: what the model computes, padding's too, over the rate of a large bfloat16 product on this card.
Before all: how far cuDNN's values and gradients are from the plain form's (fused_attention.py).

Each case is a process of its own, so that it finds all memory free and costs no other if it dies.
It ends by itself: none begins later than --seconds after the start, nor lasts longer than two
minutes; what is left out is said. --tiny runs it all on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BEGAN = time.monotonic()
HERE = Path(__file__).parent
CASE_S = 120  # the longest that a case may take
SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "tiny": (64, 2, 2, 128),
}


def timed(step: Callable[[], Any], least_s: float) -> dict[str, float]:
    """Seconds of a step, behind three that are not counted."""
    for _ in range(3):
        step()
    spent: list[float] = []
    while sum(spent) < least_s or len(spent) < 5:
        began = time.perf_counter()
        step()
        spent.append(time.perf_counter() - began)
    p10, median, p90 = (float(x) for x in np.percentile(spent, (10, 50, 90)))
    return {"seconds": median, "p10": p10, "p90": p90, "steps": len(spent)}


def card(tiny: bool) -> dict[str, Any]:
    """What is measured on: its rate is that of a bfloat16 product of two squares."""
    import jax

    from experiments.speed.turns import about

    size, device = 256 if tiny else 8192, jax.devices()[0]
    # Of ones a card computes faster: fewer bits change, and it takes less power.
    a = jax.random.normal(jax.random.key(0), (size, size), "bfloat16") / size**0.5
    product = jax.jit(lambda a: a @ a @ a @ a @ a)
    spent = timed(lambda: product(a).block_until_ready(), 0.1 if tiny else 2.0)["seconds"]
    rate = 4 * 2 * size**3 / spent
    device_is = {"card": device.device_kind, "platform": device.platform}
    return {**device_is, "product_flops": rate, **about()}


def ours(case: dict[str, Any], lengths: np.ndarray) -> tuple[Callable[[], None], dict[str, Any]]:
    """(a step, what is to be said of it)."""
    from bert_ft.models.bert import EncoderConfig
    from experiments.speed.made import Step, data_of

    hidden, layers, heads, inner = SIZES[case["model"]]
    sizes = EncoderConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
    )
    how = {name: case[name] for name in ("packed", "attention", "drops")}
    data = data_of(lengths, sizes.vocab_size)
    made = Step(sizes, data, len(lengths), case["length"], dtype="bfloat16", **how)
    return made.run(), {"flops": made.flops, "rows": made.rows}


def their_flops(model: str, count: int, length: int) -> int:
    """Model operations of a step of theirs on full rows: unlike ours, its last layer computes every
    token. Three times the forward pass, as train/cost.py has it."""
    hidden, layers, _, inner = SIZES[model]
    a_token = 2 * (4 * hidden**2 + 2 * hidden * inner + 2 * length * hidden)
    top = 2 * (hidden**2 + 2 * hidden)  # the pooler and two classes
    return 3 * count * (layers * length * a_token + top)


def theirs(case: dict[str, Any], lengths: np.ndarray) -> tuple[Callable[[], None], dict[str, Any]]:
    """(a step on full rows, what is to be said of it)."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, layers, heads, inner = SIZES[case["model"]]
    count, length = len(lengths), case["length"]
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
    call = torch.compile(model) if case["compiled"] else model
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

    flops = their_flops(case["model"], count, length)
    about = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return step, {"flops": flops, "rows": count, **about}


def measure(case: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """A case, in this process."""
    if case["of"] != "transformers":
        from bert_ft import command_line, config

        command_line.prepare_host(config.default())
    if case["of"] == "card":
        return card(tiny)
    if case["of"] == "check":
        from experiments.speed.fused_attention import differences

        return differences(case["attention"])
    count = (512 if tiny else 16_384) // case["length"]  # 16,384 tokens a step
    lengths = np.full(count, case["length"])
    if case["texts"] == "short":
        drawn = np.random.default_rng(0).gamma(4.0, 6.75, count)
        lengths = np.clip(drawn, 3, case["length"]).astype(int)
    step, said = (ours if case["of"] == "bert_ft" else theirs)(case, lengths)
    spent = timed(step, 0.1 if tiny else 2.0)
    return {"examples_per_s": count / spent["seconds"], **spent, **said}


def in_a_process(case: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """What `measure` gives in one, which is killed at its time; `left_out` where there is none."""
    with tempfile.TemporaryDirectory() as scratch:
        into = Path(scratch) / "found.json"  # no pipe: what a killed process began may hold it open
        command = [sys.executable, "-m", "experiments.speed.gpu", f"--case={json.dumps(case)}"]
        command += [f"--out={into}", *["--tiny"] * tiny]
        try:
            code = subprocess.run(command, timeout=CASE_S).returncode
        except subprocess.TimeoutExpired:
            return {"left_out": f"not done in {CASE_S} s"}
        return json.loads(into.read_text()) if into.exists() else {"left_out": f"ended with {code}"}


def cases(models: list[str], gpu: bool, tiny: bool) -> Iterator[dict[str, Any]]:
    fused = "cudnn" if gpu else "auto"
    yield {"of": "check", "attention": fused if gpu else "plain"}
    for model in models:
        for length in (128,) if tiny else (128, 512):
            full = {"model": model, "length": length, "texts": "full"}
            mine = {"of": "bert_ft", **full, "packed": False}
            yield {**mine, "attention": fused, "drops": False}
            yield {"of": "transformers", **full, "attention": "sdpa", "compiled": False}
            yield {**mine, "attention": "plain", "drops": True}
            if gpu:
                yield {**mine, "attention": "plain", "drops": False}
        for packed in (True, False) if model == models[0] else ():
            short = {"of": "bert_ft", "model": model, "length": 128, "texts": "short"}
            yield {**short, "packed": packed, "attention": "auto", "drops": False}
    for length in (128,) if tiny else (128, 512):  # last: a compilation may take minutes
        full = {"model": models[0], "length": length, "texts": "full"}
        yield {"of": "transformers", **full, "attention": "sdpa", "compiled": True}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--seconds", type=float, default=330.0)
    p.add_argument("--models", default="base,large")
    p.add_argument("--out", type=Path, default=HERE / "gpu.jsonl", help="written anew")
    p.add_argument("--tiny", action="store_true", help="a small model, on whatever there is")
    p.add_argument("--case", type=json.loads, help="one case, here, JSON")
    args = p.parse_args()
    if args.case:
        try:
            found = measure(args.case, args.tiny)
        except Exception as e:  # what doesn't fit or compile is told in its line
            found = {"left_out": " ".join(f"{type(e).__name__}: {e}".split())[:200]}
        args.out.write_text(json.dumps(found))
        return
    about = in_a_process({"of": "card"}, args.tiny)
    print(json.dumps(about), flush=True)
    gpu = about.get("platform") == "gpu"
    if not gpu and not args.tiny:
        raise SystemExit("JAX found no GPU; --tiny runs it on a CPU")
    args.out.unlink(missing_ok=True)
    for case in cases(["tiny"] if args.tiny else args.models.split(","), gpu, args.tiny):
        late = time.monotonic() - BEGAN > args.seconds
        found = {"left_out": "no time"} if late else in_a_process(case, args.tiny)
        rate, flops = about.get("product_flops"), found.get("flops")
        mfu = {"mfu": flops / found["seconds"] / rate} if flops and rate else {}
        print(json.dumps({**case, **found, **mfu}), flush=True)
        with args.out.open("a") as file:
            file.write(json.dumps({**case, **found, **mfu, **about}) + "\n")


if __name__ == "__main__":
    main()
