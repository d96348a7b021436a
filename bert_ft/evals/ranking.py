"""Scores of ranked lists, from the ranks at which the right candidates stand."""

from __future__ import annotations

import numpy as np

CUTS = (1, 5, 10)  # of recall
DEPTH = 10  # of NDCG


def ranks_among(query: np.ndarray, ahead: np.ndarray, score: np.ndarray) -> np.ndarray:
    """float64 (P,): the rank, from 1, of each of P right candidates in its query's list.

    query int (P,): whose it is. ahead (P,): how many wrong candidates stand before it, those of the
    same score included: a tie counts against the right one, so that a model which gives all
    candidates one score ranks last and not first. inf where it is not in the list. score (P,):
    the right candidates of one query stand in its order, behind each other.
    """
    order = np.lexsort((-score, ahead, query))
    sorted_query = query[order]
    first = np.searchsorted(sorted_query, sorted_query)  # of each query's stretch
    ranks = np.empty(len(query), np.float64)
    ranks[order] = ahead[order] + np.arange(len(order)) - first + 1
    return ranks


def ranking_scores(query: np.ndarray, rank: np.ndarray) -> dict[str, float]:
    """Means over queries, each of which has one right candidate or more.

    query int (P,) and rank (P,) of the right ones, inf for what the list lacks.
    mrr: 1 / rank of the first right one. recall@k: share of a query's right ones among the first k.
    map: mean over its right ones of the precision at their rank (Manning, Raghavan & Schütze 2008,
    8.4). ndcg@10: sum of 1 / log2(1 + rank) over those in the first 10, over the greatest that
    their number allows (Järvelin & Kekäläinen 2002, gains 0 or 1).
    """
    order = np.lexsort((rank, query))
    query, rank = query[order], np.asarray(rank, np.float64)[order]
    _, first, count = np.unique(query, return_index=True, return_counts=True)
    place = np.arange(len(query)) - np.repeat(first, count) + 1  # among the right ones, from 1

    def mean(values: np.ndarray, over: np.ndarray) -> float:
        return float(np.mean(np.add.reduceat(values, first) / over))

    gain = np.where(rank <= DEPTH, 1 / np.log2(rank + 1), 0.0)
    best = np.where(place <= DEPTH, 1 / np.log2(place + 1.0), 0.0)
    return {
        "mrr": float(np.mean(1 / rank[first])),
        **{f"recall@{k}": mean((rank <= k).astype(np.float64), count) for k in CUTS},
        "map": mean(place / rank, count),
        f"ndcg@{DEPTH}": mean(gain, np.add.reduceat(best, first)),
    }
