"""Categorical and numeric columns as arrays, and pairs of rows to rank. NumPy only."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from bert_ft.data.rows import Rows, require_apart, written
from bert_ft.errors import InputError
from bert_ft.tasks.sequence import number_in

UNKNOWN = 0  # the number of a category that the training rows lack
READ = 2  # part of a cached set's key: raise it when the same rows make other numbers or pairs


def values_of(rows: Rows, column: str) -> list[str]:
    """A column's categories as text, so that 7 in JSON is '7' in a CSV."""
    return [written(value) for value in rows.column(column)]


def fit_categories(rows: Rows, columns: Sequence[str]) -> dict[str, list[str]]:
    """{column: its categories in alphabetical order}; the k-th has the number k + 1. Raises
    InputError on two that differ by blanks around them only, or as 7 and 7.0."""
    found = {column: sorted(set(values_of(rows, column))) for column in columns}
    for column, values in found.items():
        require_apart(values, f"{rows.origin}: column {column!r}", "category")
    return found


def categories(
    rows: Rows, known: Mapping[str, Sequence[str]], columns: Sequence[str]
) -> np.ndarray:
    """int32 (N, C): the number of each row's category, UNKNOWN for one that is new. Raises
    InputError as fit_categories, on one that is new by its spelling only."""
    out = np.zeros((len(rows), len(columns)), np.int32)
    for c, column in enumerate(columns):
        number = {value: i + 1 for i, value in enumerate(known[column])}
        values = values_of(rows, column)
        new = sorted(set(values) - number.keys())
        if new:
            where = f"{rows.origin}: column {column!r}, with training's"
            require_apart([*known[column], *new], where, "category")
        out[:, c] = [number.get(value, UNKNOWN) for value in values]
    return out


def _finite(rows: Rows, column: str) -> np.ndarray:
    values = enumerate(rows.column(column))
    return np.asarray([number_in(rows, column, i, v) for i, v in values], np.float64)


def fit_numbers(rows: Rows, columns: Sequence[str]) -> dict[str, list[float]]:
    """{column: [mean, standard deviation]} of these rows; 0 for that of a constant column, which
    says nothing and is 0 in all rows."""
    out = {}
    for column in columns:
        x = _finite(rows, column)
        constant = bool((x == x[0]).all())
        out[column] = [float(x[0]), 0.0] if constant else [float(x.mean()), float(x.std())]
    return out


def numbers(
    rows: Rows, fitted: Mapping[str, Sequence[float]], columns: Sequence[str]
) -> np.ndarray:
    """float32 (N, F): (x - mean) / deviation, taken in float64: timestamps are long numbers."""
    out = np.zeros((len(rows), len(columns)), np.float32)
    for c, column in enumerate(columns):
        mean, scale = fitted[column]
        values = _finite(rows, column)
        if scale:
            out[:, c] = (values - mean) / scale
    return out


def group_of(values: Sequence[str]) -> np.ndarray:
    """int64 (N,): equal values have equal numbers, 0, 1, … in alphabetical order."""
    return np.unique(np.asarray(values, object).astype(str), return_inverse=True)[1].astype(
        np.int64
    )


def rated_pairs(user: np.ndarray, liked: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray]:
    """(better, worse), int64 (P,): for every liked row `each` rows of the same user that are not,
    drawn with replacement. Users without both kinds give no pair."""
    order = np.lexsort((np.arange(len(user)), liked, user))  # a user's disliked rows come first
    users, first, counts = np.unique(user[order], return_index=True, return_counts=True)
    disliked = counts - np.bincount(np.searchsorted(users, user), weights=liked).astype(np.int64)
    better = np.repeat(np.flatnonzero(liked), each)
    place = np.searchsorted(users, user[better])
    better, place = better[disliked[place] > 0], place[disliked[place] > 0]
    drawn = _generator(user).random(len(better))
    return better, order[first[place] + (drawn * disliked[place]).astype(np.int64)]


def unseen_pairs(
    user: np.ndarray, item: np.ndarray, liked: np.ndarray, each: int
) -> tuple[np.ndarray, np.ndarray]:
    """(better, worse), int64 (P,): for every liked row `each` items, drawn uniformly from those
    that its user has no row of (Rendle et al. 2009, section 4.2); an item is given as the first row
    that has it. Users who have seen everything give no pair."""
    items, first = np.unique(item, return_index=True)
    index = np.searchsorted(items, item).astype(np.int64)
    users = np.unique(user, return_inverse=True)[1].astype(np.int64)
    seen = np.unique(users * len(items) + index)
    full = np.bincount(seen // len(items)) == len(items)
    better = np.repeat(np.flatnonzero(liked & ~full[users]), each)
    generator, drawn = _generator(user), np.zeros(len(better), np.int64)
    missing = np.arange(len(better))
    while len(missing):
        drawn[missing] = generator.integers(0, len(items), len(missing))
        keys = users[better[missing]] * len(items) + drawn[missing]
        at = np.minimum(np.searchsorted(seen, keys), len(seen) - 1)
        missing = missing[seen[at] == keys]
    return better, first[drawn]


def _generator(user: np.ndarray) -> np.random.Generator:
    """The same for the same rows: pairs belong to the data, not to a run."""
    return np.random.default_rng(zlib.crc32(np.ascontiguousarray(user, np.int64).tobytes()))


def with_other_item(
    rows: Rows,
    user: str,
    item: str,
    texts: Sequence[str],
    better: np.ndarray,
    worse: np.ndarray,
    more: Sequence[str] = (),
) -> Rows:
    """Rows that nobody has written: those of `better`, each with the item of the row in `worse`.

    What belongs to an item are its own column and every other one that says the same in all rows of
    an item, but not in all of a user who has several; the rest (the user's age, the time) is that
    of `better`. Raises InputError on a text that belongs to neither, such as a review: an unseen
    item has none; and where each user and each item has one row, which do not tell what is whose.
    """
    several = {c: len({written(v) for v in rows.columns[c]}) < len(rows) for c in (user, item)}
    others = [c for c in (*texts, *more) if c and c not in (user, item)]
    if others and not any(several.values()):
        raise InputError(
            f"{rows.origin}: no {user} and no {item} has two rows, which would tell whether column "
            f"{others[0]!r} is the {user}'s or the {item}'s; accepted: config.task.worse='rated'"
        )

    def belongs(column: str, to: str) -> bool:
        said: dict[str, str] = {}
        pairs = zip(rows.columns[to], rows.columns[column], strict=True)
        return all(said.setdefault(written(k), written(v)) == written(v) for k, v in pairs)

    columns = {}
    for column, values in rows.columns.items():
        by_user, by_item = belongs(column, user), belongs(column, item)
        of_user = column == user or (by_user and several[user])
        of_item = column == item or (by_item and not of_user)
        if column in texts and not of_item and not by_user:
            raise InputError(
                f"{rows.origin}: column {column!r} differs between rows of one {item}, so that an "
                f"{item} which a {user} has not seen has no such text; accepted: "
                "config.task.worse='rated'"
            )
        columns[column] = [values[i] for i in (worse if of_item else better)]
    return Rows(columns, None, f"{rows.origin} (unseen items)")
