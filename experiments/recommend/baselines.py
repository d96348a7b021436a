"""What a recommender without texts must be beaten by: RMSE of means and of biases on MovieLens.

python experiments/recommend/baselines.py

Prints a JSON line a baseline: the mean of the training ratings; the mean of the item's, damped; and
mean + user's bias + item's bias by ridge regression (Koren, Bell & Volinsky 2009, eq. 1 and 2); on
ua.test, and on the films that `configs/recommend.py:cold` holds out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from bert_ft.data.sources import open_source
from bert_ft.evals.metrics import mae, rmse
from bert_ft.evals.ranking_by_user import by_user

DATA = "../shared/data/movielens_100k"
RIDGE = 5.0  # rating-equivalents of a bias of 0: the usual 25 of Netflix is for longer histories


Ratings = tuple[np.ndarray, np.ndarray, np.ndarray]


def ratings(name: str, more: str = "") -> Ratings:
    uri = f"files:{DATA}/{name}?format=tsv&columns=user,item,rating,timestamp{more}"
    columns = open_source(uri, cache_dir=Path(".")).read().columns
    users, items = (np.asarray(columns[c], np.int64) for c in ("user", "item"))
    return users, items, np.asarray(columns["rating"], np.float64)


def biases(
    users: np.ndarray, items: np.ndarray, left: np.ndarray, rounds: int = 30
) -> tuple[np.ndarray, np.ndarray]:
    """(b_user, b_item) that minimise the squared error plus RIDGE times their squares, by turns."""
    b_user, b_item = np.zeros(users.max() + 1), np.zeros(5000)
    for _ in range(rounds):
        n = np.bincount(items, minlength=len(b_item)) + RIDGE
        b_item = np.bincount(items, left - b_user[users], len(b_item)) / n
        n = np.bincount(users, minlength=len(b_user)) + RIDGE
        b_user = np.bincount(users, left - b_item[items], len(b_user)) / n
    return b_user, b_item


def compare(split: str, train: Ratings, test: Ratings) -> None:
    users, items, labels = train
    test_users, test_items, wanted = test
    mean = labels.mean()
    b_user, b_item = biases(users, items, labels - mean)
    n = np.bincount(items, minlength=5000)
    alone = np.bincount(items, labels - mean, 5000) / (n + RIDGE)
    cold = int((~np.isin(test_items, items)).sum())
    for name, said in (
        ("mean", np.full(len(wanted), mean)),
        ("mean of the item", mean + alone[test_items]),
        ("user and item biases", mean + b_user[test_users] + b_item[test_items]),
    ):
        scores = {"rmse": rmse(wanted, said), "mae": mae(wanted, said)}
        scores |= by_user(test_users, wanted >= 4, said)
        about = {"split": split, "baseline": name, "n": len(wanted), "n_cold_item": cold}
        print(json.dumps(about | scores))


def main() -> int:
    compare("ua", ratings("ua.base"), ratings("ua.test"))
    by_item = "&split_by=item&split="
    compare("cold", ratings("u.data", by_item + "train"), ratings("u.data", by_item + "test"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
