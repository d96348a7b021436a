"""Misspellings: what an edit is, and that the greedy search finds what a small classifier hides."""

import re

import numpy as np

from bert_ft.data.noise import NEAR
from bert_ft.evals.attack import attack, misspelt, unbroken

GOOD = ("great", "lovely")


def score(texts):
    """0.9 for a text with a good word, 0.6 with a weaker one ('nice'), else 0.2; deterministic."""
    seen.append(len(texts))
    p = [
        0.9 if any(w in t.split() for w in GOOD) else 0.6 if "nice" in t.split() else 0.2
        for t in texts
    ]
    return np.stack([1 - np.asarray(p), p], axis=1)


seen: list[int] = []


def test_edits_are_swaps_drops_additions_and_neighbouring_keys():
    found = misspelt("Word")
    assert {"Wrod", "Wrd", "Wod", "Wird", "Woird", "Wotd", "Wortd"} <= set(found)
    assert len(found) == len(set(found)) and "Word" not in found
    assert all(word[0] == "W" and word[-1] == "d" for word in found)
    assert {abs(len(word) - 4) for word in found} == {0, 1}
    assert "hEllo" not in misspelt("hello") and "HWLLO" in misspelt("HELLO")


def test_keys_that_touch_touch_each_other():
    assert all(key in NEAR[other] for key, near in NEAR.items() for other in near)


def test_each_text_is_edited_where_it_helps_and_no_further():
    seen.clear()
    texts = [
        "some great film",  # one edit breaks it
        "a lovely and a great film",  # two do
        "great lovely great lovely",  # four would
        "this is bad",  # a negative one, which no edit can hurt
        "dull",  # wrong from the start
    ]
    labels = [1, 1, 1, 0, 1]
    found = attack(texts, labels, score)
    assert [one.right for one in found] == [True, True, True, True, False]
    assert [one.broken for one in found] == [True, False, False, False, False]
    assert found[0].edits == 1 and found[0].text.split()[::2] == ["some", "film"]
    assert found[3].text == texts[3] and found[4].text == texts[4]
    assert unbroken(found) == 3 / 5
    assert len(seen) <= 2 + 4, "a pass for the clean texts, one for the words, one a word in turn"
    assert attack(texts, labels, score) == found


def test_the_worst_edit_of_the_most_important_word_comes_first():
    """Leaving 'great' out costs most; of two weights a letter apart the smaller one is taken."""

    def graded(texts):
        p = np.asarray([0.9 - 0.3 * ("great" not in t) - 0.2 * ("grea" not in t) for t in texts])
        return np.stack([1 - p, p], axis=1)

    (one,) = attack(["very great stuff"], [1], graded)
    assert one.broken is True and one.edits == 1 and "grea" not in one.text


def test_a_word_that_no_edit_hurts_costs_no_edit():
    """'great' is the most important one by far, but only where it is left out."""

    def stubborn(texts):
        p = [
            0.9 - 0.5 * ("g" not in t) - 0.3 * ("kind" not in t) - 0.2 * ("soft" not in t)
            for t in texts
        ]
        return np.stack([1 - np.asarray(p), p], axis=1)

    (one,) = attack(["great kind soft"], [1], stubborn, edits=1)
    assert one.broken is False and one.edits == 1
    (one,) = attack(["great kind soft"], [1], stubborn, edits=2)
    assert one.broken is True and one.edits == 2


def test_no_text_and_no_word():
    assert attack([], [], lambda texts: np.zeros((len(texts), 2))) == []
    (one,) = attack(["a b c 1234"], [0], lambda texts: np.tile([0.8, 0.2], (len(texts), 1)))
    assert one.text == "a b c 1234" and one.right and not one.broken


def test_a_word_cut_to_three_letters_leaves_the_others_their_turns():
    """Each drop costs 0.15, nothing else does; three of them break the text."""

    def shortened(texts):
        p = np.asarray([0.9 - 0.15 * len(re.findall(r"\b\w{3}\b", t)) for t in texts])
        return np.stack([1 - p, p], axis=1)

    (one,) = attack(["Good; kind view!"], [1], shortened)
    assert one.edits == 3 and one.broken
    assert re.fullmatch(r"G\w{1,2}; k\w{1,2} v\w{1,2}!", one.text)
