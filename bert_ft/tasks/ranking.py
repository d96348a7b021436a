"""Every query against every candidate, in blocks: no N x M array ever exists.

Queries are split over a process's devices, each of which holds all candidates; so nothing is sent
while they are ranked, and every process of a run finds the same."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

TIE = 1e-6  # scores this close are one score: some ten times the rounding of a float32 cosine
QUERIES, CANDIDATES = 512, 4096  # of a device's block; its scores then take 8 MB


@functools.cache
def _rank_program(k: int, mesh: Mesh) -> Callable:
    """`_rank_block` with each device's own queries."""
    queries, pairs = P("queries"), P(None, "queries")
    return jax.jit(
        jax.shard_map(
            functools.partial(_rank_block, k=k),
            mesh=mesh,
            in_specs=(queries, P(), P(), pairs, queries),
            out_specs=(queries, queries, pairs, pairs),
            check_vma=False,
        )
    )


def _rank_block(
    queries_QxH: jax.Array,
    candidates_NxCxH: jax.Array,
    count: jax.Array,
    right_RxQ: jax.Array,
    barred_Q: jax.Array,
    k: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(best scores (Q, k), their candidates (Q, k), wrong ones ahead of each right one (R, Q), the
    right one's score (R, Q))."""
    block, width = candidates_NxCxH.shape[1:]
    table = candidates_NxCxH.reshape(-1, width)
    own_RxQ = jax.lax.map(
        lambda right_Q: jnp.sum(queries_QxH * table[jnp.maximum(right_Q, 0)], axis=1), right_RxQ
    )
    line = jnp.arange(len(queries_QxH))

    def one(sofar: tuple, part: tuple) -> tuple[tuple, None]:
        (best_QxK, which_QxK, ahead_RxQ), (candidates_CxH, start) = sofar, part
        # At full precision: a TPU would take bfloat16 products otherwise.
        scores_QxC = jnp.matmul(queries_QxH, candidates_CxH.T, precision="highest")
        column = start + jnp.arange(block)
        open_QxC = (column < count) & (column != barred_Q[:, None])
        scores_QxC = jnp.where(open_QxC, scores_QxC, -jnp.inf)
        at = jnp.where(right_RxQ >= start, right_RxQ - start, block)
        is_right = jnp.zeros(scores_QxC.shape, bool).at[line, at].set(True, mode="drop")
        wrong_QxC = jnp.where(is_right, -jnp.inf, scores_QxC)
        ahead_RxQ += jax.lax.map(
            lambda own_Q: jnp.sum(wrong_QxC >= own_Q[:, None] - TIE, axis=1, dtype=jnp.int32),
            own_RxQ,
        )
        # The earlier candidate stays before a later one of the same score.
        both = jnp.concatenate([best_QxK, scores_QxC], axis=1)
        columns = jnp.broadcast_to(column, scores_QxC.shape)
        best_QxK, place = jax.lax.top_k(both, k)
        both_which = jnp.concatenate([which_QxK, columns], axis=1)
        which_QxK = jnp.take_along_axis(both_which, place, axis=1)
        return (best_QxK, which_QxK, ahead_RxQ), None

    rows = len(queries_QxH)
    nothing = (
        jnp.full((rows, k), -jnp.inf),
        jnp.full((rows, k), -1, jnp.int32),
        jnp.zeros(right_RxQ.shape, jnp.int32),
    )
    starts = jnp.arange(len(candidates_NxCxH), dtype=jnp.int32) * block
    done, _ = jax.lax.scan(one, nothing, (candidates_NxCxH, starts))
    return (*done, own_RxQ)


def rank(
    queries: np.ndarray,
    candidates: np.ndarray,
    right: tuple[np.ndarray, np.ndarray],
    barred: np.ndarray,
    k: int,
    blocks: tuple[int, int] = (QUERIES, CANDIDATES),
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(scores (N, k), candidates (N, k), ahead (P,), own (P,)) by the inner product of unit
    vectors.

    queries float32 (N, H), candidates float32 (M, H). right: (query, candidate), int (P,) each,
    distinct pairs in the order of their queries. barred int (N,): a candidate that is none for
    this query, -1 for none; never a right one.
    The k best (at most M) in falling order, the earlier of two equal ones first; candidate -1 and
    score -inf behind the last. ahead: the wrong candidates whose score is that of the right one or
    higher, to within TIE. own: the right one's score.
    """
    count, width = candidates.shape
    k, block = min(k, count), min(blocks[1], count)
    padded = np.zeros((-(-count // block) * block, width), np.float32)
    padded[:count] = candidates
    mesh = Mesh(np.asarray(jax.local_devices()), ("queries",))
    program = _rank_program(k, mesh)
    table = jax.device_put(padded.reshape(-1, block, width), NamedSharding(mesh, P()))
    owner, wanted = right
    best, which = [], []
    ahead, own = np.zeros(len(owner), np.int64), np.zeros(len(owner), np.float32)
    step = min(blocks[0], -(-len(queries) // mesh.size)) * mesh.size
    for start in range(0, len(queries), step):
        here = queries[start : start + step]
        pairs = slice(*np.searchsorted(owner, [start, start + len(here)]))
        row = owner[pairs] - start
        # The place of a pair among those of its query; a power of two of them, so that few
        # programs are compiled.
        place = np.arange(len(row)) - np.searchsorted(row, row)
        most = 1 << max(int(place.max(initial=0)), 0).bit_length()
        right_RxQ = np.full((most, step), -1, np.int32)
        right_RxQ[place, row] = wanted[pairs]
        queries_QxH = np.zeros((step, width), np.float32)
        queries_QxH[: len(here)] = here
        barred_Q = np.full(step, -1, np.int32)
        barred_Q[: len(here)] = barred[start : start + len(here)]
        found = program(queries_QxH, table, np.int32(count), right_RxQ, barred_Q)
        scores, columns, before, score = map(np.asarray, jax.device_get(found))
        best.append(scores[: len(here)])
        which.append(np.where(np.isfinite(scores), columns, -1)[: len(here)])
        ahead[pairs], own[pairs] = before[place, row], score[place, row]
    return np.concatenate(best), np.concatenate(which), ahead, own
