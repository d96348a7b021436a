"""Long texts: 512-token IMDB, packed against padded, by remat; and 2,048 positions as a stress.

python -m experiments.speed.long [--batch=32] [--rounds=3] [--layers=6] [--texts=2000]

MiniLM's sizes, IMDB's reviews cut at 512 tokens (at 2,048 with --length=2048, for which a
checkpoint's table is interpolated by model.positions). A line is a form of the same batch: rows,
the compiler's temporary bytes, and the step's time by turns with the padded form. Remat goes with a
scan over layers, without which it saves next to nothing on a CPU (experiments/remat). A form whose
temporaries exceed the memory that is free is not run, and its seconds are null; with --show-only
none is. To try it: --batch=2 --layers=2 --length=64 --texts=8 --rounds=1
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_ft import command_line
from bert_ft.data.tokenizer import load_tokenizer
from configs.sentiment import get_config
from experiments.attempts import Attempts
from experiments.speed.turns import CLOCKS, about, by_turns, ratios, spread, write

HERE = Path(__file__).parent
LOOPS = {"none": "loop", "dots": "scan", "layer": "scan"}  # by remat


def free_bytes() -> int:
    """Of the device's memory; on a CPU of the machine's, as far as it tells."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu" and (stats := device.memory_stats()):
        return stats["bytes_limit"] - stats["bytes_in_use"]
    told = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s*(\d+) kB", told.read_text()) if told.exists() else None
    return 1024 * int(found[1]) if found else sys.maxsize


def forms_of(args: argparse.Namespace, attempts: Attempts) -> dict[str, Any]:
    """The steps by name, compiled."""
    import numpy as np

    from bert_ft.config import cache_dir
    from bert_ft.data.encode import tokenize
    from bert_ft.models import hf
    from bert_ft.models.bert import EncoderConfig
    from experiments.speed import minilm
    from experiments.speed.made import Step, data_of

    config = get_config()
    tokenizer = load_tokenizer(hf.directory(config.model.pretrained, cache_dir(config)))
    texts = minilm.texts(args.texts, "imdb")
    offsets = tokenize(tokenizer, texts, None, args.length)[2]
    # What a step costs depends on the lengths alone.
    data = data_of(np.diff(offsets), 1000)
    sizes = EncoderConfig(
        vocab_size=30522,
        hidden_size=384,
        num_hidden_layers=args.layers,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=max(512, args.length),
    )

    def compiled(packed: bool, remat: str, loop: str) -> Step:
        step = Step(sizes, data, args.batch, args.length, packed, remat=remat, loop=loop)
        step.compile()
        return step

    found = {}
    for packed in (True, False):
        for remat, loop in LOOPS.items():
            name = f"{'packed' if packed else 'padded'}, {remat}, {loop}"
            step = attempts.of(name, lambda how=(packed, remat, loop): compiled(*how))
            found |= {name: step} if step else {}
    return found


def timed(
    forms: Mapping[str, Any], args: argparse.Namespace, attempts: Attempts
) -> dict[str, list[float]]:
    """Seconds of those that fit. The state is the same in all forms, so there is one."""
    import jax

    if args.show_only or not forms:
        return {}
    free, first = free_bytes(), next(iter(forms.values()))
    free -= sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(first.shapes()))
    held, cases = [first.state()], {}
    for name, step in forms.items():

        def once(step: Any = step) -> bool:
            held[0] = step.once(held[0])
            return True

        if (needed := step.temporaries()) > free:
            print(f"{name}: not run: {needed / 2**30:.1f} GiB of {free / 2**30:.1f}", flush=True)
        elif attempts.of(f"a step of {name}", once):
            cases[name] = once
        elif any(leaf.is_deleted() for leaf in jax.tree.leaves(held[0])):
            held[0] = first.state()
    return by_turns(cases, args.rounds, args.clock, warm=False) if cases else {}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--layers", type=int, default=6)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--texts", type=int, default=2000, help="reviews that are drawn from")
    p.add_argument("--show-only", action="store_true")
    p.add_argument("--clock", choices=list(CLOCKS), default="wall")
    p.add_argument("--out", type=Path, default=HERE / "long.jsonl", help="written anew")
    args = p.parse_args()
    command_line.prepare_host(get_config())
    attempts = Attempts()
    forms = forms_of(args, attempts)

    def note(seconds: Mapping[str, list[float]]) -> None:
        sizes = {"batch": args.batch, "length": args.length, "layers": args.layers}
        lines = [
            {"form": name, "rows": step.rows, "temporary_bytes": step.temporaries()}
            | {"seconds": seconds.get(name), **sizes, "clock": args.clock, **about()}
            for name, step in forms.items()
        ]
        write(args.out, lines)

    note({})  # a step that is killed for its memory takes all seconds along
    seconds = attempts.of("the steps", lambda: timed(forms, args, attempts)) or {}
    note(seconds)
    base = next((name for name in ("padded, none, loop", *seconds) if name in seconds), "")
    print(f"| form | rows | temporaries, MiB | s a step | of {base} |\n|---|---|---|---|---|")
    for name, step in forms.items():
        shown = "| |"
        if spent := seconds.get(name):
            shown = f"{statistics.median(spent):.3g} | {spread(ratios(spent, seconds[base]))} |"
        print(f"| {name} | {step.rows} | {step.temporaries() / 2**20:.0f} | {shown}", flush=True)
    attempts.end()


if __name__ == "__main__":
    main()
