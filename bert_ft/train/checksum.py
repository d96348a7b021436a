"""Sums over parameters: a cheap one to notice a damaged file, and SHA-256 to compare two runs.

Both are functions of the values alone: the mesh, the sharding and the number of processes do not
enter, so a state saved on eight devices has the same sums when it is restored onto one.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

PyTree = Any


def flatten(tree: PyTree) -> dict[str, Any]:
    """The leaves of `tree` by path, in flattening order: `{"params.encoder.kernel": leaf}`.

    Raises ValueError where two leaves would have the same path (`{"a.b": ..., "a": {"b": ...}}`).
    """
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in pairs}
    if len(leaves) != len(pairs):
        raise ValueError("two leaves of the state have the same path; rename one of the keys")
    return leaves


def describe(leaf: Any) -> str:
    """dtype and shape of an array or a ShapeDtypeStruct, as `float32[384,2]`."""
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


@jax.jit
def _mixed_sum(x: jax.Array) -> jax.Array:
    """sum(mix(word_i ^ c * i)) mod 2**32. `mix` is one-to-one, so that any change within one word
    changes the sum; a change of several words passes one time in 2**32.
    """
    if x.dtype == jnp.bool_:
        words = x.astype(jnp.uint32)
    else:
        width = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
        words = lax.bitcast_convert_type(x, width).astype(jnp.uint32)
    # One iota a dimension, not a reshaped arange: it is made on the device that holds the shard.
    place, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        iota = lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place += iota * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    words ^= place * np.uint32(0x9E3779B9)
    # MurmurHash3's finalizer, fmix32 (Appleby, 2011).
    words = (words ^ (words >> 16)) * np.uint32(0x85EBCA6B)
    words = (words ^ (words >> 13)) * np.uint32(0xC2B2AE35)
    return jnp.sum(words ^ (words >> 16), dtype=jnp.uint32)


def checksums(tree: PyTree) -> dict[str, int]:
    """A 32-bit sum of each leaf of `tree` (jax.Arrays, of any sharding), by path.

    Computed where the leaf lies: devices exchange one word a leaf, and the host sees one word a
    leaf. It is a sum against accidents (a flipped bit, a lost block), not against an adversary.
    """
    # One small program per distinct shape rather than one for the whole tree: a BERT has a dozen
    # shapes and hundreds of leaves, and compiling hundreds of reductions takes longer than saving.
    sums = {}
    for path, x in flatten(tree).items():
        sums[path] = _mixed_sum(x)
        if len(x.sharding.device_set) > 1 and jax.default_backend() == "cpu":
            # XLA's CPU backend has a thread a device: sums whose reductions over devices are in
            # flight together can each hold some of the threads, and wait for the others for ever.
            sums[path].block_until_ready()
    return {path: int(x) for path, x in jax.device_get(sums).items()}


def params_sha256(params: PyTree) -> str:
    """SHA-256 (hex) over path, dtype, shape and little-endian bytes of every leaf, sorted by path.

    Every process of a run must call it, and all get the same: leaves that no single process holds
    are gathered, one at a time.
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(flatten(params).items()):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            value = multihost_utils.process_allgather(leaf, tiled=True)
        else:
            value = jax.device_get(leaf)
        value = np.asarray(value)
        if value.dtype.byteorder == ">":
            value = value.astype(value.dtype.newbyteorder("<"))
        digest.update(f"{path} {describe(value)}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
