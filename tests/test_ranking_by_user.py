"""Lists by user: scikit-learn's AUC and NDCG, and brute force, one user at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_ft.evals.ranking_by_user import auc_of_users, by_user, ranks


def random_set(seed, count=400, users=23, levels=0):
    """Users, liked, scores; `levels` > 0 gives few different scores, so that many are tied."""
    rng = np.random.default_rng(seed)
    scores = rng.permutation(count) / count
    if levels:
        scores = np.floor(scores * levels)
    user = rng.integers(0, users, count) * 7 + 100
    return user, rng.random(count) < rng.random(1), scores


@pytest.mark.parametrize("levels", [0, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_auc_is_scikit_learns(seed, levels):
    sk = pytest.importorskip("sklearn.metrics")
    user, liked, scores = random_set(seed, 300, 60, levels)
    got = auc_of_users(user, liked, scores)
    wanted = []
    for u in np.unique(user):
        mine = user == u
        both = len(set(liked[mine])) == 2
        wanted.append(sk.roc_auc_score(liked[mine], scores[mine]) if both else np.nan)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    assert np.isnan(got).any() and not np.isnan(got).all()
    found = by_user(user, liked, scores)
    assert found["auc"] == pytest.approx(np.nanmean(wanted))
    assert found["users_one_kind"] == np.isnan(wanted).sum()


@pytest.mark.parametrize("seed", range(4))
def test_ndcg_is_scikit_learns_and_mrr_brute_force(seed):
    sk = pytest.importorskip("sklearn.metrics")
    user, liked, scores = random_set(seed)
    user = np.append(user, [999, 999])  # one who likes nothing, and one with a single row
    liked, scores = np.append(liked, [0, 0]), np.append(scores, [2.0, 3.0])
    ndcg, mrr, none = [], [], 0
    for u in np.unique(user):
        y, s = liked[user == u], scores[user == u]
        if not y.any():
            none += 1
            continue
        ndcg.append(sk.ndcg_score([y], [s], k=10) if len(y) > 1 else 1.0)
        order = list(y[np.argsort(-s)])
        place = order.index(1) + 1
        mrr.append(1 / place if place <= 10 else 0.0)
    found = by_user(user, liked, scores)
    assert found["ndcg@10"] == pytest.approx(np.mean(ndcg))
    assert found["mrr@10"] == pytest.approx(np.mean(mrr))
    assert (found["users"], found["users_none_liked"]) == (len(ndcg), none) and none >= 1


def test_a_model_that_says_the_same_of_all_earns_nothing_by_order():
    user, liked = np.zeros(20, int), np.arange(20) < 5
    found = by_user(user, liked, np.zeros(20))
    assert found["auc"] == 0.5 and found["mrr@10"] == 0 and found["ndcg@10"] == 0


def test_nobody_to_score():
    found = by_user(np.asarray([1, 2]), np.zeros(2), np.ones(2))
    assert np.isnan(found["auc"]) and np.isnan(found["ndcg@10"]) and found["users_none_liked"] == 2


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=30))
def test_ranks(rows):
    user, score = (np.asarray(side) for side in zip(*rows, strict=True))
    wanted = [
        1 + sum(u == v and (t > s or (t == s and j < i)) for j, (v, t) in enumerate(rows))
        for i, (u, s) in enumerate(rows)
    ]
    assert ranks(user, score).tolist() == wanted
