"""The Hugging Face Trainer on the task of configs/sentiment.py: the same weights, split, batch
size, epochs, learning rate, schedule, decay and clip, all read from that config.

python -m experiments.sentiment.hf_trainer --seed=0 --padding=longest --out=FILE.jsonl

It needs `pip install -e '.[torch]' accelerate`. What the two programs do not share: the Trainer
ends each epoch with a short batch (642 steps, ours 640), starts the warmup at a rate of 0 (ours at
its first step's share), and draws its own permutations, dropout masks and head. JAX is never
imported.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bert_ft.data import wheels
from bert_ft.data.sources import Rows, open_source
from configs.sentiment import get_config

# padding of a batch -> how the Trainer draws it
SAMPLING = {"max": "random", "longest": "random", "group": "group_by_length"}
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy")


@dataclasses.dataclass
class Timeline:
    """The steps of one training: when each ended (s); and the batches made, in order, which are
    those steps' first and then whatever was made ahead or evaluated: real tokens, places (tokens
    with the padding) and examples."""

    ended: list[float] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)
    places: list[int] = dataclasses.field(default_factory=list)
    examples: list[int] = dataclasses.field(default_factory=list)


def settings(padding: str, max_steps: int = 0) -> dict[str, Any]:
    """Everything that bears on a run's accuracy, from configs/sentiment.py."""
    c = get_config()
    names = "batch_size epochs learning_rate warmup schedule weight_decay clip_norm beta1 beta2"
    return {
        "padding": padding,
        "max_steps": max_steps,
        "pretrained": c.model.pretrained,
        "train": c.data.train,
        "max_length": c.data.max_length,
        "epsilon": c.train.epsilon,
        **{name: c.train[name] for name in names.split()},
    }


def versions() -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], **found}


def cores() -> int:
    return len(os.sched_getaffinity(0))


def cache_dir() -> Path:
    """Where bert_ft keeps wheels."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bert_ft"


def read(split: str) -> Rows:
    return open_source(get_config().data[split], cache_dir=cache_dir()).read()


def encoded(tokenizer: Any, rows: Rows, padding: str) -> list[dict[str, Any]]:
    """The rows as the Trainer takes them: under 'max' padded to max_length, else not yet padded."""
    c = get_config()
    texts = tokenizer(
        rows.column(c.data.text),
        truncation=True,
        max_length=c.data.max_length,
        padding="max_length" if padding == "max" else False,
    )
    labels = [int(label) for label in rows.column(c.data.label)]
    return [
        {**{name: values[i] for name, values in texts.items()}, "labels": label}
        for i, label in enumerate(labels)
    ]


def training_arguments(
    t: ConfigDict, seed: int, scratch: str, sampling: str, max_steps: int = 0
) -> Any:
    """The Trainer's, from a config's `train`. max_steps 0: all epochs."""
    import transformers

    return transformers.TrainingArguments(
        scratch,
        per_device_train_batch_size=t.batch_size,
        num_train_epochs=t.epochs,
        max_steps=max_steps or -1,
        learning_rate=t.learning_rate,
        lr_scheduler_type=t.schedule,
        warmup_steps=t.warmup,
        weight_decay=t.weight_decay,
        adam_beta1=t.beta1,
        adam_beta2=t.beta2,
        adam_epsilon=t.epsilon,
        max_grad_norm=t.clip_norm,
        train_sampling_strategy=sampling,
        seed=seed,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=50,
        disable_tqdm=True,
        per_device_eval_batch_size=128,
    )


def make_trainer(seed: int, padding: str, max_steps: int, scratch: str) -> tuple[Any, Timeline]:
    """A Trainer ready to `train()`, and the timeline that it will fill. max_steps 0: all epochs."""
    import transformers

    t = get_config().train
    path = wheels.model_dir(get_config().model.pretrained, cache_dir())
    transformers.logging.set_verbosity_error()
    transformers.set_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    timeline = Timeline()

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            timeline.ended.append(time.monotonic())

    class Collator(transformers.DataCollatorWithPadding):
        def __call__(self, features: list[dict[str, Any]]) -> Any:
            batch = super().__call__(features)
            timeline.tokens.append(int(batch["attention_mask"].sum()))
            timeline.places.append(batch["attention_mask"].numel())
            timeline.examples.append(len(features))
            return batch

    arguments = training_arguments(t, seed, scratch, SAMPLING[padding], max_steps)
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=encoded(tokenizer, read("train"), padding),
        data_collator=Collator(tokenizer),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    return trainer, timeline


def accuracy(trainer: Any, split: str) -> tuple[float, int]:
    """(accuracy, n) of a whole split."""
    rows = encoded(trainer.processing_class, read(split), "longest")
    found = trainer.predict(rows)
    right = found.predictions.argmax(axis=1) == found.label_ids
    if len(right) != len(rows):
        raise RuntimeError(f"{split}: {len(right)} predictions for {len(rows)} rows")
    return float(right.mean()), len(right)


def run(seed: int, padding: str, max_steps: int = 0) -> dict[str, Any]:
    """Trains and scores one seed. Speed is that of all steps but the first."""
    import torch

    with tempfile.TemporaryDirectory() as scratch:
        trainer, timeline = make_trainer(seed, padding, max_steps, scratch)
        trainer.train()
        steps = len(timeline.ended)
        seconds = timeline.ended[-1] - timeline.ended[0]
        test, test_n = accuracy(trainer, "test")
        dev, dev_n = accuracy(trainer, "dev")
    return {
        "system": "trainer",
        "seed": seed,
        "accuracy": test,
        "n": test_n,
        "dev_accuracy": dev,
        "dev_n": dev_n,
        "steps": steps,
        "examples_per_s": round(sum(timeline.examples[1:steps]) / seconds, 2),
        "real_token_fraction": round(
            sum(timeline.tokens[:steps]) / sum(timeline.places[:steps]), 4
        ),
        "settings": settings(padding, max_steps),
        "versions": versions(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--padding", choices=list(SAMPLING), default="longest")
    p.add_argument("--max_steps", type=int, default=0, help="0: all epochs of the config")
    p.add_argument("--out", type=Path, required=True, help="a JSONL file; a line is added to it")
    args = p.parse_args()
    line = json.dumps(run(args.seed, args.padding, args.max_steps))
    with args.out.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
