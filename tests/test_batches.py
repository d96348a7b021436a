"""Batches: every example once an epoch, any step at a prompt, only one's own rows read."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import encoded, varied

from bert_ft.data.batches import ROW_ARRAYS, BatchPlan, EvalPlan
from bert_ft.data.prefetch import prefetch

ROW = 16


def plan(data=None, **overrides):
    settings = {"batch_size": 8, "steps": 12, "row_length": ROW, "seed": 3, **overrides}
    return BatchPlan(varied(30) if data is None else data, **settings)


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
        assert a[name].dtype == b[name].dtype


def sequences_of(batch, pieces=1):
    """{ordinal: [(tokens, types, tags) of each of its pieces]} read back out of the rows."""
    flat = {k: batch[k].reshape(-1) for k in ("tokens", "types", "tag", "segments", "positions")}
    out = {}
    for i, ordinal in enumerate(batch["ordinal"]):
        if not batch["weight"][i]:
            assert not (flat["segments"] == ordinal).any()
            continue
        for piece in range(pieces):
            at = flat["segments"] == ordinal + piece
            np.testing.assert_array_equal(flat["positions"][at], np.arange(at.sum()))
            start = batch["example_start"][i * pieces + piece]
            assert np.flatnonzero(at)[0] == start
            row, slot = divmod(
                int(batch["example_slot"][i * pieces + piece]), batch["slots"].shape[1]
            )
            assert row * ROW + batch["slots"][row, slot] == start
            out.setdefault(i, []).append(tuple(flat[k][at] for k in ("tokens", "types", "tag")))
    return out


def assert_holds(batch, data, examples):
    """The batch says exactly what the data set says of these examples, and nothing else."""
    found = sequences_of(batch, data.pieces)
    for i, example in enumerate(examples):
        if example < 0:
            assert batch["weight"][i] == 0
            continue
        assert batch["weight"][i] == 1
        assert batch["label"][i] == data.fields["label"][example]
        for piece, (tokens, types, tags) in enumerate(found[i]):
            s = example * data.pieces + piece
            span = slice(data.offsets[s], data.offsets[s + 1])
            np.testing.assert_array_equal(tokens, data.tokens[span])
            np.testing.assert_array_equal(types, data.types[span])
            np.testing.assert_array_equal(tags, data.token_fields["tag"][span])
    real = [e for e in examples if e >= 0]
    assert (batch["segments"] > 0).sum() == data.lengths[real].sum()
    padding = batch["segments"] == 0
    for name in ("tokens", "types", "positions", "tag"):
        assert not batch[name][padding].any()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_batch_holds_its_examples_and_nothing_else(packed, pieces):
    data = encoded(np.random.default_rng(0).integers(1, ROW + 1, 30 * pieces), pieces)
    p = plan(data, packed=packed)
    for step in range(4):
        batch = p.batch(step)
        assert batch["tokens"].shape == (p.shape(step).rows, ROW)
        assert_holds(batch, data, p.examples(step))
        assert p.tokens(step) == (batch["segments"] > 0).sum()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 5))
def test_every_example_once_an_epoch(count, batch_size, seed):
    """Epochs follow each other without a gap, whether or not batches divide them."""
    epochs = 3
    p = plan(
        varied(count), batch_size=batch_size, steps=-(-epochs * count // batch_size), seed=seed
    )
    stream = np.concatenate([p.examples(step) for step in range(p.steps)])
    assert all(len(p.examples(step)) == batch_size for step in range(p.steps))
    for epoch in range(epochs):
        one = stream[epoch * count : (epoch + 1) * count]
        np.testing.assert_array_equal(np.sort(one), np.arange(count))


def test_epochs_and_seeds_are_shuffled_differently():
    count = 30
    p = plan(batch_size=count)
    orders = [
        tuple(p.examples(0)),
        tuple(p.examples(1)),
        tuple(plan(batch_size=count, seed=4).examples(0)),
    ]
    assert len(set(orders)) == 3
    assert tuple(np.arange(count)) not in orders


def test_any_step_comes_from_a_fresh_plan():
    whole = plan()
    in_order = [whole.batch(step) for step in range(whole.steps)]
    for step in (11, 0, 7):
        same(plan().batch(step), in_order[step])


def digest():
    """SHA-256 over some batches, names, dtypes and bytes."""
    out = hashlib.sha256()
    for step in (9, 2):
        for name, value in sorted(plan(accumulate=2).batch(step).items()):
            out.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return out.hexdigest()


def test_a_fresh_process_makes_the_same_batches():
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", "import test_batches; print(test_batches.digest())"],
        cwd=here,
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split()[-1] == digest()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_some_rows_are_that_slice_of_the_whole(packed, accumulate):
    p = plan(packed=packed, accumulate=accumulate, multiple=2)
    whole, rows = p.batch(5), p.shape(5).rows
    axis = 1 if accumulate > 1 else 0
    for part in (range(0, rows // 2), range(rows // 2, rows)):
        batch = p.batch(5, part)
        for name, value in whole.items():
            by_row = name in (*ROW_ARRAYS, "tag")
            expected = np.take(value, list(part), axis=axis) if by_row else value
            np.testing.assert_array_equal(batch[name], expected, err_msg=name)


class Watched(np.ndarray):
    """An array that notes which of its places were read."""

    def __getitem__(self, index):
        self.read.update(np.atleast_1d(index).tolist())
        return np.asarray(super().__getitem__(index))


def test_only_the_tokens_of_ones_own_rows_are_read():
    data = varied(30)
    tokens = data.tokens.view(Watched)
    tokens.read = set()
    object.__setattr__(data, "tokens", tokens)
    p = plan(data, multiple=2)
    batch = p.batch(0, range(0, p.shape(0).rows // 2))
    tags = batch["tag"][batch["segments"] > 0] - 1  # a tag is the token's place in the data, plus 1
    assert len(tags) and tokens.read == set(tags.tolist())


def test_the_plan_reads_no_token():
    data = varied(30)
    object.__setattr__(data, "tokens", None)
    p = plan(data)
    assert p.counts and p.shape(11).rows in p.counts and p.first_step_of(p.counts[0]) >= 0


@pytest.mark.parametrize("packed", [True, False])
def test_accumulation_splits_a_batch_in_order(packed):
    one, four = plan(packed=packed), plan(packed=packed, accumulate=4)
    for step in range(4):
        whole, split = one.batch(step), four.batch(step)
        assert split["tokens"].shape[:2] == (4, four.shape(step).rows)
        for name in ("label", "weight", "ordinal"):
            np.testing.assert_array_equal(split[name].reshape(-1), whole[name])
        for part, examples in enumerate(one.examples(step).reshape(4, 2)):
            assert_holds({k: v[part] for k, v in split.items()}, one.data, examples)


@pytest.mark.parametrize("multiple", [1, 3, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_shapes_are_the_few_that_were_promised(multiple, accumulate):
    p = plan(multiple=multiple, accumulate=accumulate, at_most=2)
    seen = {tuple(sorted((k, v.shape) for k, v in p.batch(s).items())) for s in range(p.steps)}
    assert len(p.counts) <= 2 and all(c % multiple == 0 for c in p.counts)
    assert len(seen) == len({p.shape(s).rows for s in range(p.steps)}) == len(p.counts)
    for rows in p.counts:
        first = p.first_step_of(rows)
        assert p.shape(first).rows == rows
        assert all(p.shape(s).rows != rows for s in range(first))


def test_packing_saves_rows():
    """Eight examples of 2 to 16 tokens, 9 on average, in rows of 32: three, now and then four."""
    assert max(plan(row_length=32).counts) <= 4
    assert plan(row_length=32, packed=False).counts == (8,)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 20), st.booleans(), st.sampled_from([1, 4]))
def test_evaluation_holds_every_example_once(count, batch_size, packed, multiple):
    data = varied(count)
    p = EvalPlan(data, batch_size, ROW, packed, multiple)
    order = p.order[p.order >= 0]
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    shapes = set()
    for step in range(p.steps):
        batch = p.batch(step)
        assert_holds(batch, data, p.order[step])
        shapes.add(tuple(sorted((k, v.shape) for k, v in batch.items())))
    assert len(shapes) == 1 and p.shape.rows % multiple == 0


def test_evaluation_rows_are_that_slice_of_the_whole():
    p = EvalPlan(varied(29), 8, ROW, multiple=2)
    half = p.shape.rows // 2
    for step in range(p.steps):
        whole, part = p.batch(step), p.batch(step, range(half, 2 * half))
        for name in (*ROW_ARRAYS, "tag"):
            np.testing.assert_array_equal(part[name], whole[name][half:])


def names():
    return {t for t in threading.enumerate() if t.name == "prefetch"}


def test_prefetch_keeps_the_order_and_ends():
    before = names()
    assert list(prefetch(lambda step: step * step, range(20), 3)) == [s * s for s in range(20)]
    assert names() == before


def test_prefetch_runs_ahead_but_no_further_than_told():
    made = []
    batches = prefetch(lambda step: made.append(step) or step, range(100), 2)
    assert next(batches) == 0
    limit = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.2)
    assert made == [0, 1, 2, 3]  # one taken, two waiting, one in the hand
    batches.close()


def test_prefetch_raises_what_the_thread_raised_after_what_came_before():
    def make(step):
        if step == 2:
            raise OSError("the disk went away")
        return step

    batches = prefetch(make, range(5), 1)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(OSError, match="the disk went away"):
        next(batches)


def test_leaving_early_ends_the_thread():
    before = names()
    slow = prefetch(lambda step: time.sleep(0.05) or step, range(10**9), 2)
    assert next(slow) == 0
    slow.close()
    assert names() == before
