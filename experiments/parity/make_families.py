"""What PyTorch answers for BERT's relatives, for multiple choice and for sentence embeddings.

python experiments/parity/make_families.py

Writes tests/parity/NAME.npz, so that tests need no PyTorch. For small random models: config.json as
transformers writes it, the weights (float16 values, used as float32 by both sides), the inputs and
the logits. For all-MiniLM-L6-v2: sentences and the vectors sentence-transformers makes of them.
Needs the extra [torch] and `pip install sentence-transformers` (5 or 6).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from make_reference import MINILM, OUT

from bert_ft.config import default
from bert_ft.data import wheels
from bert_ft.train.system import cache_dir

CLASSES, LENGTH, COUNT, CHOICES = 3, 14, 6, 3
COMMON = {
    "vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 22, "max_position_embeddings": LENGTH,
}  # fmt: skip
PADDED = COMMON | {
    "max_position_embeddings": LENGTH + 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
}  # fmt: skip
MODELS = {
    "roberta": ("RobertaForSequenceClassification", PADDED),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {
            "vocab_size": 31, "dim": 16, "n_layers": 2, "n_heads": 4, "hidden_dim": 22,
            "max_position_embeddings": LENGTH,
        },
    ),
    "electra": ("ElectraForSequenceClassification", COMMON | {"embedding_size": 10}),
    "choice": ("BertForMultipleChoice", COMMON),
}  # fmt: skip
SENTENCES = [
    "A man is eating a piece of bread.",
    "Someone has lunch.",
    "The bank refused my card, and nobody could say why.",
    "Interest rates rose by half a point in March, which surprised most of the analysts we asked.",
    "yes",
    "Is there a vaccine? Is there one for children?",
]


def randomise(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Large weights, biases and LayerNorm gains that differ, all exact in float16."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            gain = "norm" in name.lower() and name.endswith("weight")
            drawn = float(gain) + 0.25 * torch.randn(value.shape, generator=generator)
            value.copy_(drawn.to(torch.float16).float())
    return {k: v.numpy().astype(np.float16) for k, v in model.state_dict().items()}


def inputs(seed: int, types: bool, choices: int) -> dict[str, np.ndarray]:
    """Ids that are no padding's, padding at the end, and in half of the texts in the middle too.
    The first token is never masked: some head reads it."""
    rng = np.random.default_rng(seed)
    shape = (COUNT * choices, LENGTH)
    mask = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, shape[0])[:, None]
    mask[::2] &= rng.random((len(mask[::2]), LENGTH)) > 0.3
    mask[:, 0] = True
    given = {"input_ids": rng.integers(2, 31, shape), "attention_mask": mask.astype(np.int64)}
    if types:
        given["token_type_ids"] = rng.integers(0, 2, shape)
    return given


@torch.no_grad()
def reference(name: str) -> dict[str, np.ndarray]:
    architecture, sizes = MODELS[name]
    cls = getattr(transformers, architecture)
    choice = architecture.endswith("Choice")
    labels = {} if choice else {"num_labels": CLASSES}
    config = cls.config_class(**sizes, **labels, attn_implementation="eager")
    model = cls(config).eval()
    weights = randomise(model, seed=len(name))
    given = inputs(len(name), getattr(config, "type_vocab_size", 0) > 1, CHOICES if choice else 1)
    tensors = {k: torch.tensor(v) for k, v in given.items()}
    if choice:
        tensors = {k: v.reshape(COUNT, CHOICES, LENGTH) for k, v in tensors.items()}
    logits = model(**tensors).logits.numpy()
    with tempfile.TemporaryDirectory() as at:
        model.save_pretrained(at)
        about = (Path(at) / "config.json").read_text()
    small = {k: v.astype(np.uint8) for k, v in given.items()}
    stored = {f"weight.{k}": v for k, v in weights.items()}
    return {"config.json": np.asarray(about), **stored, **small, "logits": logits}


def embeddings() -> dict[str, np.ndarray]:
    from sentence_transformers import SentenceTransformer

    path = wheels.model_dir(MINILM, cache_dir(default()))
    vectors = SentenceTransformer(str(path), device="cpu").encode(SENTENCES)
    return {"sentences": np.asarray(SENTENCES), "embedding": vectors.astype(np.float32)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    made_with = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    todo = {name: lambda n=name: reference(n) for name in MODELS}
    for name, make in {**todo, "minilm_embedding": embeddings}.items():
        path = OUT / f"{name}.npz"
        np.savez_compressed(path, **make(), made_with=np.asarray(made_with))
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {made_with}")


if __name__ == "__main__":
    main()
