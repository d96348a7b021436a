"""Few shots, and epochs of versions and quotas: nested, exact, nobody lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import varied
from test_augment import Given

from bert_ft.data.batches import BatchPlan
from bert_ft.data.epochs import OVERSAMPLING, Epochs
from bert_ft.data.mixing import endless
from bert_ft.data.shots import FewShots
from bert_ft.errors import InputError

LABELS = [k for k, n in enumerate((90, 40, 7)) for _ in range(n)]


def few(count, seed=0, label="label"):
    source = Given(text=[f"t{i}" for i in range(len(LABELS))], label=LABELS)
    return FewShots(source, count, seed, label).read().columns


def test_shots_are_nested_and_of_each_label():
    small, large = few(3), few(7)
    assert {k: small["label"].count(k) for k in range(3)} == {0: 3, 1: 3, 2: 3}
    assert set(small["text"]) < set(large["text"])
    assert small == few(3) and small["text"] != few(3, seed=1)["text"]
    assert [int(t[1:]) for t in small["text"]] == sorted(int(t[1:]) for t in small["text"])
    assert len(few(20, label="")["text"]) == 20
    assert set(few(20, label="")["text"]) < set(few(50, label="")["text"])


def test_too_few_rows_are_told():
    with pytest.raises(InputError, match=r"data.shots is 8; accepted: at most 7: .*'?2'? has 7"):
        few(8)
    with pytest.raises(InputError, match="at most 137"):
        few(138, label="")


def test_shots_count_a_label_by_what_it_says():
    """As pandas writes 4, or with blanks around it, it is no label of its own."""
    source = Given(text=list("abcdef"), label=["4", "4.0", 4.0, "5", " 5", 5])
    assert len(FewShots(source, 3, 0, "label").read()) == 6
    assert len(FewShots(source, 1, 0, "label").read()) == 2


@pytest.mark.parametrize(("label", "said"), [("", "is blank"), (" ", "is blank"), (np.nan, "nan")])
def test_shots_of_rows_without_a_label(label, said):
    source = Given(text=list("abc"), label=["x", "y", label])
    with pytest.raises(
        InputError, match=f"given row 2: column 'label' .*{said}; accepted: a label"
    ):
        FewShots(source, 1, 0, "label").read()


@st.composite
def epochs(draw):
    blocks = tuple(draw(st.lists(st.integers(1, 12), min_size=1, max_size=4)))
    how = draw(st.sampled_from(list(OVERSAMPLING)))
    classes = None
    if how != "none":
        size = sum(blocks)
        classes = np.asarray(draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))
    return Epochs(blocks, classes, OVERSAMPLING[how])


@settings(max_examples=100, deadline=None)
@given(epochs(), st.data())
def test_any_stretch_is_that_of_the_whole(made, data):
    total = 3 * sum(made.sizes)
    whole = made.stream(5, 0, total)
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start, total))
    np.testing.assert_array_equal(made.stream(5, start, stop), whole[start:stop])


@settings(max_examples=100, deadline=None)
@given(epochs())
def test_an_epoch_loses_no_example_of_its_block_and_draws_each_its_quota(made):
    begins = np.cumsum([0, *made.blocks])
    at = 0
    for e in range(2 * len(made.blocks)):
        b = e % len(made.blocks)
        drawn = made.stream(5, at, at + made.sizes[b])
        at += made.sizes[b]
        members = np.arange(begins[b], begins[b + 1])
        assert set(drawn) == set(members)
        classes = np.zeros(sum(made.blocks)) if made.classes is None else made.classes
        for k, quota in zip(np.unique(classes[members]), made.quotas[b], strict=True):
            own = np.bincount(drawn)[members[classes[members] == k]]
            assert own.sum() == quota and own.max() - own.min() <= 1


def test_quotas_of_skewed_labels():
    classes = np.asarray(LABELS)
    assert Epochs((len(LABELS),), classes, OVERSAMPLING["balanced"]).quotas == [[90, 90, 90]]
    assert Epochs((len(LABELS),), classes, OVERSAMPLING["sqrt"]).quotas == [[90, 60, 25]]
    assert Epochs((len(LABELS),), classes, OVERSAMPLING["none"]).quotas == [[90, 40, 7]]


def test_versions_come_where_the_rows_would():
    plain = endless((3,), 20, 0, 100).reshape(5, 20)
    made = Epochs((20, 20, 20)).stream(3, 0, 100).reshape(5, 20)
    np.testing.assert_array_equal(made % 20, plain)
    np.testing.assert_array_equal(made // 20, np.repeat([0, 1, 2, 0, 1], 20).reshape(5, 20))


def test_a_plan_draws_by_the_order_of_its_set():
    data = varied(60)
    order = Epochs((20, 40))
    plan = BatchPlan(data, 4, 30, 32, mixture=order)
    seen = np.concatenate([plan.examples(step) for step in range(15)])
    assert sorted(seen) == list(range(60)) and set(seen[:20]) == set(range(20))
    assert len(data) == data.of_an_epoch == 60
