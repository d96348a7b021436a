"""The few array operations whose textbook form is slow on some backend, each with its reason.

Shapes are named in suffixes: R rows, S tokens a row, H hidden, D a head's width, N heads.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

ROW_AXES = ("data", "fsdp")  # of the mesh: a batch's rows are split over both


def by_rows(x: jax.Array, axes: tuple[str, ...] = ROW_AXES) -> jax.Array:
    """x (R, ...) itself, said to be split by rows over the devices that a batch's rows are split
    over; how another mesh axis splits it is left to XLA. Without a word, XLA may split hidden
    states as it finds a parameter split (fsdp), and every layer then gathers them from all
    devices. Says nothing where no mesh is set, or one that does not divide the rows."""
    shape = jax.sharding.get_abstract_mesh().shape
    shards = math.prod(shape.get(axis, 1) for axis in axes)
    if shards == 1 or x.shape[0] % shards:
        return x
    return lax.with_sharding_constraint(x, P(axes, *(P.UNCONSTRAINED,) * (x.ndim - 1)))


@jax.custom_vjp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w` for x of shape (..., I) and w of shape (I, O), with the weight gradient as one
    2-D product. XLA's CPU backend lays the gradient that JAX writes out badly inside a fused
    backward pass (experiments/speed/weight_gradient.py measures both)."""
    return jnp.dot(x, w)


def _matmul_forward(x: jax.Array, w: jax.Array):
    return jnp.dot(x, w), (x, w)


def _matmul_backward(saved, g):
    x, w = saved
    dx = lax.dot_general(g, w, (((g.ndim - 1,), (1,)), ((), ())))
    x2d, g2d = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    return dx, lax.dot_general(x2d, g2d, (((0,), (0,)), ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x) with the exact normal distribution function (Hendrycks & Gimpel 2016, eq. 1)."""
    return x * (0.5 + 0.5 * lax.erf(x * np.asarray(np.sqrt(0.5), x.dtype)))


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Layer normalisation over the last axis (Ba et al. 2016) in float32, returned in x's dtype."""
    dtype, x = x.dtype, x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    return (centred * lax.rsqrt(variance + eps) * scale + bias).astype(dtype)


def _mix(x: jax.Array) -> jax.Array:
    """A 32-bit integer hash: xor-shift-multiply with the constants of C. Wellons' lowbias32."""
    x = x ^ (x >> 16)
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def token_salt(words: jax.Array, ids: jax.Array) -> jax.Array:
    """A 32-bit salt for each id under a site's key words. words uint32 (2,), ids int any shape."""
    return _mix(_mix(ids.astype(jnp.uint32) ^ words[0]) + words[1])


def other_words(words: jax.Array, which: int) -> jax.Array:
    """Key words uint32 (2,) of another use of a site, `which` of them, a function of the site's."""
    return _mix(words ^ np.uint32(0x5BD1E995 + which))


def uniform(salt: jax.Array, lanes: jax.Array) -> jax.Array:
    """float32 within [0, 1), a function of (salt, lane) as a dropout mask is: uint32 and int32 that
    broadcast together."""
    return (_drawn(salt, lanes) >> 8).astype(jnp.float32) * np.float32(2**-24)


def _drawn(salt: jax.Array, lanes: jax.Array) -> jax.Array:
    return _mix(salt ^ (lanes.astype(jnp.uint32) * np.uint32(0x9E3779B9)))


def dropout(x: jax.Array, rate: jax.Array | float, salt: jax.Array, lanes: jax.Array) -> jax.Array:
    """Inverted dropout whose mask is a function of (salt, lane), not of where x lies in memory.

    salt: uint32, broadcastable to x, from the site's key and the *example and position*;
    lanes: int32, broadcastable to x, numbering the elements under one salt. So an example has the
    same mask packed or padded, on one device or on eight, and nothing is drawn by a serial
    generator: ten integer operations an element, fused into the multiply, and recomputed in the
    backward pass instead of stored.
    """
    bits = _drawn(salt, lanes)
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    # The top 24 bits compare exactly in float32, so the rate may be traced (a trial's own).
    kept = (bits >> 8).astype(jnp.float32) < keep * np.float32(2**24)
    return jnp.where(kept, x * (1.0 / keep).astype(x.dtype), jnp.zeros((), x.dtype))


def masked_softmax(scores: jax.Array, allowed: jax.Array) -> jax.Array:
    """Softmax over the last axis in float32 among allowed places; a row with none gives zeros."""
    scores = jnp.where(allowed, scores.astype(jnp.float32), -jnp.inf)
    top = lax.stop_gradient(jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), -1e30))
    e = jnp.exp(scores - top)
    return e / jnp.maximum(jnp.sum(e, axis=-1, keepdims=True), 1e-30)


def scaled(raw: jax.Array, rate: float) -> jax.Array:
    """raw * rate with the gradient of raw: what Adam moves by the learning rate moves `rate` times
    as far, and a clip of the global norm sees the gradient in its own size."""
    return raw + jax.lax.stop_gradient(raw * (rate - 1))
