"""Exact match and F1: hand-worked cases, and the official scripts' own steps written out again."""

import collections
import json
import re
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_ft.evals import squad


def official_normalise(s):
    """As in evaluate-v1.1.py and evaluate-v2.0.py, step for step."""
    lowered = s.lower()
    exclude = set(string.punctuation)
    no_punctuation = "".join(ch for ch in lowered if ch not in exclude)
    no_articles = re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", no_punctuation)
    return " ".join(no_articles.split())


def official_f1(prediction, gold, version):
    if version == 1:
        said, wanted = official_normalise(prediction).split(), official_normalise(gold).split()
    else:
        said = official_normalise(prediction).split() if prediction else []
        wanted = official_normalise(gold).split() if gold else []
    common = collections.Counter(wanted) & collections.Counter(said)
    num_same = sum(common.values())
    if version == 2 and (len(wanted) == 0 or len(said) == 0):
        return int(wanted == said)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(said), 1.0 * num_same / len(wanted)
    return (2 * precision * recall) / (precision + recall)


def official(predictions, golds, version):
    """(exact, f1) in percent, with each script's way to the maximum over the gold answers."""
    exact = f1 = 0.0
    for said, wanted in zip(predictions, golds, strict=True):
        if version == 2:
            wanted = [g for g in wanted if official_normalise(g)] or [""]
        exact += max(float(official_normalise(said) == official_normalise(g)) for g in wanted)
        f1 += max(official_f1(said, g, version) for g in wanted)
    return 100 * exact / len(golds), 100 * f1 / len(golds)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat.", "cat"),
        ("a an the", ""),
        ("", ""),
        ("theatre an-na A", "theatre anna"),
        ("U.S.A.", "usa"),
        ("the-end", "theend"),
        ("Café  «Zürich»", "café «zürich»"),
        ("İstanbul", "İstanbul".lower()),
        ("10,000\u00a0km\t(approx)", "10000 km approx"),
        ("—the—", "— —"),
    ],
)
def test_normalisation(text, normal):
    assert squad.normalise(text) == normal == official_normalise(text)


def test_hand_worked_scores():
    assert squad.exact_match("The cat!", "cat") == 1.0
    assert squad.f1("a big cat sat", "the big dog sat down", False) == pytest.approx(
        2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)
    )
    assert squad.f1("cat cat", "cat", False) == pytest.approx(2 / 3)
    assert squad.best_over_golds("cat", ["dog", "the cat"], False) == (1.0, 1.0)
    # Where the normalisation leaves nothing the two scripts differ.
    assert squad.best_over_golds("the", ["the"], False) == (1.0, 0.0)
    assert squad.best_over_golds("the", ["the"], True) == (1.0, 1.0)
    assert squad.best_over_golds("", [], True) == (1.0, 1.0)
    assert squad.best_over_golds("cat", [], True) == (0.0, 0.0)
    assert squad.best_over_golds("", ["cat"], True) == (0.0, 0.0)
    with pytest.raises(ValueError, match="without a gold"):
        squad.best_over_golds("cat", [], False)


def test_scores_of_answerable_and_others_apart():
    got = squad.score(["cat", "", "cat", ""], [["cat"], [], [], ["big cat"]], True)
    assert got["exact_match"] == 0.5 and got["f1"] == 0.5
    assert got["has_answer_exact_match"] == got["no_answer_f1"] == 0.5
    assert set(squad.score(["cat"], [["cat"]], False)) == {"exact_match", "f1"}


PIECES = st.sampled_from([*"aA.,'-é— ", "the ", "an ", " cat", "Dog ", " 10", "ß", "\u00a0", "(x)"])
TEXT = st.lists(PIECES, max_size=7).map("".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(TEXT, st.lists(TEXT, max_size=4)), min_size=1, max_size=6))
def test_equal_to_the_official_steps(rows):
    said, golds = [p for p, _ in rows], [g for _, g in rows]
    got = squad.score(said, golds, True)
    assert (100 * got["exact_match"], 100 * got["f1"]) == pytest.approx(official(said, golds, 2))
    answered = [(p, g) for p, g in rows if g]
    if answered:
        said, golds = [p for p, _ in answered], [g for _, g in answered]
        got = squad.score(said, golds, False)
        theirs = official(said, golds, 1)
        assert (100 * got["exact_match"], 100 * got["f1"]) == pytest.approx(theirs)


def test_real_answers_among_each_other():
    path = Path(__file__).parents[2] / "shared/data/squad11_dev/derived_dev-v1.1.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    questions = [
        q
        for article in json.loads(path.read_text())["data"][:6]
        for paragraph in article["paragraphs"]
        for q in paragraph["qas"]
    ]
    golds = [[a["text"] for a in q["answers"]] for q in questions]
    said = [g[-1] for g in golds]  # one annotator
    others = [g[:-1] or g for g in golds]  # against the rest
    got, theirs = squad.score(said, others, False), official(said, others, 1)
    assert (100 * got["exact_match"], 100 * got["f1"]) == pytest.approx(theirs)
    assert 0.5 < got["exact_match"] < got["f1"] < 1
