"""Sentence embeddings: ours against sentence-transformers' encode, in one process.

python -m experiments.speed.encode [--texts=10000] [--rounds=5]

all-MiniLM-L6-v2, the same files, float32, mean pooling and unit length, at most 256 tokens. Ours is
the embedding head of task.name='matching' over packed rows; theirs sorts the texts by length and
pads each batch to its longest. Each has the batch size that is the fastest of some on the first
texts. Both start from texts and end with an array. Both are called once before they are timed, then
by turns. Vectors must be equal to 1e-4. To try it: --texts=64 --sample=16 --rounds=1
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bert_ft import command_line
from configs.sentiment import get_config
from experiments.dot_chart import dot_chart
from experiments.speed.turns import CLOCKS, about, best_batches, by_turns, compared, sampled, write

HERE = Path(__file__).parent
BATCHES = (8, 16, 32, 64, 128)  # 128 is our default, 32 theirs
SAMPLE = 512
LONGEST = 256  # tokens, the model card's
WANTED, TOLERANCE = 1.5, 1e-4


def sentence_transformer(directory: Path) -> Callable[[list[str], int], np.ndarray]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    words = modules.Transformer(str(directory), max_seq_length=LONGEST)
    mean = modules.Pooling(words.get_embedding_dimension(), "mean")
    made = SentenceTransformer(modules=[words, mean, modules.Normalize()], device="cpu")

    def run(texts: list[str], batch: int) -> np.ndarray:
        return made.encode(texts, batch_size=batch, show_progress_bar=False)

    return run


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--texts", type=int, default=10_000)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--sample", type=int, default=SAMPLE, help="texts that choose batch sizes")
    p.add_argument("--source", choices=("rotten_tomatoes", "imdb"), default="rotten_tomatoes")
    p.add_argument("--clock", choices=list(CLOCKS), default="wall")
    p.add_argument("--out", type=Path, default=HERE / "encode.jsonl", help="written anew")
    args = p.parse_args()
    config = get_config()
    config.task.name, config.data.max_length = "matching", LONGEST
    command_line.prepare_host(config)
    from bert_ft.data.encode import Encoded, tokenize
    from experiments.speed import minilm

    texts = minilm.texts(args.texts, args.source)
    with tempfile.TemporaryDirectory() as scratch:
        directory = minilm.checkpoint(Path(scratch), "embedding")
        made, theirs = (
            minilm.Ours(config, directory, {}, "embedding"),
            sentence_transformer(directory),
        )

        def ours(texts: list[str], batch: int) -> np.ndarray:
            tokens, types, offsets, cut = tokenize(made.system.tokenizer, texts, None, LONGEST)
            row = np.arange(len(texts))
            data = Encoded(tokens, types, offsets, row, cut, {}, {}, 1, {}, len(texts))
            return made.predict(data, batch)["embedding"]

        sample = texts[: args.sample]
        sides = {
            "bert_ft": (lambda batch: ours(sample, batch), BATCHES),
            "sentence-transformers": (lambda batch: theirs(sample, batch), BATCHES),
        }
        best, tried = best_batches(sides, args.clock)
        mine, other = (f"{name}, batches of {batch}" for name, batch in best.items())
        cases = {
            mine: lambda: ours(texts, best["bert_ft"]),
            other: lambda: theirs(texts, best["sentence-transformers"]),
        }
        worst = float(np.abs(cases[mine]() - cases[other]()).max())
        assert worst < TOLERANCE, f"vectors differ by {worst:.1e}"
        seconds = by_turns(cases, args.rounds, args.clock, warm=False)
    found = {
        "texts": len(texts),
        "source": args.source,
        "clock": args.clock,
        "seconds": seconds,
        "batch": best,
        "sample_s": tried,
        "largest_difference": worst,
        **about(),
    }
    write(args.out, [found])
    rates = compared(seconds, mine, other, len(texts), WANTED)
    sampled(tried, len(sample))
    args.out.with_suffix(".svg").write_text(dot_chart("Sentence embeddings, texts/s", rates))


if __name__ == "__main__":
    main()
