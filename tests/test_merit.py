"""Which score is better."""

import math

import pytest

from bert_ft.evals.merit import beats, merit


@pytest.mark.parametrize(
    ("metric", "rising"),
    [
        ("accuracy", [None, 0.0, 0.5]),
        ("topic/f1", [math.nan, -1.0, 1.0]),
        ("rmse", [math.nan, 3.0, 0.2]),
        ("loss/intent", [None, 2.0, 0.0]),
        ("rmse_cold_item", [None, 2.0, 1.0]),
        ("dev/stars/mae_cold_user", [None, 2.0, 1.0]),
        ("auc_cold_user", [None, 0.1, 0.9]),
        ("brier", [None, 0.5, 0.1]),
        ("f1/loss_of_appetite", [None, 0.1, 0.9]),
        ("dev/f1/loss", [None, 0.1, 0.9]),
    ],
)
def test_more_is_better_and_undefined_is_worst(metric, rising):
    found = [merit(metric, value) for value in rising]
    assert found == sorted(found) and len(set(found)) == len(found) and found[0] == -math.inf


def test_of_undefined_ones_the_last_is_kept_until_one_is_defined():
    undefined, low, high = (merit("f1", value) for value in (math.nan, 0.1, 0.2))
    assert beats(undefined, -math.inf) and beats(low, undefined) and beats(high, low)
    assert not beats(undefined, low) and not beats(low, low) and not beats(low, high)
