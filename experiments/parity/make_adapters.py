"""Adapters that the peft library makes, with their logits, stored so that tests need no PyTorch.

python experiments/parity/make_adapters.py

Writes tests/parity/peft_NAME/: peft's own adapter_config.json and adapter_model.safetensors, and
logits.npy of the texts of tests/parity/two_layers.npz, whose model is the base. Needs the extra
[torch] and peft.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification
from transformers.cache_utils import DynamicCache

OUT = Path(__file__).parents[2] / "tests" / "parity"
LINEAR = ["query", "value", "attention.output.dense"]
HEAD = ["pooler", "classifier"]
CONFIGS = {
    "lora": peft.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=6, target_modules=LINEAR, modules_to_save=HEAD
    ),
    "dora": peft.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=6, target_modules=LINEAR, modules_to_save=HEAD,
        use_dora=True, use_rslora=True,
    ),
    "adalora": peft.AdaLoraConfig(
        task_type="SEQ_CLS", init_r=4, target_r=2, total_step=10, lora_alpha=8,
        target_modules=LINEAR, modules_to_save=HEAD,
    ),
    "prefix": peft.PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=5, modules_to_save=["classifier"]
    ),
    # The pooler's dense layer with them, which has factors then and is not kept whole.
    "all_linear": peft.LoraConfig(
        task_type="SEQ_CLS", r=3, lora_alpha=6, target_modules="all-linear"
    ),
}  # fmt: skip


def base(stored: dict[str, np.ndarray]) -> BertForSequenceClassification:
    sizes = {k[7:]: v.item() for k, v in stored.items() if k.startswith("config.")}
    config = BertConfig(**sizes, num_labels=3, attn_implementation="eager")
    model = BertForSequenceClassification(config)
    for name, value in model.named_parameters():
        value.data = torch.from_numpy(stored[f"weight.{name}"].astype(np.float32))
    return model


def logits(model: peft.PeftModel, given: dict[str, torch.Tensor]) -> np.ndarray:
    """Those of peft, except of a prefix: where transformers calls its argument `cache`, peft 0.21
    does not find it, so the encoder is given peft's keys and values here."""
    with torch.no_grad():
        if model.active_peft_config.peft_type != "PREFIX_TUNING":
            return model.eval()(**given).logits.numpy()
        found = model.eval().get_prompt(len(given["input_ids"]))
        mask = given["attention_mask"]
        ones = mask.new_ones(len(mask), model.active_peft_config.num_virtual_tokens)
        cache = found if hasattr(found, "get_seq_length") else DynamicCache(found)
        below = {**given, "attention_mask": torch.cat([ones, mask], dim=1)}
        hidden = model.base_model.bert(**below, past_key_values=cache)
        return model.base_model.classifier(hidden.pooler_output).numpy()


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    stored = dict(np.load(OUT / "two_layers.npz"))
    given = {
        k: torch.tensor(stored[k].astype(np.int64))
        for k in ("input_ids", "attention_mask", "token_type_ids")
    }
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        few = dict(given)
        if name == "prefix":  # its tokens' positions begin behind it: fewer are left
            few = {k: v[:, : -config.num_virtual_tokens] for k, v in given.items()}
        model = peft.get_peft_model(base(stored), config)
        with torch.no_grad():
            for value in model.parameters():
                if value.requires_grad:  # as after training
                    value += 0.2 * torch.randn_like(value)
        path = OUT / f"peft_{name}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(path)
        (path / "README.md").unlink(missing_ok=True)  # of the hub
        np.save(path / "logits.npy", logits(model, few))
        size = sum(f.stat().st_size for f in path.iterdir()) / 1000
        versions = f"peft {peft.__version__}, transformers {transformers.__version__}"
        print(f"{path}: {size:.0f} kB, {versions}")


if __name__ == "__main__":
    main()
