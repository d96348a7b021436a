"""Tag schemes, and entities' scores, against seqeval's strict mode and against each other."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_ft.data.sources import open_source
from bert_ft.errors import InputError
from bert_ft.evals.entities import entity_scores
from bert_ft.tasks import schemes

SHARED = Path(os.environ.get("BERT_FT_SHARED", Path(__file__).parents[2] / "shared")) / "data"
SEQEVAL = {"IOB2": "IOB2", "BIOES": "IOBES", "BMES": "IOBES", "BILOU": "BILOU"}


def where(row, word):
    return f"file:{row} word {word}"


def all_tags(scheme, types=("X", "Y")):
    """With the type '', prefixes alone."""
    return ["O", *(f"{p}-{t}".removesuffix("-") for p in schemes.SCHEMES[scheme] for t in types)]


@st.composite
def two_sides(draw, scheme, types=("X", "Y")):
    """Sentences of any tags at all, legal or not, and other tags for them, often the same."""
    tags = st.sampled_from(all_tags(scheme, types))
    gold = draw(st.lists(st.lists(tags, min_size=1, max_size=9), min_size=1, max_size=4))
    same = [[draw(st.one_of(st.just(t), st.just(t), tags)) for t in sentence] for sentence in gold]
    return gold, same


def compare(gold, guess, scheme):
    metrics = pytest.importorskip("seqeval.metrics")
    seqeval_schemes = pytest.importorskip("seqeval.scheme")
    ours, by_type = entity_scores(
        *([schemes.entities(s, scheme) for s in side] for side in (gold, guess))
    )
    if scheme == "BMES":
        gold, guess = ([[t.replace("M", "I") for t in s] for s in side] for side in (gold, guess))
    how = {"mode": "strict", "scheme": getattr(seqeval_schemes, SEQEVAL[scheme])}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p = metrics.precision_score(gold, guess, zero_division=0, **how)
        r = metrics.recall_score(gold, guess, zero_division=0, **how)
        f = metrics.f1_score(gold, guess, zero_division=0, **how)
        macro = metrics.f1_score(gold, guess, zero_division=0, average="macro", **how)
    theirs = {"f1": f, "precision": p, "recall": r}
    if by_type:  # seqeval's mean over no types is NaN
        theirs["f1_macro"] = macro
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name
    return ours


@pytest.mark.parametrize("types", [("X", "Y"), ("",)], ids=["typed", "untyped"])
@pytest.mark.parametrize("scheme", SEQEVAL)
def test_scores_equal_seqeval_on_any_tags(scheme, types):
    @given(two_sides(scheme, types))
    @settings(max_examples=100, deadline=None)
    def check(sides):
        compare(*sides, scheme)

    check()


@pytest.mark.parametrize(
    "file", ["bioner_ncbi_disease/test.tsv", "conll2003_en/valid.txt", "atis/test"]
)
def test_scores_equal_seqeval_on_real_tags(file):
    path = SHARED / file
    if not path.exists():
        pytest.skip(f"{path} is not here")
    uri = f"files:{path}" + ("" if path.is_dir() else "?format=conll")
    gold = open_source(uri, cache_dir=Path()).read().columns["tags"]
    assert schemes.detect(gold, where) == "IOB2"
    rng = np.random.default_rng(0)
    seen = sorted({t for s in gold for t in s})
    guess = [[rng.choice(seen) if rng.random() < 0.05 else t for t in s] for s in gold]
    scores = compare(gold, guess, "IOB2")
    assert 0.2 < scores["f1"] < 0.95
    assert compare(gold, gold, "IOB2")["f1"] == 1.0


def test_entities_read_strictly():
    assert schemes.entities(["B-X", "I-X", "I-Y", "B-X"], "IOB2") == [("X", 0, 2), ("X", 3, 4)]
    assert schemes.entities(["I-X", "O", "B-X"], "IOB2") == [("X", 2, 3)]
    assert schemes.entities(["B-X", "I-X", "O", "S-X", "B-X", "E-X"], "BIOES") == [
        ("X", 3, 4),
        ("X", 4, 6),
    ]
    assert schemes.entities(["B-X", "M-X", "E-X"], "BMES") == [("X", 0, 3)]
    assert schemes.entities(["ANSWER", "ANSWER", "REST", "O", "O", "REST"], "plain") == [
        *[("ANSWER", 0, 2), ("REST", 2, 3), ("REST", 5, 6)]
    ]


def test_iob1_becomes_the_same_entities_in_iob2():
    tags = ["I-X", "I-X", "B-X", "O", "I-Y", "I-X"]
    assert schemes.fault(tags, "IOB1") is None
    assert schemes.iob1_to_iob2(tags) == ["B-X", "I-X", "B-X", "O", "B-Y", "B-X"]
    assert schemes.iob1_to_iob2(["I", "I", "B", "O", "I"]) == ["B", "I", "B", "O", "B"]


@pytest.mark.parametrize("scheme", ["IOB2", "BIOES", "BMES", "BILOU"])
def test_spans_survive_tags(scheme):
    spans = [("X", 0, 1), ("Y", 1, 4), ("Y", 5, 7)]
    assert schemes.entities(schemes.to_tags(spans, 8), "IOB2") == spans
    # What is legal has exactly the entities it seems to have: every tag but O lies in one.
    tags = all_tags(scheme)
    rng = np.random.default_rng(0)
    legal = 0
    for _ in range(3000):
        sentence = [str(t) for t in rng.choice(tags, rng.integers(1, 4))]
        if schemes.fault(sentence, scheme):
            continue
        legal += 1
        covered = {k for _, a, b in schemes.entities(sentence, scheme) for k in range(a, b)}
        assert covered == {k for k, t in enumerate(sentence) if t != "O"}
    assert legal > 100


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("B-X I-X O", "IOB2"),
        ("O I-X I-X", "IOB1"),
        ("B-X E-X S-Y", "BIOES"),
        ("B-X M-X E-X O", "BMES"),
        ("B-X L-X U-Y O", "BILOU"),
        ("ANSWER REST O", "plain"),
        ("B I O B", "IOB2"),
        ("I I B O", "IOB1"),
        ("B M E S S", "BMES"),
        ("B E S O", "BIOES"),
        ("B L U", "BILOU"),
        ("I O I", "plain"),
        ("A B O", "plain"),
        ("b-cell i-pod answer", "plain"),
        ("b i", "plain"),
        ("o", "plain"),
    ],
)
def test_the_scheme_is_found(tags, scheme):
    assert schemes.detect([tags.split()], where) == scheme


@pytest.mark.parametrize(
    ("tags", "place", "words"),
    [
        ("O B-X O I-X", 3, ["'I-X' follows 'O'", "IOB2"]),
        ("B-X I-Y", 1, ["'I-Y' follows 'B-X'"]),
        ("B-X PER", 1, ["'PER'", "IOB2", "B-TYPE"]),
        ("B-X Q-X", 1, ["'Q-X'", "B, Q", "BIOES"]),
        ("S-X B-X O", 2, ["'O' follows 'B-X'", "BIOES"]),
        ("S-X O B-X", 2, ["'B-X' ends the sentence"]),
        ("B-X O-X", 1, ["'O-X'"]),
        ("B-X B-", 1, ["'B-'"]),
        ("B-X I", 1, ["'I' has no type", "I-TYPE"]),
        ("B M O", 2, ["'O' follows 'M'", "BMES"]),
        ("b-per i-per o", 0, ["'b-per' has a prefix in a small letter", "'B-per'", "'plain'"]),
        ("O s-x", 1, ["'s-x'", "'S-x'"]),
        ("o b i", 1, ["'b'", "'B'"]),
        ("O B_PER I_PER", 1, ["'B_PER' has a prefix in another form", "'B-PER'", "'plain'"]),
        ("PER-B PER-I O", 0, ["'PER-B'", "'B-PER'"]),
    ],
)
def test_what_no_scheme_allows(tags, place, words):
    with pytest.raises(InputError) as error:
        schemes.detect([["O"], tags.split()], where)
    message = str(error.value)
    assert "\n" not in message and all(w in message for w in words), message
    assert message.startswith(f"file:1 word {place}:")


def test_a_type_is_wanted_of_all_tags_where_the_scheme_is_given():
    with pytest.raises(InputError, match="file:1 word 0: tag 'B' has no type, as 'B-X' has one"):
        schemes.check([["B-X", "O"], ["B"]], "IOB2", where)
    schemes.check([["B-X", "O"], ["B"]], "plain", where)


@pytest.mark.parametrize("scheme", ["IOB2", "BIOES", "BMES", "BILOU", "plain"])
def test_forbidden_says_what_fault_says(scheme):
    tags = all_tags(scheme) if scheme != "plain" else ["O", "A", "B"]
    start, steps, end = schemes.forbidden(tags, scheme)
    for i, a in enumerate(tags):
        assert (schemes.fault([a], scheme) is None) == (start[i] == 0 and end[i] == 0)
        for j, b in enumerate(tags):
            fine = start[i] == 0 and steps[i, j] == 0 and end[j] == 0
            assert (schemes.fault([a, b], scheme) is None) == fine
