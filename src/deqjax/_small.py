"""Linear systems as small as a solver's memory, one per sample: never worth a LAPACK call."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

UNROLL = 16


def solve_small(
    a: jax.Array, b: jax.Array, drop: float, first: jax.Array | None = None
) -> jax.Array:
    """Solve A x = b by Gauss–Jordan elimination in a given order, dropping dead pivots.

    A pivot of magnitude at most `drop` marks a direction that the earlier ones already explain:
    its unknown is set to zero, which is what skipping the pair would have done. The systems come
    scaled to a diagonal of order one, and their order (oldest first) is part of the algorithm, so
    there is no row exchange. Plain array operations: it vectorises over the batch, shards with it,
    and needs no library call on any platform.

    Args:
        a: (batch, m, m).
        b: (batch, m).
        drop: pivots at or below this are dropped.
        first: the pivot to start from, None being the first; the others follow in turn, past the
            end to the beginning.

    Returns:
        x, (batch, m).
    """
    m = a.shape[-1]
    ab = jnp.concatenate([a, b[..., None]], axis=-1)
    index = lax.iota(jnp.int32, m)

    def eliminate(turn, ab):
        k = turn if first is None else (first + turn) % m
        row = lax.dynamic_index_in_dim(ab, k, axis=1, keepdims=False)
        column = lax.dynamic_index_in_dim(ab, k, axis=2, keepdims=False)
        pivot = lax.dynamic_index_in_dim(row, k, axis=1)
        alive = jnp.abs(pivot) > drop
        row = row * jnp.where(alive, 1.0 / jnp.where(alive, pivot, 1.0), 0.0)
        return jnp.where(
            (index == k)[:, None], row[:, None], ab - column[:, :, None] * row[:, None]
        )

    # On a CPU a loop, which compiles in less time than m copies of its body and runs in less too.
    # Elsewhere copies: on a GPU the loop takes longer than all else that a step does (docs/design).
    loop = lambda ab: lax.fori_loop(0, m, eliminate, ab)
    copies = lambda ab: lax.fori_loop(0, m, eliminate, ab, unroll=min(m, UNROLL) or 1)
    return lax.platform_dependent(ab, cpu=loop, default=copies)[..., -1]
