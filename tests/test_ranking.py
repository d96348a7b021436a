"""Ranks and their scores against scikit-learn and brute force; blocks, ties, padding."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from bert_ft.evals.ranking import ranking_scores, ranks_among
from bert_ft.tasks import ranking


def world(questions, candidates, seed, width=16, most=3):
    """(queries, candidates, right pairs, relevance (N, M)) with distinct scores."""
    rng = np.random.default_rng(seed)

    def unit(count):
        x = rng.normal(size=(count, width)).astype(np.float32)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    relevance = np.zeros((questions, candidates), bool)
    for row in relevance:
        row[rng.choice(candidates, rng.integers(1, min(most, candidates) + 1), False)] = True
    owner, wanted = np.nonzero(relevance)
    return unit(questions), unit(candidates), (owner, wanted), relevance


def nobody(queries):
    return np.full(len(queries), -1, np.int64)


def brute(queries, candidates, right, barred):
    """Wrong candidates ahead of each pair, in float64, ties against the right one."""
    scores = queries.astype(np.float64) @ candidates.T.astype(np.float64)
    ahead = []
    for q, c in zip(*right, strict=True):
        mine = set(right[1][right[0] == q]) | {barred[q]}
        wrong = [i for i in range(len(candidates)) if i not in mine]
        ahead.append(sum(scores[q, i] >= scores[q, c] - ranking.TIE for i in wrong))
    return np.asarray(ahead), scores


@pytest.mark.parametrize("blocks", [(4, 8), (5, 7), (64, 512), (1, 1)])
def test_blocks_and_brute_force_agree(blocks):
    queries, candidates, right, _ = world(23, 61, seed=1, most=9)
    barred = nobody(queries)
    free = [c for c in range(61) if c not in right[1][right[0] == 2]]
    barred[2] = free[0]
    scores, best, ahead, own = ranking.rank(queries, candidates, right, barred, 5, blocks)
    expected, table = brute(queries, candidates, right, barred)
    np.testing.assert_array_equal(ahead, expected)
    np.testing.assert_allclose(own, table[right], atol=1e-6)
    table[2, free[0]] = -np.inf
    np.testing.assert_array_equal(best, np.argsort(-table, axis=1)[:, :5])
    np.testing.assert_allclose(scores, -np.sort(-table, axis=1)[:, :5], atol=1e-6)


def test_eight_devices_share_the_queries():
    """The test above, for the same blocks a device, in a process of eight."""
    program = (
        "import jax, test_ranking; assert jax.device_count() == 8\n"
        "for blocks in ((2, 8), (64, 512)):\n"
        "    test_ranking.test_blocks_and_brute_force_agree(blocks)"
    )
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    env = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_array_of_all_scores_is_made():
    queries, candidates, right, _ = world(40, 90, seed=2)
    made = jax.make_jaxpr(ranking._rank_block, static_argnums=5)(
        queries[:4],
        candidates.reshape(9, 10, -1),
        90,
        np.zeros((1, 4), int),
        nobody(queries)[:4],
        3,
    )
    assert "4,10" in str(made) and "4,90" not in str(made)


def test_more_listed_than_there_are():
    queries, candidates, right, _ = world(3, 4, seed=3, most=1)
    barred = (right[1] + 1) % 4
    scores, best, *_ = ranking.rank(queries, candidates, right, barred, 10)
    assert best.shape == (3, 4) and (best[:, 3] == -1).all() and (best[:, :3] >= 0).all()
    assert np.isneginf(scores[:, 3]).all()


def test_equal_candidates_count_against_the_right_one():
    """A model that gives all candidates one vector has found nothing."""
    queries, candidates, right, _ = world(6, 40, seed=4, most=1)
    same = np.repeat(candidates[:1], 40, axis=0)
    for blocks in ((2, 7), (8, 64)):
        _, best, ahead, own = ranking.rank(queries, same, right, nobody(queries), 3, blocks)
        assert (ahead == 39).all()
        assert (best == [0, 1, 2]).all(), "of equal ones the earlier is listed first"
    scores = ranking_scores(right[0], ranks_among(right[0], ahead, own))
    assert scores["mrr"] == pytest.approx(1 / 40) and scores["recall@10"] == 0


def test_a_tie_with_some():
    queries = np.array([[1, 0]], np.float32)
    candidates = np.array([[0, 1], [0.6, 0.8], [1, 0], [0.6, 0.8]], np.float32)
    right = np.array([0]), np.array([1])
    *_, ahead, own = ranking.rank(queries, candidates, right, nobody(queries), 1)
    assert ranks_among(right[0], ahead, own) == [3]
    both = np.array([0, 0]), np.array([1, 3])  # two right ones of one score: one behind the other
    *_, ahead, own = ranking.rank(queries, candidates, both, nobody(queries), 1)
    assert sorted(ranks_among(both[0], ahead, own)) == [2, 3]


def test_right_ones_next_to_each_other_keep_the_order_of_their_scores():
    queries = np.array([[1, 0]], np.float32)
    candidates = np.array([[0, 1], [0.6, 0.8], [0.8, 0.6]], np.float32)
    right = np.array([0, 0]), np.array([1, 2])
    *_, ahead, own = ranking.rank(queries, candidates, right, nobody(queries), 1)
    assert ahead.tolist() == [0, 0] and ranks_among(right[0], ahead, own).tolist() == [2, 1]


@pytest.mark.parametrize("most", [1, 4, 30])
def test_scores_are_scikit_learns(most):
    queries, candidates, right, relevance = world(50, 70, seed=5, most=most)
    *_, ahead, own = ranking.rank(queries, candidates, right, nobody(queries), 1, (16, 32))
    ours = ranking_scores(right[0], ranks_among(right[0], ahead, own))
    table = queries @ candidates.T
    assert ours["map"] == pytest.approx(label_ranking_average_precision_score(relevance, table))
    assert ours["ndcg@10"] == pytest.approx(ndcg_score(relevance, table, k=10))
    order = np.argsort(-table, axis=1)
    hits = np.take_along_axis(relevance, order, axis=1)
    assert ours["mrr"] == pytest.approx(np.mean(1 / (hits.argmax(axis=1) + 1)))
    for k in (1, 5, 10):
        share = hits[:, :k].sum(axis=1) / relevance.sum(axis=1)
        assert ours[f"recall@{k}"] == pytest.approx(share.mean())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5), min_size=1, max_size=6))
def test_scores_of_any_ranks(lists):
    """Against the definitions, a query at a time; the order of the pairs does not matter."""
    query = np.concatenate([np.full(len(x), 7 * i) for i, x in enumerate(lists)])
    ahead = np.concatenate([np.asarray(x) for x in lists])
    ranks = ranks_among(query, ahead, 1.0 - ahead)
    per = [sorted(ranks[query == 7 * i]) for i in range(len(lists))]
    assert per == [[a + i + 1 for i, a in enumerate(sorted(x))] for x in lists]
    scores = ranking_scores(query, ranks)
    assert scores["mrr"] == pytest.approx(np.mean([1 / r[0] for r in per]))
    assert scores["map"] == pytest.approx(
        np.mean([np.mean([(i + 1) / rank for i, rank in enumerate(r)]) for r in per])
    )
    shuffled = np.random.default_rng(0).permutation(len(query))
    assert ranking_scores(query[shuffled], ranks[shuffled]) == pytest.approx(scores)


def test_what_a_list_lacks_is_not_found():
    scores = ranking_scores(np.array([0, 0, 1]), np.array([1.0, np.inf, np.inf]))
    assert scores["mrr"] == 0.5 and scores["recall@10"] == 0.25 and scores["map"] == 0.25
    assert scores["ndcg@10"] == pytest.approx(1 / (1 + 1 / np.log2(3)) / 2)
