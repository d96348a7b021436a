"""The encoder: examples in one row do not see each other, and neither layout nor place changes
what dropout does to a token. Its numbers are checked in test_parity.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SIZES, encoded, init, model, varied

from bert_ft.data.batches import BatchPlan, EvalPlan
from bert_ft.models import ops
from bert_ft.models.bert import Encoder
from bert_ft.models.noise import make_noise

MODEL = model()
ROW = 16


@pytest.fixture(scope="module")
def params():
    return init(MODEL)


def batches(count=8):
    """The same examples, packed and one a row."""
    plans = [BatchPlan(varied(count), count, 1, ROW, packed=packed) for packed in (True, False)]
    packed, padded = (p.batch(0) for p in plans)
    assert len(packed["tokens"]) < len(padded["tokens"]) == count
    return packed, padded


@functools.cache
def program(random):
    def logits(params, batch, key, rate):
        return MODEL.apply({"params": params}, batch, key if random else None, rate)["logits"]

    return jax.jit(logits)


def logits(params, batch, rate=0.0, seed=0):
    return np.asarray(program(rate > 0)(params, batch, jax.random.key(seed), rate))


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_packed_equals_padded_with_dropout_and_without(rate, params):
    packed, padded = batches()
    a, b = logits(params, packed, rate), logits(params, padded, rate)
    assert np.ptp(b, axis=0).max() > 0.3, "the model says the same of everything"
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_dropout_does_something_and_depends_on_the_key(params):
    packed, _ = batches()
    outs = [logits(params, packed, 0.3, 0), logits(params, packed, 0.3, 1), logits(params, packed)]
    for i in range(3):
        assert np.abs(outs[i] - outs[i - 1]).max() > 0.05
    np.testing.assert_array_equal(outs[0], logits(params, packed, 0.3, 0))


def test_dropout_of_rate_zero_is_none(params):
    packed, _ = batches()
    always = np.asarray(program(True)(params, packed, jax.random.key(0), 0.0))
    np.testing.assert_allclose(always, logits(params, packed), rtol=0, atol=2e-5)


def test_a_neighbour_in_the_row_changes_nothing(params):
    packed, _ = batches()
    row = int(packed["example_start"][0]) // ROW
    mine = packed["segments"] == packed["ordinal"][0]
    assert (packed["segments"][row] > 0).sum() > mine.sum(), "the first example is alone in its row"
    changed = {k: v.copy() for k, v in packed.items()}
    changed["tokens"][~mine] = (changed["tokens"][~mine] + 5) % SIZES.vocab_size
    changed["types"][~mine] ^= 1
    a, b = logits(params, packed), logits(params, changed)
    np.testing.assert_array_equal(a[0], b[0])
    assert np.abs(a[1:] - b[1:]).min(axis=1).max() > 0.01


def test_empty_rows_change_nothing_and_make_no_nan(params):
    packed, _ = batches()
    rows = len(packed["tokens"])
    more = {
        k: np.concatenate([v, np.zeros_like(v)]) if v.ndim == 2 else v for k, v in packed.items()
    }
    assert len(more["tokens"]) == 2 * rows
    np.testing.assert_allclose(logits(params, more), logits(params, packed), rtol=0, atol=2e-5)
    hidden = jax.jit(Encoder(SIZES).apply)({"params": params["encoder"]}, more)
    assert np.isfinite(hidden).all()


def test_nothing_is_learnt_from_padding(params):
    """Padding holds token 0, which no example has here: its embedding gets no gradient at all."""
    packed, _ = batches()

    def total(params):
        out = MODEL.apply({"params": params}, packed)["logits"]
        return (out * jnp.arange(1.0, 4.0)).sum()

    gradient = jax.jit(jax.grad(total))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    table = np.asarray(gradient["encoder"]["word"]["embedding"])
    seen = np.unique(packed["tokens"][packed["segments"] > 0])
    assert not table[0].any()
    assert (np.abs(table[seen]).sum(axis=1) > 0).all()


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_last_layer_of_first_tokens_equals_the_whole_computation(rate, params):
    packed, _ = batches()

    def hidden(params, batch, first_only):
        noise = make_noise(jax.random.key(3), rate, batch, SIZES) if rate else None
        return Encoder(SIZES).apply({"params": params}, batch, noise, first_only)

    run = jax.jit(hidden, static_argnums=2)
    whole = np.asarray(run(params["encoder"], packed, False)).reshape(-1, SIZES.hidden_size)
    first = np.asarray(run(params["encoder"], packed, True))
    assert first.shape == (*packed["slots"].shape, SIZES.hidden_size)
    first = first.reshape(-1, SIZES.hidden_size)
    np.testing.assert_allclose(
        first[packed["example_slot"]], whole[packed["example_start"]], rtol=0, atol=2e-5
    )


def test_every_site_has_words_of_its_own(monkeypatch, params):
    """3 sites a layer (attention, its output, the feed-forward's), one of the embeddings, one of
    the head; a site that shared its words with another would drop the same lanes."""
    words, salt = [], ops.token_salt

    def noted(its_words, ids):
        words.append(its_words)
        return salt(its_words, ids)

    def run(batch, key):
        MODEL.apply({"params": params}, batch, key, 0.1)
        return jnp.stack(words)

    monkeypatch.setattr(ops, "token_salt", noted)
    used = np.asarray(jax.jit(run)(batches()[0], jax.random.key(0)))
    assert len(used) == len(np.unique(used, axis=0)) == 3 * SIZES.num_hidden_layers + 2


def test_a_token_has_its_mask_in_any_batch_of_rows(params):
    """Keyed by example and position: a device that holds some rows drops what the whole would."""
    plan = EvalPlan(encoded([9, 7, 12, 4, 16, 5]), 6, ROW, multiple=2)
    half = plan.shape.rows // 2
    whole = plan.batch(0)
    run = jax.jit(
        lambda batch: Encoder(SIZES).apply(
            {"params": params["encoder"]}, batch, make_noise(jax.random.key(1), 0.3, batch, SIZES)
        )
    )
    expected = np.asarray(run(whole))
    for rows in (range(half), range(half, 2 * half)):
        part = plan.batch(0, rows)
        real = part["segments"] > 0
        ours = np.asarray(run(part))
        np.testing.assert_allclose(ours[real], expected[list(rows)][real], rtol=0, atol=2e-5)


def test_bfloat16_is_close_and_keeps_float32_where_it_counts(params):
    packed, _ = batches()
    half = model(dtype=jnp.bfloat16)
    out = jax.jit(half.apply)({"params": params}, packed)["logits"]
    assert out.dtype == jnp.float32
    exact = logits(params, packed)
    # bfloat16 has 8 bits: 0.4 % an operation, over a dozen of them and logits of about 2.
    assert 1e-5 < np.abs(np.asarray(out) - exact).max() < 0.1
    shapes = jax.eval_shape(lambda: init(half))
    assert {s.dtype for s in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
