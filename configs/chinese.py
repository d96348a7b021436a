r"""Chinese: sentiment of reviews (ChnSentiCorp) and named entities (CLUENER, Xu et al. 2020).

python -m bert_ft.main --config=configs/chinese.py --workdir=runs/chinese
python -m bert_ft.main --config=configs/chinese.py:bert --workdir=runs/chinese_bert
python -m bert_ft.main --config=configs/chinese.py:cluener --workdir=runs/cluener
python -m bert_ft.main --config=configs/chinese.py:cluener_bert --workdir=runs/cluener_bert

Without a model hub the model is a fresh small one on the vocabulary of bert-base-chinese, which
says what can be learnt from these rows alone; those in _bert start from hf:bert-base-chinese.
Data and vocabulary are read from ../shared. CLUENER is tagged by characters: some of its spans end
within what a tokenizer takes for a word. Its test set is the published development set, and its dev
a tenth of the training rows by a hash of the text.
Of the small model, seeds 0 to 2, 5 minutes a run on one core of a Xeon: test accuracy of the
sentiment 89.56 ± 0.43 % (n = 1,200), strict F1 of the entities 46.40 ± 0.05 % (n = 1,343), by
python -m experiments.scores.measure --configs configs/chinese.py configs/chinese.py:cluener \
    --rates 1e-3
BERT-base: not yet measured.
"""

from ml_collections import ConfigDict

from bert_ft import config

SHARED = "../shared/data"
REVIEWS = f"files:{SHARED}/chnsenticorp/{{}}.tsv?quoting=none"
# One row has a span within another one: it is left out, and listed.
ENTITIES = f"files:{SHARED}/cluener_zh/{{}}.json?format=spans&bad_rows=skip"


def get_config(variant: str = "") -> ConfigDict:
    """'' is sentiment and 'cluener' entities on a fresh small model; 'bert' and 'cluener_bert' on
    BERT-base from the hub."""
    if variant not in ("", "bert", "cluener", "cluener_bert"):
        raise ValueError(
            f"configs/chinese.py has no variant {variant!r}; accepted: '', 'bert', 'cluener', "
            "'cluener_bert'"
        )
    c = config.default()
    if variant.endswith("bert"):
        c.model.pretrained = "hf:bert-base-chinese"
        c.train.learning_rate = 3e-5
    else:
        c.model.tokenizer = f"{SHARED}/vocabs/bert-base-chinese-vocab.txt"
        c.model.hidden_size, c.model.heads = 128, 4
        c.model.layers, c.model.intermediate_size = 2, 512
        c.train.learning_rate, c.train.epochs = 1e-3, 5.0  # everything is new
    c.eval.keep_best = True
    c.eval.every_steps = 300
    if variant.startswith("cluener"):
        c.task.name, c.task.stride, c.task.words = "tagging", 16, "characters"
        c.data.text, c.data.label, c.data.max_length = "text", "spans", 64
        train, test = ENTITIES.format("train"), ENTITIES.format("test")
        c.data.train, c.data.dev, c.data.test = f"{train}&split=train", f"{train}&split=dev", test
        return c
    c.data.text, c.data.label, c.data.max_length = "text_a", "label", 256
    c.data.train, c.data.dev, c.data.test = (REVIEWS.format(s) for s in ("train", "dev", "test"))
    c.task.label_names = "negative,positive"
    return c
