"""Which words are hidden: how many, behind what, whole; the same however a batch is laid out."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import encoded

from bert_ft.data.batches import BatchPlan, EvalPlan
from bert_ft.data.masking import Masking, choose_words, wanted

VOCAB, MASK, SPECIAL = 500, 4, [0, 1, 2, 3, 4]
DRAWN = ("masked_slots", "masked_token", "masked_of", "masked_word")


def texts(word_sizes, seed=0, vocab=VOCAB):
    """Examples of words of these sizes between two special tokens."""
    data = encoded([2 + sum(sizes) for sizes in word_sizes], seed=seed)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(len(SPECIAL), vocab, int(data.offsets[-1])).astype(np.int32)
    numbers = [
        np.concatenate([[0], np.repeat(np.arange(1, len(s) + 1), s), [0]]) for s in word_sizes
    ]
    tokens[data.offsets[:-1]], tokens[data.offsets[1:] - 1] = 2, 3
    fitted = {"mask_id": MASK, "special_ids": SPECIAL, "tokens": vocab}
    word = np.concatenate(numbers).astype(np.int32)
    return dataclasses.replace(
        data, tokens=tokens, token_fields={"word": word}, fields={}, fitted=fitted
    )


def some(count, longest=12, seed=0):
    rng = np.random.default_rng(seed)
    return [list(rng.integers(1, 4, rng.integers(1, longest + 1))) for _ in range(count)]


def hidden_of(batch, data, examples):
    """{(nth example of the batch, place in it): (what the model reads, what stood there)}"""
    found = {}
    length = batch["tokens"].shape[1]
    for r, m in np.argwhere(batch["masked_of"] < len(examples)):
        nth, column = int(batch["masked_of"][r, m]), int(batch["masked_slots"][r, m])
        place = r * length + column - batch["example_start"][nth]
        found[nth, int(place)] = int(batch["tokens"][r, column]), int(batch["masked_token"][r, m])
    return found


def before(data, example, place):
    return int(data.tokens[data.offsets[example] + place])


plans = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.lists(st.integers(1, 5), max_size=14), min_size=3, max_size=12),
        "seed": st.integers(0, 2**31),
        "rate": st.sampled_from([0.05, 0.15, 0.4, 0.9]),
        "packed": st.booleans(),
        "accumulate": st.sampled_from([1, 2]),
    }
)


@given(plans)
@settings(max_examples=60, deadline=None)
def test_what_is_hidden_in_any_batch(case):
    data = texts(case["sizes"], seed=1)
    draw = Masking(case["rate"])
    plan = BatchPlan(
        data, 4, 3, 80, seed=case["seed"], packed=case["packed"],
        accumulate=case["accumulate"], draw=draw,
    )  # fmt: skip
    plain = dataclasses.replace(plan, draw=None)
    for step in range(3):
        batch, without, examples = plan.batch(step), plain.batch(step), plan.examples(step)
        assert not batch.keys() & {"word"} and set(DRAWN) <= batch.keys()
        micro = examples.reshape(case["accumulate"], -1)
        for a in range(case["accumulate"]):
            part, was = (
                {k: v[a] for k, v in b.items()} if case["accumulate"] > 1 else b
                for b in (batch, without)
            )
            hidden = hidden_of(part, data, micro[a])
            for (nth, place), (_, original) in hidden.items():
                e = micro[a][nth]
                assert original == before(data, e, place) and original not in SPECIAL
                assert data.token_fields["word"][data.offsets[e] + place] > 0
            # Nothing else was changed.
            changed = np.argwhere(part["tokens"] != was["tokens"])
            slots = {
                (r, int(part["masked_slots"][r, m]))
                for r, m in np.argwhere(part["masked_token"] >= 0)
            }
            assert {tuple(map(int, at)) for at in changed} <= {(int(r), c) for r, c in slots}
            for nth, e in enumerate(micro[a]):
                word = data.token_fields["word"][data.offsets[e] : data.offsets[e + 1]]
                mine = {place for n, place in hidden if n == nth}
                # Whole words, and as many tokens as there should be, or less by what fits no more.
                assert all(set(np.flatnonzero(word == w)) <= mine for w in {word[p] for p in mine})
                room = int(wanted(np.asarray((word > 0).sum()), case["rate"]))
                left = set(word[word > 0]) - {word[p] for p in mine}
                assert len(mine) <= room
                assert all((word == w).sum() > room - len(mine) for w in left)


@given(st.integers(2, 90), st.integers(0, 2**31), st.floats(0.01, 0.95))
@settings(max_examples=60, deadline=None)
def test_there_are_slots_for_all(length, seed, rate):
    """The bound holds for rows full of examples of any lengths: the assertion in the draw."""
    rng, sizes, left = np.random.default_rng(seed), [], length
    while left >= 2:
        size = int(rng.integers(2, left + 1)) if rng.random() < 0.5 else min(left, 3)
        sizes.append([1] * (size - 2))
        left -= size
    data = texts(sizes)
    plan = EvalPlan(data, len(data), max(length, 4), draw=Masking(rate))
    batch = plan.batch(0)
    count = sum(wanted(np.asarray(len(s)), rate) for s in sizes)
    assert (batch["masked_token"] >= 0).sum() == count


def test_shares():
    """15 % of the tokens, and of these 80 : 10 : 10, within five standard errors."""
    data = texts([[1] * 100] * 400)
    plan = BatchPlan(data, 400, 4, 102, draw=Masking(0.15))
    read, was = [], []
    for step in range(4):
        for seen, original in hidden_of(plan.batch(step), data, plan.examples(step)).values():
            read.append(seen)
            was.append(original)
    read, was = np.asarray(read), np.asarray(was)
    n = len(read)
    assert n == 4 * 400 * 15
    for share, got in (
        (0.8, read == MASK),
        (0.1 + 0.1 / 495, read == was),
        (0.1, (read != MASK) & (read != was)),
    ):
        assert abs(got.mean() - share) < 5 * np.sqrt(share * (1 - share) / n), share
    random = read[(read != MASK) & (read != was)]
    assert not np.isin(random, SPECIAL).any()
    assert len(np.unique(random)) > 480 and np.abs(random.mean() - (VOCAB + 4) / 2) < 15
    for kept, random_share, accepted in ((1.0, 0.0, was), (0.0, 0.0, np.full(n, MASK))):
        other = dataclasses.replace(plan, draw=Masking(0.15, random_share, kept))
        seen = [s for step in range(4) for s, _ in
                hidden_of(other.batch(step), data, other.examples(step)).values()]  # fmt: skip
        assert seen == accepted.tolist()


def test_how_many_tokens_are_hidden():
    counts = np.asarray([0, 1, 2, 9, 11, 16, 17, 100])
    assert wanted(counts, 0.15).tolist() == [0, 1, 1, 1, 2, 2, 3, 15]
    assert wanted(counts, 0.99).tolist() == [0, 1, 2, 9, 11, 16, 17, 99]


def test_every_word_is_hidden_as_often_as_another():
    """Of words of one size: the first no more than the last."""
    data = texts([[1] * 20] * 50)
    plan = BatchPlan(data, 50, 100, 22, draw=Masking(0.15))
    counts = np.zeros(22)
    for step in range(100):
        for _, place in hidden_of(plan.batch(step), data, plan.examples(step)):
            counts[place] += 1
    share = counts[1:-1] / 5000
    assert np.abs(share - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 5000)


def by_example(plan, step):
    """The hidden places of each example of the data, with what is read there."""
    examples = plan.examples(step) if isinstance(plan, BatchPlan) else plan.order[step]
    out = {}
    for (nth, place), what in hidden_of(plan.batch(step), plan.data, examples).items():
        out.setdefault(int(examples[nth]), {})[place] = what
    return out


def test_the_layout_changes_nothing():
    """Packed or padded, in one batch or in parts, on one host or on several."""
    data = texts(some(24))
    made = [
        BatchPlan(data, 8, 6, 60, seed=5, packed=packed, draw=Masking(0.15), multiple=4)
        for packed in (True, False)
    ]
    for step in range(6):
        packed, padded = (by_example(plan, step) for plan in made)
        assert packed == padded and packed
    whole = made[0].batch(2)
    rows, parts = len(whole["tokens"]), []
    for first in range(0, rows, rows // 4):
        parts.append(made[0].batch(2, range(first, first + rows // 4)))
    for name in ("tokens", *DRAWN):
        np.testing.assert_array_equal(whole[name], np.concatenate([p[name] for p in parts]))
    for name in set(whole) - made[0].shape(2).row_arrays:
        for part in parts:
            np.testing.assert_array_equal(whole[name], part[name], err_msg=name)


def test_every_use_of_an_example_is_drawn_afresh_and_always_alike():
    data = texts([[1, 2, 1, *sizes] for sizes in some(12, longest=27)])
    plan = BatchPlan(data, 12, 3, 100, seed=5, draw=Masking(0.15))
    epochs = [by_example(plan, step) for step in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert sum(epochs[0][e].keys() == epochs[1].get(e, {}).keys() for e in epochs[0]) < 6
    assert epochs == [by_example(dataclasses.replace(plan, steps=3), step) for step in range(3)]
    other = dataclasses.replace(plan, seed=6)
    assert by_example(other, 0) != epochs[0]
    # An example's masking does not depend on the size of the batch.
    halves = dataclasses.replace(plan, batch_size=6, steps=6)
    assert epochs[0] == by_example(halves, 0) | by_example(halves, 1)


def test_an_evaluation_hides_always_the_same():
    data = texts([[1, *sizes] for sizes in some(20)])
    made = [EvalPlan(data, size, 80, packed, draw=Masking(0.15)) for size, packed in
            ((20, True), (20, False), (7, True))]  # fmt: skip
    found = []
    for plan in made:
        all_of = {}
        for step in range(plan.steps):
            all_of |= by_example(plan, step)
        found.append(all_of)
    assert found[0] == found[1] == found[2] and len(found[0]) == 20
    once, again = made[0].batch(0), made[0].batch(0)
    assert all(np.array_equal(once[k], again[k]) for k in once)


def test_masks_of_the_text_are_asked_for_and_nothing_else_of_it_is_hidden():
    data = texts([[1] * 20, [1] * 20, [1] * 20])
    tokens, word = data.tokens.copy(), data.token_fields["word"].copy()
    for at in (24, 30):  # in the second text
        tokens[at], word[at] = MASK, 0
    blank = np.asarray([[-1, -1], [2, 8], [-1, -1]], np.int32)
    data = dataclasses.replace(
        data, tokens=tokens, token_fields={"word": word}, fields={"blank": blank}
    )
    plan = EvalPlan(data, 3, 22, packed=False, draw=Masking(0.15))
    found = by_example(plan, 0)
    assert found[1] == {2: (MASK, -1), 8: (MASK, -1)}
    assert len(found[0]) == len(found[2]) == 3
    # In training they stay, and others are hidden besides.
    used = by_example(BatchPlan(data, 3, 1, 66, draw=Masking(0.15)), 0)[1]
    assert len(used) == 3 and not {2, 8} & used.keys()


@pytest.mark.parametrize(
    ("sizes", "room", "taken"),
    [([3, 1, 2, 1], 3, [3]), ([4, 1, 2, 1], 3, [1, 2]), ([4, 5], 3, []), ([], 3, []), ([1], 0, [])],
)
def test_words_are_tried_in_order_and_passed_over_where_they_do_not_fit(sizes, room, taken):
    word = np.repeat(np.arange(len(sizes)), sizes)
    chosen = choose_words(np.zeros(len(word), int), word, word / 10.0, np.asarray([room]))
    assert [sizes[w] for w in sorted(set(word[chosen]))] == taken
