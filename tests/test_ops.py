"""Operations against their textbook forms in float64, and dropout against its statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from bert_ft.models import ops

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("lead", [(7,), (3, 5), (2, 3, 4)])
def test_matmul_and_its_gradients_are_those_of_dot(lead):
    x = RNG.normal(size=(*lead, 6)).astype(np.float32)
    w = RNG.normal(size=(6, 8)).astype(np.float32)
    g = RNG.normal(size=(*lead, 8)).astype(np.float32)
    out, back = jax.vjp(ops.matmul, x, w)
    expected, back_expected = jax.vjp(jnp.dot, x, w)
    np.testing.assert_array_equal(out, expected)
    for ours, theirs in zip(back(g), back_expected(g), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_matmul_keeps_bfloat16():
    x, w = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.bfloat16)
    out, back = jax.vjp(ops.matmul, x, w)
    assert {a.dtype for a in (out, *back(out))} == {jnp.dtype(jnp.bfloat16)}


def test_gelu_is_the_exact_one():
    """x Phi(x); the tanh approximation is off by up to 5e-4."""
    x = np.linspace(-9, 9, 20001)
    exact = x * special.ndtr(x)
    ours = np.asarray(ops.gelu(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-6)


def test_the_gradient_of_gelu():
    x = np.linspace(-9, 9, 2001)
    exact = special.ndtr(x) + x * stats.norm.pdf(x)
    ours = jax.vmap(jax.grad(ops.gelu))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("centre", [0.0, 40.0])
def test_layer_norm(centre):
    x = RNG.normal(centre, 3.0, (5, 24)).astype(np.float32)
    scale, bias = RNG.normal(1, 0.2, 24), RNG.normal(0, 0.2, 24)
    wide = x.astype(np.float64)
    mean, variance = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
    expected = (wide - mean) / np.sqrt(variance + 1e-12) * scale + bias
    ours = ops.layer_norm(
        jnp.asarray(x), jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32), 1e-12
    )
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)


def test_layer_norm_uses_its_epsilon_and_computes_in_float32():
    x = jnp.array([[0.001, -0.001]], jnp.bfloat16)
    one, zero = jnp.ones(2), jnp.zeros(2)
    out = ops.layer_norm(x, one, zero, 1e-6)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), [[2**-0.5, -(2**-0.5)]], atol=4e-3)


def test_a_constant_row_has_a_finite_gradient():
    """A row of nothing but padding may be one; 0 times an overflow would be NaN."""
    one, zero = jnp.ones(8), jnp.zeros(8)
    gradient = jax.grad(lambda x: ops.layer_norm(x, one, zero, 1e-12).sum())(jnp.zeros((2, 8)))
    assert np.isfinite(gradient).all()


def test_masked_softmax_against_float64():
    scores = RNG.normal(0, 4, (3, 5, 9)).astype(np.float32)
    allowed = RNG.random((3, 5, 9)) > 0.4
    allowed[..., 2] = True
    allowed[1, 4] = False
    e = np.where(allowed, np.exp(scores.astype(np.float64)), 0)
    with np.errstate(invalid="ignore"):
        expected = np.nan_to_num(e / e.sum(-1, keepdims=True))
    ours = np.asarray(ops.masked_softmax(jnp.asarray(scores), jnp.asarray(allowed)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    assert not ours[~allowed].any() and not ours[1, 4].any()


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_masked_softmax_of_large_scores(shift):
    scores = jnp.asarray([[0.0, 1.0, 2.0]]) + shift
    ours = ops.masked_softmax(scores, jnp.asarray([[True, True, False]]))
    np.testing.assert_allclose(ours, [[0.26894, 0.73106, 0]], atol=1e-5)


def test_masked_softmax_has_finite_gradients_where_nothing_is_allowed():
    scores = jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32)
    allowed = jnp.asarray([[True, True, False, True], [False] * 4])
    weight = jnp.asarray(RNG.normal(size=(2, 4)), jnp.float32)
    gradient = jax.grad(lambda s: (ops.masked_softmax(s, allowed) * weight).sum())(scores)
    p = jax.nn.softmax(scores[0][np.array([0, 1, 3])])
    w = weight[0][np.array([0, 1, 3])]
    np.testing.assert_allclose(gradient[0][np.array([0, 1, 3])], p * (w - (p * w).sum()), atol=1e-6)
    assert not gradient[1].any() and gradient[0, 2] == 0


def kept(seed, ids, lanes, rate=0.3):
    """bool (ids, lanes): which elements one site keeps."""
    words = jax.random.bits(jax.random.key(seed), (2,), jnp.uint32)
    salt = ops.token_salt(words, jnp.asarray(ids))[:, None]
    x = jnp.ones((len(ids), lanes))
    out = np.asarray(ops.dropout(x, rate, salt, jnp.arange(lanes)))
    return out > 0, out


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_scales_what_it_keeps(rate):
    mask, out = kept(0, np.arange(512), 384, rate)
    keep, n = 1 - rate, mask.size
    # Four standard deviations of a binomial: a correct mask fails one seed in 16,000.
    assert abs(mask.mean() - keep) < 4 * np.sqrt(keep * rate / n)
    np.testing.assert_allclose(out[mask], 1 / keep, rtol=1e-6)
    rows, columns = mask.mean(axis=1), mask.mean(axis=0)
    for means, count in ((rows, 384), (columns, 512)):
        spread = means.std() / np.sqrt(keep * rate / count)
        assert 0.85 < spread < 1.15, "tokens or lanes are not drawn independently"


def test_a_rate_of_zero_keeps_all():
    mask, out = kept(0, np.arange(64), 64, 0.0)
    assert mask.all() and (out == 1).all()


def test_dropout_in_half_a_chance_has_no_structure():
    """Correlations of the mask over lanes, tokens, sites and seeds, each within four standard
    deviations of none. Lags of powers of two are where a weak hash shows."""
    sites = [kept(seed, np.arange(1024), 256, 0.5)[0] * 2.0 - 1 for seed in range(4)]
    limit = 4.5 / np.sqrt(sites[0].size // 2)
    for a in sites:
        for lag in (1, 2, 3, 4, 8, 16, 32, 64, 128):
            assert abs((a[:, lag:] * a[:, :-lag]).mean()) < limit, f"lanes {lag} apart"
            assert abs((a[lag:] * a[:-lag]).mean()) < limit, f"tokens {lag} apart"
            assert abs((a[lag:, lag:] * a[:-lag, :-lag]).mean()) < limit, f"diagonal {lag}"
    for i, a in enumerate(sites):
        for b in sites[i + 1 :]:
            assert abs((a * b).mean()) < limit, "sites share their masks"


def test_tokens_far_apart_and_heads_differ():
    """Ids as attention makes them, segment * positions * heads: large strides, one lane each."""
    ids = np.arange(40_000, dtype=np.int64) * 512 * 12
    a = kept(1, ids.astype(np.int32), 4, 0.5)[0] * 2.0 - 1
    assert abs(a.mean()) < 4 / np.sqrt(a.size)
    for lag in (1, 2, 4, 1024):
        assert abs((a[lag:] * a[:-lag]).mean()) < 4.5 / np.sqrt(a.size)
    assert len(np.unique(ops.token_salt(jnp.array([1, 2], jnp.uint32), jnp.asarray(ids)))) == 40_000


def test_the_mask_depends_on_the_token_not_on_its_place():
    ids = RNG.permutation(200)
    shuffled, _ = kept(5, ids, 32)
    ordered, _ = kept(5, np.arange(200), 32)
    np.testing.assert_array_equal(shuffled, ordered[ids])


def test_the_gradient_passes_where_the_mask_kept():
    words = jax.random.bits(jax.random.key(0), (2,), jnp.uint32)
    salt = ops.token_salt(words, jnp.arange(16))[:, None]
    x = jnp.asarray(RNG.normal(size=(16, 8)), jnp.float32)

    def f(x):
        return ops.dropout(x, 0.4, salt, jnp.arange(8))

    out, back = jax.vjp(f, x)
    np.testing.assert_allclose(back(jnp.ones_like(x))[0], np.asarray(out != 0) / 0.6, rtol=1e-6)


def test_a_traced_rate_gives_the_same_mask():
    x, salt = jnp.ones((64, 64)), ops.token_salt(jnp.array([1, 2], jnp.uint32), jnp.arange(64))
    drop = jax.jit(lambda rate: ops.dropout(x, rate, salt[:, None], jnp.arange(64)))
    np.testing.assert_array_equal(drop(0.25), ops.dropout(x, 0.25, salt[:, None], jnp.arange(64)))


def test_scaled_parameters_move_further_but_have_gradients_of_their_own_size():
    raw = jnp.asarray(RNG.normal(size=7), jnp.float32)
    value, back = jax.vjp(lambda r: ops.scaled(r, 100.0), raw)
    np.testing.assert_allclose(value, 100 * raw, rtol=1e-6)
    np.testing.assert_array_equal(back(jnp.ones(7))[0], np.ones(7))
