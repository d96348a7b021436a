"""What two runs must share, by part."""

import types

from bert_ft.train.meaning import NUMBERS, WHICH, differing

ONE = types.SimpleNamespace()
SEVERAL = types.SimpleNamespace(parts={"topic": None, "tone": None})


def test_a_key_that_differs_and_one_that_is_missing():
    ours, theirs = {"labels": ["a", "b"]}, {"labels": ["b", "a"], "categories": {"user": ["x"]}}
    labels = ("labels", ["a", "b"], ["b", "a"])
    assert list(differing(ONE, ours, theirs, WHICH, missing=False)) == [labels]
    missing = ("categories", None, {"user": ["x"]})
    assert list(differing(ONE, ours, theirs, WHICH)) == [labels, missing]
    assert not list(differing(ONE, ours, theirs, NUMBERS))


def test_parts_are_looked_into():
    ours = {"topic": {"labels": ["a"]}, "tone": {"ranks": [1, 2]}}
    theirs = {"topic": {"labels": ["a"]}, "tone": {"ranks": [1, 3]}}
    assert list(differing(SEVERAL, ours, theirs, WHICH)) == [("tone ranks", [1, 2], [1, 3])]
    # A run of one task has no parts: its head has another name, by which it is refused.
    assert not list(differing(SEVERAL, ours, {"labels": ["a"]}, WHICH, missing=False))
