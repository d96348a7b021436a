"""The stream of examples: every one its due number of times, any stretch of it on its own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_ft.data.mixing import MIXINGS, Mixture, endless

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(lambda s: sum(s) > 0)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.sampled_from(MIXINGS), st.floats(0.5, 8), st.integers(1, 9), st.data())
def test_any_stretch_is_that_of_the_whole(sizes, how, temperature, batch, data):
    mixture = Mixture(tuple(sizes), how, temperature, batch)
    whole = mixture.stream(3, 0, 20 * batch)
    start = data.draw(st.integers(0, 19)) * batch
    stop = start + batch * data.draw(st.integers(1, 20 - start // batch))
    np.testing.assert_array_equal(mixture.stream(3, start, stop), whole[start:stop])


@settings(max_examples=60, deadline=None)
@given(SIZES, st.floats(0.5, 8))
def test_quotas_add_up_and_follow_the_temperature(sizes, temperature):
    quotas = Mixture(tuple(sizes), "temperature", temperature).quotas
    assert sum(quotas) == sum(sizes)
    share = np.where(np.asarray(sizes) > 0, np.asarray(sizes, float) ** (1 / temperature), 0)
    exact = share / share.sum() * sum(sizes)
    for size, quota, wanted in zip(sizes, quotas, exact, strict=True):
        assert (quota > 0) == (size > 0)
        assert abs(quota - wanted) <= len(sizes)


def test_an_epoch_by_temperature_holds_the_quotas_and_spares_nobody():
    mixture = Mixture((90, 10), "temperature", 2.0)
    assert mixture.quotas == (75, 25)  # 90 ** 0.5 is three times 10 ** 0.5
    epochs = mixture.stream(0, 0, 400).reshape(4, 100)
    assert ((epochs >= 90).sum(axis=1) == 25).all()
    counts = np.bincount(epochs.ravel(), minlength=100)
    assert set(counts[90:]) == {10}, "100 draws of 10 examples: each 10 times"
    assert set(counts[:90]) <= {3, 4}, "300 draws of 90 examples"
    assert (epochs[0] != epochs[1]).any()


def test_turns_go_round_the_groups_that_have_examples():
    stream = Mixture((5, 0, 7), "turns", batch_size=4).stream(1, 0, 4 * 14).reshape(14, 4)
    assert (stream[::2] < 5).all() and (stream[1::2] >= 5).all()
    np.testing.assert_array_equal(
        np.bincount(stream[::2].ravel(), minlength=5).clip(5, 6),
        [*np.bincount(stream[::2].ravel(), minlength=5)],
    )
    np.testing.assert_array_equal(np.bincount(stream[1::2].ravel(), minlength=12)[5:], [4] * 7)


def test_by_proportion_all_examples_are_alike():
    np.testing.assert_array_equal(Mixture((5, 7)).stream(1, 0, 40), Mixture((12,)).stream(1, 0, 40))


@pytest.mark.parametrize("count", [1, 5, 32])
def test_the_endless_stream_is_permutations_end_to_end(count):
    stream = endless((9,), count, 0, 4 * count).reshape(4, count)
    assert (np.sort(stream, axis=1) == np.arange(count)).all()
    assert count == 1 or (stream[0] != stream[1]).any()
