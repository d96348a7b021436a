"""Long texts: 512-token IMDB, packed against padded, by remat; and 2,048 positions as a stress.

python -m experiments.speed.long [--batch=32] [--rounds=3] [--layers=6] [--texts=2000]

MiniLM's sizes, IMDB's reviews cut at 512 tokens (at 2,048 with --length=2048, for which a
checkpoint's table is interpolated by model.positions). A line is a form of the same batch: rows,
the compiler's temporary bytes, and the step's time by turns with the padded form. With --show-only
nothing is run: rows and bytes tell whether it would fit.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from bert_ft import command_line
from configs.sentiment import get_config
from experiments.speed.turns import CLOCKS, about, by_turns, ratios, spread, write

HERE = Path(__file__).parent
REMATS = ("none", "dots", "layer")


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
    config = get_config()
    command_line.prepare_host(config)
    import numpy as np

    from bert_ft.config import cache_dir
    from bert_ft.data.encode import tokenize
    from bert_ft.models import hf
    from bert_ft.models.bert import EncoderConfig
    from experiments.speed import minilm
    from experiments.speed.made import Step, data_of

    tokenizer = hf.load_tokenizer(hf.directory(config.model.pretrained, cache_dir(config)))
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
    forms = {
        f"{'packed' if packed else 'padded'}, {remat}": Step(
            sizes, data, args.batch, args.length, packed, remat=remat
        )
        for packed in (True, False)
        for remat in REMATS
    }
    cases = {} if args.show_only else {name: step.run() for name, step in forms.items()}
    seconds = by_turns(cases, args.rounds, args.clock) if cases else {}
    lines = []
    print("| form | rows | temporaries, MiB | s a step | of padded, none |\n|---|---|---|---|---|")
    for name, step in forms.items():
        spent, shown = seconds.get(name), "| |"
        if spent:
            ratio = ratios(spent, seconds["padded, none"])
            shown = f"{statistics.median(spent):.3g} | {spread(ratio)} |"
        mib = step.temporaries() / 2**20
        print(f"| {name} | {step.rows} | {mib:.0f} | {shown}", flush=True)
        line = {"form": name, "rows": step.rows, "temporary_bytes": step.temporaries()}
        line |= {"seconds": spent, "batch": args.batch, "length": args.length}
        lines.append({**line, "layers": args.layers, "clock": args.clock, **about()})
    write(args.out, lines)


if __name__ == "__main__":
    main()
