"""Which rows to label next, from what a trained model says of them; NumPy only.

`margin` and `entropy` score each row by itself; `badge` and `k_centre` choose a set whose rows are
unlike each other too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def margin(p: np.ndarray) -> np.ndarray:
    """(…, C) probabilities -> (…,): 1 less the gap between the two likeliest labels, so that the
    most doubtful have the most (Scheffer et al. 2001)."""
    two = np.sort(p, axis=-1)[..., -2:]
    return 1 - (two[..., 1] - two[..., 0])


def entropy(p: np.ndarray) -> np.ndarray:
    """(…, C) probabilities -> (…,), in nats (Shannon)."""
    return -np.sum(p * np.log(np.maximum(p, np.finfo(np.float32).tiny)), axis=-1)


def sum_by_row(values: np.ndarray, row: np.ndarray, count: int) -> np.ndarray:
    """(N, …), each of a row -> float64 (count, …): each row's sum, 0 for one without any."""
    out = np.zeros((count, *values.shape[1:]))
    np.add.at(out, row, values)
    return out


def by_row(
    values_NxW: np.ndarray, owned_NxW: np.ndarray, row: np.ndarray, count: int, over: str
) -> np.ndarray:
    """float64 (count,): the 'mean' or 'max' over each row's words, which are those that its
    examples own; 0 for a row without words."""
    owned = np.asarray(owned_NxW) > 0
    of, values = np.repeat(row, owned.sum(axis=1)), np.asarray(values_NxW, np.float64)[owned]
    if over == "mean":
        return sum_by_row(values, of, count) / np.maximum(np.bincount(of, minlength=count), 1)
    out = np.zeros(count)
    np.maximum.at(out, of, values)
    return out


def highest(scores: np.ndarray, n: int) -> np.ndarray:
    """int (n,): the places of the highest, the earlier of two equals first."""
    return np.argsort(-scores, kind="stable")[:n]


def _squared_to(points: np.ndarray, one: np.ndarray) -> np.ndarray:
    return np.sum((points - one) ** 2, axis=1)


def k_centre(
    points_NxH: np.ndarray, centres_MxH: np.ndarray, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(int (n,), float64 (n,)): each time the point that is farthest from all centres, those given
    and those chosen, and its distance (Sener & Savarese 2018, algorithm 1). The first is drawn by
    the seed, with distance infinite, where no centre is given."""
    points = np.asarray(points_NxH, np.float64)
    nearest = np.full(len(points), np.inf)
    for centre in np.asarray(centres_MxH, np.float64):
        nearest = np.minimum(nearest, _squared_to(points, centre))
    found, distances = [], []
    for _ in range(n):
        at = int(nearest.argmax())
        if np.isinf(nearest[at]):
            at = int(np.random.default_rng(seed).integers(len(points)))
        found.append(at)
        distances.append(float(np.sqrt(nearest[at])))
        nearest = np.minimum(nearest, _squared_to(points, points[at]))
        nearest[found] = -1  # where all others are equal to a centre, none is chosen twice
    return np.asarray(found, np.int64), np.asarray(distances)


def badge(p: np.ndarray, h_NxH: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(int (n,), float64 (n,)): rows chosen by BADGE (Ash et al. 2020, algorithm 1), and the length
    of each one's gradient embedding. p: (N, C), or (N, decisions, 2) of labels that are not there
    or there.

    That is the gradient of the loss by the last layer's weights, were the likeliest label the right
    one: (p - onehot(argmax p)) outer h (section 3); of a label that is there or not, with one
    output, (p - 1[p > 1/2]) outer h. It is never formed: products of two are products of their
    factors. k-means++ seeding (Arthur & Vassilvitskii 2007): the first is the
    longest, as in the authors' code, each further one is drawn by its squared distance to the
    nearest of those before.
    """
    a, h = np.array(p, np.float64), np.asarray(h_NxH, np.float64)
    likeliest = a.argmax(axis=-1, keepdims=True)
    np.put_along_axis(a, likeliest, np.take_along_axis(a, likeliest, -1) - 1, -1)
    if a.ndim == 3:
        a = a[:, :, 1]
    squared = np.sum(a * a, axis=1) * np.sum(h * h, axis=1)
    return _seeded(squared, lambda k: (a @ a[k]) * (h @ h[k]), n, seed)


def badge_of(gradients_NxD: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As `badge`, of gradient embeddings that are sums over a row's words, so no two factors."""
    g = np.asarray(gradients_NxD)
    return _seeded(np.einsum("nd,nd->n", g, g), lambda k: g @ g[k], n, seed)


def _seeded(
    squared: np.ndarray, products: Callable[[int], np.ndarray], n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(int (n,), their lengths) by k-means++, from the squared lengths of N points and the products
    of all with one of them."""
    draws, nearest = np.random.default_rng(seed), np.full(len(squared), np.inf)
    found = [int(squared.argmax())]
    while len(found) < n:
        k = found[-1]
        nearest = np.minimum(nearest, np.maximum(squared + squared[k] - 2 * products(k), 0))
        nearest[found] = 0
        total = nearest.sum()
        # Where all that is left is the same as what was chosen, any will do.
        rest = np.ones(len(squared))
        rest[found] = 0
        chance = nearest / total if total > 0 else rest / rest.sum()
        found.append(int(draws.choice(len(squared), p=chance)))
    return np.asarray(found[:n], np.int64), np.sqrt(squared[found[:n]])
