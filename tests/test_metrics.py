"""Every score against scikit-learn or SciPy, or against a definition written out in loops."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_ft.evals import metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")
scipy_stats = pytest.importorskip("scipy.stats")

# Both sides are float64 sums over at most some hundred terms in different orders.
TOLERANCE = 1e-9


@st.composite
def labelled(draw):
    """(classes, labels, predictions): small enough that classes go absent and inputs constant."""
    classes = draw(st.integers(2, 6))
    n = draw(st.integers(1, 40))
    values = st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)
    return classes, np.array(draw(values)), np.array(draw(values))


@given(labelled())
def test_classification_scores_equal_sklearn(case):
    classes, labels, predictions = case
    confusion = metrics.confusion_matrix(labels, predictions, classes)
    names = range(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(
            confusion, sklearn_metrics.confusion_matrix(labels, predictions, labels=names)
        )
        expected = sklearn_metrics.precision_recall_fscore_support(
            labels, predictions, labels=names, zero_division=0
        )
        for ours, theirs in zip(metrics.per_class(confusion), expected, strict=False):
            np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
        pairs = [
            (
                metrics.accuracy(labels, predictions),
                sklearn_metrics.accuracy_score(labels, predictions),
            ),
            (
                metrics.macro_f1(confusion),
                sklearn_metrics.f1_score(labels, predictions, average="macro", zero_division=0),
            ),
            (
                metrics.binary_f1(labels, predictions),
                sklearn_metrics.f1_score(labels == 1, predictions == 1, zero_division=0),
            ),
            (
                metrics.matthews_correlation(confusion),
                sklearn_metrics.matthews_corrcoef(labels, predictions),
            ),
        ]
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, abs=TOLERANCE)


def test_matthews_of_counts_beyond_float_precision():
    # n^2 is 10^20 here: int64 would overflow and float64 lose the covariance's last digits.
    confusion = np.array([[5_000_000_001, 5_000_000_000], [5_000_000_000, 5_000_000_000]])
    assert metrics.matthews_correlation(confusion) == pytest.approx(5e-11, rel=1e-6)


def _softmax(rng, n, classes):
    logits = rng.normal(0, 2, (n, classes))
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 77])
def test_probability_scores_equal_sklearn(classes):
    rng = np.random.default_rng(classes)
    probabilities = _softmax(rng, 300, classes)
    labels = rng.integers(0, classes, 300)
    assert metrics.negative_log_likelihood(labels, probabilities) == pytest.approx(
        sklearn_metrics.log_loss(labels, probabilities, labels=range(classes)), abs=TOLERANCE
    )
    one_hot = np.eye(classes)[labels]
    assert metrics.brier(labels, probabilities) == pytest.approx(
        np.mean(((probabilities - one_hot) ** 2).sum(1)), abs=TOLERANCE
    )
    if classes == 2:
        # scikit-learn counts one of the two classes only.
        assert metrics.brier(labels, probabilities) == pytest.approx(
            2 * sklearn_metrics.brier_score_loss(labels, probabilities[:, 1]), abs=TOLERANCE
        )


def test_probability_scores_of_certainty():
    certain = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    right, wrong = np.array([0, 1]), np.array([1, 0])
    assert metrics.brier(right, certain) == 0 and metrics.brier(wrong, certain) == 2
    assert metrics.negative_log_likelihood(right, certain) == 0
    assert np.isfinite(metrics.negative_log_likelihood(wrong, certain))
    assert metrics.calibration(right, certain).ece == 0
    assert metrics.calibration(wrong, certain).ece == 1


def test_calibration_equals_the_definition_in_loops():
    rng = np.random.default_rng(0)
    probabilities = _softmax(rng, 500, 4)
    probabilities[:3] = 0.25  # in every run some example lies on no edge, these on the lowest
    probabilities[3] = [0.6, 0.2, 0.1, 0.1]  # an inner edge of 15 bins belongs to the bin below it
    labels = rng.integers(0, 4, 500)
    got = metrics.calibration(labels, probabilities, bins=15)
    confidence, hit = probabilities.max(1), probabilities.argmax(1) == labels
    ece = 0.0
    for m in range(15):
        low, high = got.edges[m], got.edges[m + 1]
        inside = [i for i in range(500) if low < confidence[i] <= high]
        assert got.count[m] == len(inside)
        if inside:
            gap = np.mean(hit[inside]) - np.mean(confidence[inside])
            assert got.accuracy[m] - got.confidence[m] == pytest.approx(gap, abs=TOLERANCE)
            ece += len(inside) / 500 * abs(gap)
        else:
            assert np.isnan(got.accuracy[m])
    assert got.ece == pytest.approx(ece, abs=TOLERANCE)
    assert got.count.sum() == 500


@st.composite
def two_columns(draw):
    n = draw(st.integers(2, 30))
    # Few distinct values, so that ties are common; some wide ones, so that scales differ.
    value = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32))
    column = st.lists(value, min_size=n, max_size=n)
    return np.array(draw(column)), np.array(draw(column))


@given(two_columns())
def test_regression_scores_equal_scipy(case):
    labels, predictions = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rho = scipy_stats.spearmanr(labels, predictions).statistic
    # 1e-6: on a nearly constant column SciPy's own rounding shows in the seventh digit.
    assert metrics.spearman(labels, predictions) == pytest.approx(rho, abs=1e-6, nan_ok=True)
    assert metrics.rmse(labels, predictions) == pytest.approx(
        sklearn_metrics.root_mean_squared_error(labels, predictions)
    )
    assert metrics.mae(labels, predictions) == pytest.approx(
        sklearn_metrics.mean_absolute_error(labels, predictions)
    )
    if min(np.std(labels), np.std(predictions)) > 1e-3:
        r = scipy_stats.pearsonr(labels, predictions).statistic
        assert metrics.pearson(labels, predictions) == pytest.approx(r, abs=1e-6)


def test_correlation_of_a_constant_is_undefined():
    constant = np.full(10, 0.1)  # the float mean of ten 0.1s is not 0.1
    rising = np.arange(10.0)
    for score in (metrics.pearson, metrics.spearman):
        assert np.isnan(score(constant, rising)) and np.isnan(score(rising, constant))
    assert metrics.pearson(rising, rising) == pytest.approx(1.0)
    assert metrics.spearman(rising, -(rising**3)) == pytest.approx(-1.0)
    assert np.isnan(metrics.spearman(rising, np.where(rising == 3, np.nan, rising)))


@given(two_columns(), st.randoms(use_true_random=False))
def test_auc_equals_sklearn(case, random):
    scores, _ = case
    labels = np.array([random.randint(0, 1) for _ in scores])
    if len(set(labels)) == 1:
        assert np.isnan(metrics.auc(labels, scores))
    else:
        expected = sklearn_metrics.roc_auc_score(labels, scores)
        assert metrics.auc(labels, scores) == pytest.approx(expected, abs=TOLERANCE)


def _ranking_in_loops(groups, relevance, scores, k):
    """Both scores by their definitions, a group and a candidate at a time."""
    mrr, ndcg = [], []
    for g in sorted(set(groups)):
        members = [(s, r) for h, r, s in zip(groups, relevance, scores, strict=True) if h == g]
        members.sort(key=lambda sr: (-sr[0], sr[1]))
        gains = [r for _, r in members]
        if not any(gains):
            continue
        hits = [i for i, r in enumerate(gains, 1) if r > 0]
        mrr.append(1 / hits[0] if hits[0] <= k else 0.0)
        dcg = sum(r / np.log2(i + 1) for i, r in enumerate(gains[:k], 1))
        best = sum(r / np.log2(i + 1) for i, r in enumerate(sorted(gains)[::-1][:k], 1))
        ndcg.append(dcg / best)
    return [float(np.mean(x)) if x else float("nan") for x in (mrr, ndcg)]


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 4)),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 6),
)
def test_ranking_scores_equal_the_definitions_in_loops(rows, k):
    groups, relevance, scores = map(np.array, zip(*rows, strict=True))
    ranking = metrics.rank(groups, relevance, scores)
    got = [
        metrics.mean_reciprocal_rank(ranking, k),
        metrics.ndcg_at_k(ranking, k),
    ]
    expected = _ranking_in_loops(groups, relevance, scores, k)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)
    assert ranking.groups + ranking.unscorable == len(set(groups))


def test_ranking_scores_equal_sklearn_without_ties():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 12)
    relevance = rng.integers(0, 3, 240)
    relevance[::12] = 1  # every group has something relevant
    scores = rng.permutation(240).astype(np.float32)
    order = rng.permutation(240)  # the order of the rows must not matter
    ranking = metrics.rank(groups[order], relevance[order], scores[order])
    table = relevance.reshape(20, 12), scores.reshape(20, 12)
    assert metrics.ndcg_at_k(ranking, 5) == pytest.approx(sklearn_metrics.ndcg_score(*table, k=5))


def test_a_constant_score_earns_nothing_from_the_order_of_the_file():
    ranking = metrics.rank(np.zeros(10), np.eye(10)[0], np.zeros(10))
    assert metrics.mean_reciprocal_rank(ranking) == 0.1
    assert metrics.mean_reciprocal_rank(ranking, 9) == metrics.ndcg_at_k(ranking, 9) == 0.0


def test_faults_are_raised():
    one, two = np.zeros(1, int), np.zeros(2, int)
    for call in (
        lambda: metrics.accuracy(one, two),
        lambda: metrics.accuracy(two[:0], two[:0]),
        lambda: metrics.confusion_matrix(two, two + 2, 2),
        lambda: metrics.confusion_matrix(two - 1, two, 2),
        lambda: metrics.rank(two, two, np.array([0.0, np.nan])),
        lambda: metrics.rank(two, two - 1, two),
        lambda: metrics.ndcg_at_k(metrics.rank(two, two + 1, two), 0),
    ):
        with pytest.raises(ValueError):
            call()
