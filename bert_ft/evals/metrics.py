"""Scores from whole arrays of labels, predictions and probabilities. NumPy only.

Every function sees all N examples at once, so nothing is an average of batch averages. A score
that its definition leaves undefined (the correlation of a constant, the AUC of a single class) is
NaN, never a convenient zero. Names of axes: N examples, C classes, M bins, G groups.
"""

import dataclasses

import numpy as np


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """The fraction of the N examples whose prediction equals the label."""
    labels, predictions = _same_length(labels, predictions)
    return float(np.mean(labels == predictions))


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 [C, C]: row is the label, column the prediction, both in 0..classes-1."""
    labels, predictions = _same_length(labels, predictions)
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.min() < 0 or values.max() >= classes:
            raise ValueError(f"{name} outside 0..{classes - 1}: {values.min()}..{values.max()}")
    flat = labels.astype(np.int64) * classes + predictions.astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def precision_recall_f1(
    true_positives: np.ndarray, false_positives: np.ndarray, false_negatives: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 (van Rijsbergen 1979) from counts of any shape, elementwise.

    0/0 is 0, as in scikit-learn's `zero_division=0` and the CoNLL scorer: a class that was never
    predicted has found nothing.
    """
    tp, fp, fn = (
        np.asarray(x, np.float64) for x in (true_positives, false_positives, false_negatives)
    )
    return _ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn)


def per_class(confusion_CxC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, float64 [C] each."""
    tp = np.diag(confusion_CxC)
    return precision_recall_f1(tp, confusion_CxC.sum(0) - tp, confusion_CxC.sum(1) - tp)


def macro_f1(confusion_CxC: np.ndarray) -> float:
    """The mean F1 of the classes that occur among labels or predictions.

    A class that does neither has no F1, and counting it as 0 would make the score depend on the
    size of the label list. This is scikit-learn's `average='macro'` with its default labels.
    """
    present = confusion_CxC.sum(0) + confusion_CxC.sum(1) > 0
    return float(per_class(confusion_CxC)[2][present].mean()) if present.any() else float("nan")


def binary_f1(labels: np.ndarray, predictions: np.ndarray, positive: int = 1) -> float:
    """F1 of the class `positive` against all others (GLUE's F1 for MRPC and QQP)."""
    labels, predictions = _same_length(labels, predictions)
    is_label, is_predicted = labels == positive, predictions == positive
    tp = np.sum(is_label & is_predicted)
    return float(precision_recall_f1(tp, np.sum(is_predicted) - tp, np.sum(is_label) - tp)[2])


def matthews_correlation(confusion_CxC: np.ndarray) -> float:
    """Matthews correlation for any number of classes: R_K of Gorodkin (2004).

    0 where labels or predictions are all of one class (its limit, and what GLUE reports).
    """
    # Python integers: the products pass int64 at a few billion tokens, and floats cancel.
    actual = [int(x) for x in confusion_CxC.sum(1)]
    predicted = [int(x) for x in confusion_CxC.sum(0)]
    n, correct = sum(actual), int(np.trace(confusion_CxC))
    covariance = correct * n - sum(a * p for a, p in zip(actual, predicted, strict=True))
    spread = (n * n - sum(a * a for a in actual), n * n - sum(p * p for p in predicted))
    if 0 in spread:
        return 0.0
    return float(covariance / (np.sqrt(float(spread[0])) * np.sqrt(float(spread[1]))))


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What a reliability diagram draws. Empty bins have count 0 and NaN in the other two."""

    ece: float
    edges: np.ndarray  # float64 [M + 1], equal widths over 0..1
    count: np.ndarray  # int64 [M]
    accuracy: np.ndarray  # float64 [M]
    confidence: np.ndarray  # float64 [M]


def calibration(
    labels: np.ndarray,
    probabilities_NxC: np.ndarray,
    bins: int = 15,
    guesses: np.ndarray | None = None,
) -> Calibration:
    """Expected calibration error: sum over bins of count/N * |accuracy - confidence|.

    Guo et al. 2017, section 2 (15 bins in its tables): confidence is the probability of the guess,
    by default the likeliest class (of ranks it is the median), and bin m holds ((m-1)/M, m/M].
    """
    labels, probabilities_NxC = _same_length(labels, probabilities_NxC)
    guesses = probabilities_NxC.argmax(1) if guesses is None else guesses
    confidence = probabilities_NxC[np.arange(len(labels)), guesses].astype(np.float64)
    correct = guesses == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    sum_correct = np.bincount(place, weights=correct, minlength=bins)
    sum_confidence = np.bincount(place, weights=confidence, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Calibration(
            ece=float(np.abs(sum_correct - sum_confidence).sum() / len(labels)),
            edges=edges,
            count=count,
            accuracy=sum_correct / count,
            confidence=sum_confidence / count,
        )


def brier(labels: np.ndarray, probabilities_NxC: np.ndarray) -> float:
    """Mean squared distance between the probabilities and the one-hot label, summed over classes.

    Brier 1950: 0 is best, 2 is worst. Two-class libraries often report half of it.
    """
    labels, probabilities_NxC = _same_length(labels, probabilities_NxC)
    error_NxC = probabilities_NxC.astype(np.float64)
    error_NxC[np.arange(len(labels)), labels] -= 1.0
    return float(np.square(error_NxC).sum(1).mean())


def negative_log_likelihood(labels: np.ndarray, probabilities_NxC: np.ndarray) -> float:
    """Mean of -log p(label), in nats; p is kept above its dtype's epsilon, so that one certain
    mistake does not make the mean infinite."""
    labels, probabilities_NxC = _same_length(labels, probabilities_NxC)
    p = probabilities_NxC[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(p.astype(np.float64), np.finfo(p.dtype).eps)).mean())


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: P(score of a positive > score of a negative), ties counting half.

    By the rank sum of Mann & Whitney (1947). `labels` are 0 or 1; NaN if one of them is missing.
    """
    labels, scores = _same_length(labels, scores)
    positive = labels.astype(bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    u = _average_ranks(scores)[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(u / (n_positive * n_negative))


def rmse(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Root of the mean squared error, in the label's unit."""
    labels, predictions = _same_length(labels, predictions)
    return float(np.sqrt(np.mean(np.square(predictions.astype(np.float64) - labels))))


def mae(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean absolute error, in the label's unit."""
    labels, predictions = _same_length(labels, predictions)
    return float(np.mean(np.abs(predictions.astype(np.float64) - labels)))


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Pearson's linear correlation; NaN where either side is constant or N < 2."""
    labels, predictions = _same_length(labels, predictions)
    sides = []
    for values in (labels, predictions):
        # The comparison, since the mean of N equal floats may differ from them by a rounding,
        # and the correlation of two roundings is noise.
        if (values == values[0]).all():
            return float("nan")
        centred = values.astype(np.float64) - values.mean(dtype=np.float64)
        # By the largest deviation first: the squares of tiny ones would underflow.
        centred /= np.abs(centred).max()
        sides.append(centred / np.linalg.norm(centred))
    return float(np.clip(sides[0] @ sides[1], -1.0, 1.0))


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Spearman's correlation: Pearson's of the ranks, tied values sharing their mean rank."""
    labels, predictions = _same_length(labels, predictions)
    return pearson(_average_ranks(labels), _average_ranks(predictions))


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Candidates grouped by query and sorted by falling score; see `rank`."""

    group: np.ndarray  # int64 [N], 0..groups-1, rising
    position: np.ndarray  # int64 [N], 1 is the first of its group
    relevance: np.ndarray  # float64 [N]
    groups: int  # scored groups
    unscorable: int  # groups with nothing relevant; in none of the means


def rank(groups: np.ndarray, relevance: np.ndarray, scores: np.ndarray) -> Ranking:
    """Sorts the candidates of every group once, for the ranking scores below.

    Args:
      groups: [N], any values; candidates with the same one compete.
      relevance: [N], 0 for irrelevant; above 0 for relevant, graded or not.
      scores: [N], higher is better. Of tied candidates the less relevant comes first, so a model
        that gives everything the same score earns nothing from the order of the file.
    """
    groups, relevance = _same_length(groups, relevance)
    groups, scores = _same_length(groups, scores)
    relevance = relevance.astype(np.float64)
    if relevance.min() < 0 or not np.isfinite(relevance).all():
        raise ValueError("relevance must be finite and not negative")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN, which has no rank")
    index = np.unique(groups, return_inverse=True)[1]
    scorable = np.bincount(index, weights=relevance) > 0
    kept = scorable[index]
    index = (np.cumsum(scorable) - 1)[index[kept]]
    relevance, scores = relevance[kept], scores[kept]
    order = np.lexsort((relevance, -scores.astype(np.float64), index))
    index = index[order]
    first = np.searchsorted(index, index, side="left")
    return Ranking(
        group=index,
        position=np.arange(len(index)) - first + 1,
        relevance=relevance[order],
        groups=int(scorable.sum()),
        unscorable=int((~scorable).sum()),
    )


def mean_reciprocal_rank(ranking: Ranking, k: int | None = None) -> float:
    """Mean over groups of 1 / (position of the first relevant candidate); 0 beyond k if given."""
    hit = (ranking.relevance > 0) & _within(ranking, k)
    best = np.zeros(ranking.groups)
    np.maximum.at(best, ranking.group[hit], 1.0 / ranking.position[hit])
    return _mean(best)


def ndcg_at_k(ranking: Ranking, k: int) -> float:
    """Mean over groups of DCG / ideal DCG, gain = relevance, discount = 1 / log2(1 + position).

    Jarvelin & Kekalainen 2002 with the discount of Burges et al. 2005.
    """
    discount = np.where(_within(ranking, k), 1.0 / np.log2(1.0 + ranking.position), 0.0)
    ideal = np.lexsort((-ranking.relevance, ranking.group))
    gained = _per_group(ranking, ranking.relevance * discount)
    return _mean(gained / _per_group(ranking, ranking.relevance[ideal] * discount))


def _within(ranking: Ranking, k: int | None) -> np.ndarray:
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    return np.ones(len(ranking.position), bool) if k is None else ranking.position <= k


def _per_group(ranking: Ranking, values: np.ndarray) -> np.ndarray:
    return np.bincount(ranking.group, weights=values, minlength=ranking.groups)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _average_ranks(values: np.ndarray) -> np.ndarray:
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros_like(above, dtype=np.float64), where=below > 0)


def _same_length(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first), np.asarray(second)
    if len(first) != len(second) or len(first) == 0:
        raise ValueError(
            f"need as many predictions as labels, and some: {len(second)}, {len(first)}"
        )
    return first, second
