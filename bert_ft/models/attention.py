"""How attention within segments is computed: one place chooses, by backend, length and dtype.

plain   products and a softmax as XLA compiles them, on any backend, of any shape, with dropout.
cudnn   cuDNN's fused attention on a GPU (`jax.nn.dot_product_attention`).
splash  JAX's Pallas kernel for TPUs (jax.experimental.pallas.ops.tpu.splash_attention).

The fused ones never write the probabilities, whose size is rows x heads x length^2, to memory.
Hence neither can drop by example and position, as `Noise` does and as packing needs to compute what
padding computes: the splash kernel has no dropout, and cuDNN's draws by place in memory. So a pass
with dropout on the probabilities is plain; `config.model.dropout_of_attention=False` goes without,
and so does what draws noise where config.model.dropout is 0 (heads.Model).

Shapes: R rows, N heads, Q queries, S keys, D a head's width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from bert_ft.errors import InputError
from bert_ft.models import ops

LANES = 128  # a splash block is a multiple, in queries and in keys
BLOCKS = (512, 256, 128)  # of queries and keys at a time; the largest that divides both
CUDNN_WIDTH = 128  # the widest head before Hopper, and a multiple of 8 (cuDNN's own conditions)
AMPERE = 8.0  # compute capability from which on cuDNN has it
# Below, a row's probabilities are small beside its hidden states, and one block is the whole row.
SPLASH_FROM = 512
_CONDITIONS = {
    "splash": f"rows of a multiple of {LANES} tokens",
    "cudnn": f"train.dtype=bfloat16, an even row length, heads of 8, 16, … {CUDNN_WIDTH} features",
}
_NEEDS = {"cudnn": "gpu", "splash": "tpu"}


@dataclasses.dataclass(frozen=True)
class Attend:
    """`kernel` where it can be used, from rows of `least` tokens on, else the plain form; `drops`:
    whether a pass with dropout drops probabilities. `interpret` runs splash on a CPU, for tests."""

    kernel: str = "plain"
    least: int = 0
    drops: bool = True
    interpret: bool = False


PLAIN = Attend()


def attend_on(wanted: str, drops: bool, device: jax.Device) -> Attend:
    """config.model.attention and its dropout_of_attention on a kind of device. Raises InputError
    for a kernel that the device can't run."""
    if wanted == "auto":  # cuDNN's has not run on a card here: it is for those who ask for it
        splash = device.platform == "tpu"
        return Attend("splash", SPLASH_FROM, drops) if splash else Attend("plain", 0, drops)
    needed = _NEEDS.get(wanted, device.platform)
    if device.platform != needed or not (wanted != "cudnn" or _is_ampere(device)):
        raise InputError(
            f"config.model.attention is {wanted!r}, but the device is {device.platform!r} "
            f"({device.device_kind}); accepted: 'auto' or 'plain'"
        )
    return Attend(wanted, 0, drops)


def _is_ampere(device: jax.Device) -> bool:
    """Or later; not a card of another maker, whose capability is no number."""
    try:
        return float(getattr(device, "compute_capability", "0")) >= AMPERE
    except ValueError:
        return False


def require_kernel(how: Attend, length: int, width: int, dtype: jnp.dtype) -> None:
    """Raises InputError where a kernel that was asked for by name would never be used: in rows of
    `length` tokens, heads of `width`."""
    if not how.least and chosen(how, length, length, width, dtype, False) != how.kernel:
        raise InputError(
            f"config.model.attention is {how.kernel!r}, with rows of {length} tokens, heads of "
            f"{width} features and {dtype.name}; accepted: {_CONDITIONS[how.kernel]}; or 'auto'"
        )


def chosen(
    how: Attend, queries: int, keys: int, width: int, dtype: jnp.dtype, dropping: bool
) -> str:
    """The form for these shapes: `how.kernel`, or 'plain' where it does not apply."""
    if dropping or keys < how.least:
        return "plain"
    if how.kernel == "splash":
        return "plain" if queries % LANES or keys % LANES else "splash"
    if how.kernel == "cudnn":
        half = dtype in (jnp.bfloat16, jnp.float16)
        even = queries % 2 == keys % 2 == 0
        fits = width % 8 == 0 and width <= CUDNN_WIDTH
        return "cudnn" if half and even and fits else "plain"
    return "plain"


def attend(
    how: Attend,
    q_RxNxQxD: jax.Array,
    k_RxNxSxD: jax.Array,
    v_RxNxSxD: jax.Array,
    ask_RxQ: jax.Array,
    segments_RxS: jax.Array,
    drop: Callable[[jax.Array], jax.Array] | None = None,
    seen: int = 0,
) -> jax.Array:
    """softmax(q k / sqrt(D)) v among the keys of a query's own segment (Vaswani et al. 2017, eq.
    1), (R, N, Q, D) in q's dtype, the softmax in float32. ask_RxQ: the queries' segments, 0 for
    padding, whose result is 0. `drop`: what is done to the probabilities. `seen`: so many keys, of
    a prefix, stand before those of segments_RxS and are seen from every segment."""
    width, dtype = q_RxNxQxD.shape[-1], q_RxNxQxD.dtype
    q_RxNxQxD = q_RxNxQxD * np.asarray(width**-0.5, dtype)
    drop = drop if how.drops else None
    form = chosen(how, q_RxNxQxD.shape[2], k_RxNxSxD.shape[2], width, dtype, drop is not None)
    if form == "plain" or seen:
        allowed_RxQxS = _allowed(ask_RxQ, segments_RxS)
        if seen:
            of_prefix = jnp.broadcast_to((ask_RxQ > 0)[..., None], (*ask_RxQ.shape, seen))
            allowed_RxQxS = jnp.concatenate([of_prefix, allowed_RxQxS], axis=2)
        return _plain(q_RxNxQxD, k_RxNxSxD, v_RxNxSxD, allowed_RxQxS, drop)

    def fused(q, k, v, ask, segments):
        if form == "splash":
            out = _splash(q, k, v, ask, segments, how.interpret)
        else:
            out = _cudnn(q, k, v, ask, segments, "cudnn")
        return jnp.where((ask > 0)[:, None, :, None], out, jnp.zeros((), out.dtype))

    return _by_device(fused, *q_RxNxQxD.shape[:2])(
        q_RxNxQxD, k_RxNxSxD, v_RxNxSxD, ask_RxQ, segments_RxS
    )


def _plain(q, k, v, allowed_RxQxS, drop):
    scores_RxNxQxS = jnp.einsum("rnqd,rnkd->rnqk", q, k)
    p_RxNxQxS = ops.masked_softmax(scores_RxNxQxS, allowed_RxQxS[:, None]).astype(q.dtype)
    if drop is not None:
        p_RxNxQxS = drop(p_RxNxQxS)
    return jnp.einsum("rnqk,rnkd->rnqd", p_RxNxQxS, v)


def _allowed(ask_RxQ: jax.Array, segments_RxS: jax.Array) -> jax.Array:
    return (ask_RxQ[:, :, None] == segments_RxS[:, None, :]) & (segments_RxS > 0)[:, None, :]


def _cudnn(q, k, v, ask, segments, implementation):
    """Its mask is a bias of the rows' own, one for all heads."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    mask_Rx1xQxS = _allowed(ask, segments)[:, None]
    out = jax.nn.dot_product_attention(
        q, k, v, mask=mask_Rx1xQxS, scale=1.0, implementation=implementation
    )
    return out.transpose(0, 2, 1, 3)


def _splash(q, k, v, ask, segments, interpret):
    """Padding is a segment to the kernel: its tokens see each other, and nobody sees them."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    heads, queries, keys = q.shape[1], q.shape[2], k.shape[2]
    block = next(b for b in BLOCKS if queries % b == keys % b == 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": block for name in names}
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([splash.FullMask((queries, keys))] * heads),
        block_sizes=splash.BlockSizes(**sizes),
        interpret=interpret,
    )

    def row(q, k, v, ask, segments):
        return kernel(q, k, v, segment_ids=splash.SegmentIds(q=ask, kv=segments))

    return jax.vmap(row)(q, k, v, ask, segments)


def _by_device(f: Callable, rows: int, heads: int) -> Callable:
    """f on each device's own rows and heads: XLA can't look into a kernel, nor split it."""
    shape = jax.sharding.get_abstract_mesh().shape
    over_rows = tuple(axis for axis in ops.ROW_AXES if shape.get(axis, 1) > 1)
    if rows % math.prod(shape[axis] for axis in over_rows):
        over_rows = ()
    tensor = shape.get("tensor", 1)
    over_heads = "tensor" if tensor > 1 and heads % tensor == 0 else None
    if not over_rows and over_heads is None:
        return f
    four, two = P(over_rows, over_heads), P(over_rows)
    return jax.shard_map(f, in_specs=(four, four, four, two, two), out_specs=four, check_vma=False)
