"""Scores of ranked lists, one list a user: NDCG@k, MRR@k, AUC. NumPy only.

A user's candidates are the rows of the set that are his: what is measured is the order of those,
not a search among all items. N is the number of rows.
"""

from __future__ import annotations

import numpy as np

from bert_ft.evals import metrics


def auc_of_users(users_N: np.ndarray, liked_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """float64 (U,), users in rising order: the area under each one's ROC curve, by the rank sum of
    Mann & Whitney (1947) over his own rows, ties counting half; NaN where all his rows are liked,
    or none."""
    index = np.unique(users_N, return_inverse=True)[1]
    order = np.lexsort((scores_N, index))
    user, score, liked = index[order], np.asarray(scores_N)[order], np.asarray(liked_N)[order] > 0
    begins = np.ones(len(user), bool)
    begins[1:] = (user[1:] != user[:-1]) | (score[1:] != score[:-1])
    first = np.flatnonzero(begins)
    sizes = np.diff(np.append(first, len(user)))
    shared = np.repeat(first + (sizes - 1) / 2, sizes)  # the mean place of tied rows, from 0
    rank = shared - np.searchsorted(user, user, side="left") + 1
    positive = np.bincount(user, weights=liked)
    negative = np.bincount(user) - positive
    u = np.bincount(user, weights=rank * liked) - positive * (positive + 1) / 2
    with np.errstate(invalid="ignore"):
        return u / (positive * negative)


def by_user(
    users_N: np.ndarray, liked_N: np.ndarray, scores_N: np.ndarray, k: int = 10
) -> dict[str, float]:
    """Means over users, every user counting alike.

    ndcg@k (binary gain) and mrr@k are over the `users` with a liked row, auc over those with both
    kinds. Left out, and counted: users_none_liked, from the first two; users_one_kind, from auc.
    Of tied rows the less liked stands first (`metrics.rank`). NaN where no user can be scored.
    """
    ranking = metrics.rank(users_N, np.asarray(liked_N, np.float64), scores_N)
    areas = auc_of_users(users_N, liked_N, scores_N)
    defined = areas[~np.isnan(areas)]
    return {
        f"ndcg@{k}": metrics.ndcg_at_k(ranking, k),
        f"mrr@{k}": metrics.mean_reciprocal_rank(ranking, k),
        "auc": float(defined.mean()) if len(defined) else float("nan"),
        "users": float(ranking.groups),
        "users_none_liked": float(ranking.unscorable),
        "users_one_kind": float(len(areas) - len(defined)),
    }


def ranks(users_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """int64 (N,): each row's place in its user's list by falling score, from 1; of equal scores the
    earlier row comes first."""
    index = np.unique(users_N, return_inverse=True)[1]
    order = np.lexsort((-np.asarray(scores_N, np.float64), index))
    user = index[order]
    out = np.empty(len(order), np.int64)
    out[order] = np.arange(len(order)) - np.searchsorted(user, user, side="left") + 1
    return out
