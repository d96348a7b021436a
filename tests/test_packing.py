"""Packing: examples lie inside rows, apart, in few rows; row counts waste the least."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_ft.data import packing
from bert_ft.data.packing import Places, pack, row_counts

few = settings(max_examples=150, deadline=None)


@st.composite
def batches(draw):
    row_length = draw(st.integers(1, 40))
    batches, count = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    lengths = draw(
        st.lists(
            st.lists(st.integers(1, row_length), min_size=count, max_size=count),
            min_size=batches,
            max_size=batches,
        )
    )
    return np.asarray(lengths), row_length


def first_fit_decreasing(lengths, row_length):
    """(row, column) of each example, one at a time, as a textbook has it."""
    rooms, out = [], {}
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, room in enumerate(rooms) if room >= lengths[i]), len(rooms))
        if row == len(rooms):
            rooms.append(row_length)
        out[i] = row, row_length - rooms[row]
        rooms[row] -= int(lengths[i])
    return [out[i] for i in range(len(lengths))]


def used(places, k, lengths, row_length):
    """How many examples lie on each token of each row; an IndexError if one leaves its row."""
    out = np.zeros((places.rows[k], row_length), int)
    for row, column, length in zip(places.row[k], places.column[k], lengths, strict=True):
        assert 0 <= column and column + length <= row_length
        out[row, column : column + length] += 1
    return out


@few
@given(batches())
def test_both_ways_are_the_textbooks(drawn):
    lengths, row_length = drawn
    falling = -np.sort(-lengths, axis=1).astype(np.int32)
    for way in (packing._by_example, packing._by_length):
        row, column = way(falling.copy(), lengths.shape[1], row_length)
        for k, one in enumerate(falling):
            expected = first_fit_decreasing(one, row_length)
            assert list(zip(row[k], column[k], strict=True)) == expected


@few
@given(batches(), st.booleans())
def test_every_example_lies_in_a_row_and_none_on_another(drawn, shared):
    lengths, row_length = drawn
    places = pack(lengths, row_length, shared)
    for k in range(len(lengths)):
        tokens = used(places, k, lengths[k], row_length)
        assert tokens.max() <= 1
        assert tokens.sum() == lengths[k].sum()
        assert (tokens.sum(axis=1) > 0).all(), "an empty row was counted"


@few
@given(batches())
def test_packing_is_first_fit_decreasing_of_each_batch_alone(drawn):
    lengths, row_length = drawn
    together = pack(lengths, row_length)
    for k in range(len(lengths)):
        expected = first_fit_decreasing(lengths[k], row_length)
        assert list(zip(together.row[k], together.column[k], strict=True)) == expected
        alone = pack(lengths[k : k + 1], row_length)
        np.testing.assert_array_equal(together.row[k], alone.row[0])
        np.testing.assert_array_equal(together.column[k], alone.column[0])
        assert together.rows[k] == alone.rows[0]


@few
@given(batches())
def test_rows_are_within_the_bound_of_first_fit_decreasing(drawn):
    lengths, row_length = drawn
    places = pack(lengths, row_length)
    for k, rows in enumerate(places.rows):
        # 11/9 of the fewest + 6/9 (Dosa 2007), the fewest being at least the total over a row's
        # length; and any two neighbouring rows hold more than one row's tokens between them.
        assert rows <= len(lengths[k])
        assert (rows - 1) * row_length < 2 * lengths[k].sum()
    if lengths.shape[1] <= 7:
        for k, rows in enumerate(places.rows):
            assert rows <= 11 / 9 * fewest_rows(tuple(lengths[k]), row_length) + 6 / 9 + 1e-9


def fewest_rows(lengths, row_length):
    """By trying every assignment, an example at a time to each open row or a new one."""

    def place(i, rooms):
        if i == len(lengths):
            return len(rooms)
        fits = [r for r in range(len(rooms)) if rooms[r] >= lengths[i]]
        choices = [place(i + 1, (*rooms[:r], rooms[r] - lengths[i], *rooms[r + 1 :])) for r in fits]
        return min([*choices, place(i + 1, (*rooms, row_length - lengths[i]))])

    return place(0, ())


@few
@given(batches(), st.booleans())
def test_slots_number_a_rows_examples_from_the_left(drawn, shared):
    lengths, row_length = drawn
    places = pack(lengths, row_length, shared)
    slots = places.slot()
    for k in range(len(lengths)):
        for row in range(places.rows[k]):
            there = np.flatnonzero(places.row[k] == row)
            from_left = there[np.argsort(places.column[k][there])]
            np.testing.assert_array_equal(slots[k][from_left], np.arange(len(there)))


def test_slots_of_places_in_any_order():
    places = Places(np.array([[1, 0, 1, 0]]), np.array([[5, 3, 0, 0]]), np.array([2]))
    np.testing.assert_array_equal(places.slot(), [[1, 1, 0, 0]])


def test_unshared_is_one_row_each():
    places = pack(np.array([[3, 1, 2]]), 8, shared=False)
    np.testing.assert_array_equal(places.row, [[0, 1, 2]])
    np.testing.assert_array_equal(places.column, [[0, 0, 0]])
    assert places.rows[0] == 3


@pytest.mark.parametrize("bad", [0, 9])
def test_lengths_that_no_row_holds_are_refused(bad):
    with pytest.raises(ValueError, match=rf"1\.\.8, seen {min(bad, 4)}\.\.{max(bad, 4)}"):
        pack(np.array([[4, bad]]), 8)


def computed(needed, counts):
    """Rows computed when each batch takes the smallest count that holds it."""
    return sum(min(c for c in counts if c >= n) for n in needed)


@few
@given(
    st.lists(st.integers(1, 24), min_size=1, max_size=12),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 8]),
)
def test_row_counts_are_the_best_there_are(needed, at_most, multiple):
    counts = row_counts(np.array(needed), at_most, multiple)
    assert 1 <= len(counts) <= at_most
    assert list(counts) == sorted(set(counts))
    assert all(c % multiple == 0 for c in counts)
    assert max(counts) >= max(needed)
    candidates = range(multiple, max(needed) + multiple, multiple)
    ceiled = -(-max(needed) // multiple) * multiple
    best = min(
        computed(needed, (*chosen, ceiled))
        for size in range(at_most)
        for chosen in itertools.combinations(candidates, size)
    )
    assert computed(needed, counts) == best


def test_row_counts_compile_no_more_than_they_must():
    assert row_counts(np.array([4, 4, 4]), 3, 1) == (4,)
    assert row_counts(np.array([1, 5, 9]), 3, 8) == (8, 16)
