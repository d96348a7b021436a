"""Labels for short texts: --mode=predict against transformers' pipeline, in one process.

python -m experiments.speed.predict [--texts=10000] [--rounds=5]

all-MiniLM-L6-v2 with a classifier drawn from a seed, the same files, float32. Ours is what
--mode=predict does with rows once the parameters are there: tokenise, pack, predict, make answers.
Theirs is pipeline("text-classification"), which takes texts as they come and pads each batch to
its longest. Each has the batch size that is the fastest of some on the first texts. Both are called
once before they are timed, then by turns. Labels must be equal, probabilities to 1e-4. To try it:
--texts=64 --sample=16 --rounds=1
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bert_ft import command_line
from configs.sentiment import get_config
from experiments.speed.turns import race, race_parser

HERE = Path(__file__).parent
OURS, THEIRS = (8, 16, 32, 64, 128), (1, 2, 4, 8, 16, 32)  # batch sizes; 128 is our default
SAMPLE = 256  # texts by which they are chosen
WANTED, TOLERANCE = 3.0, 1e-4


def pipeline(directory: Path) -> Callable[[list[str], int], list[dict[str, Any]]]:
    import torch
    from transformers import pipeline as make

    pipe = make("text-classification", model=str(directory), device="cpu")
    limit = get_config().data.max_length

    def run(texts: list[str], batch: int) -> list[dict[str, Any]]:
        with torch.inference_mode():
            return pipe(texts, batch_size=batch, top_k=None, truncation=True, max_length=limit)

    return run


def require_equal(ours: list[dict[str, Any]], theirs: list[Any]) -> float:
    """The largest difference of two probabilities."""
    worst = 0.0
    for mine, its in zip(ours, theirs, strict=True):
        other = {entry["label"]: entry["score"] for entry in its}
        worst = max(worst, *(abs(p - other[name]) for name, p in mine["probabilities"].items()))
        near = abs(mine["probabilities"]["positive"] - 0.5) < TOLERANCE
        assert near or mine["prediction"] == its[0]["label"], (mine, its)
    assert worst < TOLERANCE, f"probabilities differ by {worst:.1e}"
    return worst


def main() -> None:
    args = race_parser(__doc__.split("\n\n")[0], SAMPLE, HERE / "predict.jsonl").parse_args()
    config = get_config()
    command_line.prepare_host(config)
    from experiments.speed import minilm

    texts = minilm.texts(args.texts)
    with tempfile.TemporaryDirectory() as scratch:
        directory = minilm.checkpoint(Path(scratch), "sequence")
        fitted = {"labels": ["0", "1"], "names": minilm.LABELS}
        ours, theirs = minilm.Ours(config, directory, fitted, "sequence"), pipeline(directory)
        sides = {"bert_ft": (ours.answers, OURS), "pipeline": (theirs, THEIRS)}
        race(args, texts, sides, require_equal, WANTED, "Labels for short texts")


if __name__ == "__main__":
    main()
