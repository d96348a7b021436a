"""Sentence embeddings: ours against sentence-transformers' encode, in one process.

python -m experiments.speed.encode [--texts=10000] [--rounds=5]

all-MiniLM-L6-v2, the same files, float32, mean pooling and unit length, at most 256 tokens. Ours is
the embedding head of task.name='matching' over packed rows; theirs sorts the texts by length and
pads each batch to its longest. Each has the batch size that is the fastest of some on the first
texts. Both start from texts and end with an array. Both are called once before they are timed, then
by turns. Vectors must be equal to 1e-4. To try it: --texts=64 --sample=16 --rounds=1
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bert_ft import command_line
from configs.sentiment import get_config
from experiments.speed.turns import race, race_parser

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


def require_equal(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two features."""
    worst = float(np.abs(ours - theirs).max())
    assert worst < TOLERANCE, f"vectors differ by {worst:.1e}"
    return worst


def main() -> None:
    p = race_parser(__doc__.split("\n\n")[0], SAMPLE, HERE / "encode.jsonl")
    p.add_argument("--source", choices=("rotten_tomatoes", "imdb"), default="rotten_tomatoes")
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

        sides = {"bert_ft": (ours, BATCHES), "sentence-transformers": (theirs, BATCHES)}
        race(args, texts, sides, require_equal, WANTED, "Sentence embeddings")


if __name__ == "__main__":
    main()
