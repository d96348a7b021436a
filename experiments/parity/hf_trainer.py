"""The Hugging Face Trainer on a task of tasks.py: the same weights to begin with, those of the new
head too (start.py), rows, batch size, epochs, learning rate, schedule, decay and clip, all read
from our config.

python -m experiments.parity.hf_trainer --task="MRPC" --seed=0 --out=FILE.jsonl

It needs `pip install -e '.[torch]' accelerate`. Models are AutoModelFor{Sequence,Token}-
Classification; scores are by scikit-learn, scipy and seqeval (strict, IOB2). Tags are read off the
first sub-word of each word by argmax, the ratings of STS-B regressed as they are: as transformers'
own examples do. Batches are drawn at random, as ours are: grouped by length they would be other
batches, and transformers 5.24 would predict in that order too. JAX is not imported in this
process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bert_ft.data.rows import Rows
from experiments.parity.tasks import SAMPLING, TASKS, arguments, read
from experiments.sentiment.hf_trainer import training_arguments, versions

IGNORED = -100  # no loss is taken there


def names_of(rows: Rows, c: ConfigDict, path: Path) -> list[str]:
    """The classes or tags of the training rows, in the order of the outputs of the model in
    directory `path`, which has them all; none for a rating, which is its one output."""
    outputs = [*json.loads((path / "config.json").read_text())["id2label"].values()]
    if c.task.name == "regression":
        assert len(outputs) == 1, f"{path}: outputs {outputs}"
        return []
    values = rows.column(c.data.label)
    if c.task.name == "tagging":
        values = [tag for tags in values for tag in tags]
    assert {*outputs} == {str(value) for value in values}, f"{path}: outputs {outputs}"
    return outputs


def tokenized(tokenizer: Any, rows: Rows, c: ConfigDict) -> Any:
    """The rows' tokens, not yet padded: a BatchEncoding."""
    first = rows.column(c.data.text)
    second = rows.column(c.data.text_pair) if c.data.text_pair else None
    tagging = c.task.name == "tagging"
    if isinstance(first[0], list) and not tagging:
        first = [" ".join(words) for words in first]
    limits = {"truncation": True, "max_length": c.data.max_length}
    return tokenizer(first, second, is_split_into_words=tagging, **limits)


def examples(texts: Any) -> list[dict[str, Any]]:
    return [
        {name: values[i] for name, values in texts.items()} for i in range(len(texts["input_ids"]))
    ]


def first_subwords(texts: Any, i: int) -> dict[int, int]:
    """{word: its first sub-word} of row i, for the words that max_length has left."""
    places = {w: k for k, w in reversed(list(enumerate(texts.word_ids(i)))) if w is not None}
    return dict(sorted(places.items()))


def labelled(texts: Any, rows: Rows, c: ConfigDict, names: list[str]) -> list[dict[str, Any]]:
    """The rows as the Trainer takes them for training."""
    number = {name: i for i, name in enumerate(names)}
    out = examples(texts)
    for i, (example, gold) in enumerate(zip(out, rows.column(c.data.label), strict=True)):
        if c.task.name == "tagging":
            example["labels"] = [IGNORED] * len(example["input_ids"])
            for w, k in first_subwords(texts, i).items():
                example["labels"][k] = number[gold[w]]
        else:
            example["labels"] = number[str(gold)] if names else float(gold)
    return out


def scores_of(logits: np.ndarray, texts: Any, rows: Rows, c: ConfigDict, names: list[str]) -> dict:
    """The scores that the tasks report, in [0, 1]."""
    import scipy.stats
    import sklearn.metrics
    from seqeval.metrics import f1_score
    from seqeval.scheme import IOB2

    gold = rows.column(c.data.label)
    if c.task.name == "tagging":
        guess = [["O"] * len(words) for words in gold]  # also of the words that were cut off
        for i, tags in enumerate(guess):
            for w, k in first_subwords(texts, i).items():
                tags[w] = names[int(logits[i, k].argmax())]
        return {"f1": float(f1_score(gold, guess, mode="strict", scheme=IOB2))}
    if c.task.name == "regression":
        return {"pearson": float(scipy.stats.pearsonr(logits[:, 0], np.array(gold, float))[0])}
    guess = [names[k] for k in logits.argmax(axis=1)]
    true = [str(label) for label in gold]
    found = {
        "accuracy": float(sklearn.metrics.accuracy_score(true, guess)),
        "f1_macro": float(sklearn.metrics.f1_score(true, guess, average="macro")),
    }
    if len(names) == 2:
        found["f1"] = float(sklearn.metrics.f1_score(true, guess, pos_label=names[1]))
    return found


def make_trainer(
    c: ConfigDict, rows: Rows, seed: int, names: list[str], path: Path, scratch: str
) -> Any:
    """That trains the model of directory `path`, whose outputs are `names`."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.set_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    tagging = c.task.name == "tagging"
    kind = "AutoModelForTokenClassification" if tagging else "AutoModelForSequenceClassification"
    # One output alone is a rating to transformers, and its loss the squared error.
    model = getattr(transformers, kind).from_pretrained(path)
    collator = "DataCollatorForTokenClassification" if tagging else "DataCollatorWithPadding"
    arguments = training_arguments(c.train, seed, scratch, SAMPLING)
    return transformers.Trainer(
        model,
        arguments,
        train_dataset=labelled(tokenized(tokenizer, rows, c), rows, c, names),
        data_collator=getattr(transformers, collator)(tokenizer),
        processing_class=tokenizer,
    )


def logits_of(trainer: Any, texts: Any) -> np.ndarray:
    """float32 (N, C), or (N, tokens, C) of tags: row i of `texts` at place i."""
    return trainer.predict(examples(texts)).predictions


def run(name: str, seed: int) -> dict[str, Any]:
    """Trains and scores one seed."""
    task = TASKS[name]
    c = task.read_config()
    training = read(c, "train")
    split, metric = task.score.split("/")
    rows = read(c, split)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "start")
        ours = [sys.executable, "-m", "experiments.parity.start", f"--task={name}"]
        subprocess.run([*ours, f"--seed={seed}", f"--out={path}"], check=True)
        names = names_of(training, c, path)
        trainer = make_trainer(c, training, seed, names, path, scratch)
        trainer.train()
        texts = tokenized(trainer.processing_class, rows, c)
        logits = logits_of(trainer, texts)
    scores = scores_of(logits, texts, rows, c, names)
    return {
        "task": name,
        "system": "trainer",
        "seed": seed,
        "score": scores[metric],
        "n": len(rows),
        "scores": scores,
        "steps": trainer.state.global_step,
        "settings": task.settings(),
        "versions": versions(),
        "cores": len(os.sched_getaffinity(0)),
    }


def main() -> None:
    args = arguments(__doc__, out="a JSONL file; a line is added to it")
    line = json.dumps(run(args.task, args.seed))
    with args.out.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
