"""Linear systems as small as a solver's memory, one per sample: never worth a LAPACK call.

A quasi-Newton solver keeps its system as one array, [K | b | ‖s‖²] of shape (batch, m, m + 2): row
i is that of pair i, b the right-hand side and ‖s‖² the squared length of the pair. A step then
updates it in one kernel. Kernels so small take no time by themselves, but on every platform each
costs a start, and time to compile.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

UNROLL = 16


def replace_pair(
    system: jax.Array,
    slot: jax.Array,
    kept: jax.Array,
    row: jax.Array,
    column: jax.Array,
    b: jax.Array,
    square: jax.Array,
) -> jax.Array:
    """The system with another pair in `slot`.

    Args:
        system: [K | b | ‖s‖²], (batch, m, m + 2).
        slot: int32.
        kept: (batch,), where the pair is kept; elsewhere the system stays as it is.
        row: (batch, m), the new row of K.
        column: (batch, m), the new column of K; the entry where they meet is the column's.
        b: (batch, m), the whole right-hand side.
        square: (batch,), ‖s‖² of the new pair.
    """
    rows, columns = (lax.iota(jnp.int32, n) for n in system.shape[1:])
    row = jnp.concatenate([row, row[:, :1], square[:, None]], axis=-1)
    new = jnp.where((rows == slot)[:, None], row[:, None, :], system)
    new = jnp.where(columns == slot, column[:, :, None], new)
    new = jnp.where(columns == columns.size - 2, b[:, :, None], new)
    return jnp.where(kept[:, None, None], new, system)


def with_column(slot, column: jax.Array, a: jax.Array) -> jax.Array:
    """a, (batch, ..., m), with entry or column `slot` replaced by (batch, ...)."""
    # A mask and not an update slice: it fuses with whatever else is done to a small array.
    return jnp.where(lax.iota(jnp.int32, a.shape[-1]) == slot, column[..., None], a)


def joined(kernel: jax.Array, b: jax.Array, squares: jax.Array) -> jax.Array:
    """[K | b | ‖s‖²]."""
    return jnp.concatenate([kernel, b[..., None], squares[..., None]], axis=-1)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 4))
def solve_small(
    system: jax.Array,
    drop: float,
    ridge: float = 0.0,
    first: jax.Array | None = None,
    noise: float = 0.0,
) -> jax.Array:
    """(K + ridge·D²)⁻¹b with D = diag(‖s‖), (batch, m).

    By Gauss–Jordan elimination in a given order, dropping dead pivots.

    A pivot of magnitude at most drop·‖s‖² marks a direction that the earlier ones already explain:
    its unknown is set to zero, which is what skipping the pair would have done. The order of the
    pairs (oldest first) is part of the algorithm, so there is no row exchange. Plain array
    operations: it vectorises over the batch, shards with it, and needs no library call on any
    platform.

    Args:
        system: [K | b | ‖s‖²], (batch, m, m + 2).
        drop: pivots at or below this, relative to ‖s‖², are dropped.
        ridge: what is added to the diagonal, relative to ‖s‖² too.
        first: the pivot to start from, None being the first; the others follow in turn, past the
            end to the beginning.
        noise: a derivative also drops pivots at or below this: they are rounding of K for the most
            part, and what is divided by them is rounding too.
    """
    del noise
    return _eliminated(system, system[..., -1], drop, ridge, first)[..., -2]


@solve_small.defjvp
def _solve_small_jvp(drop, ridge, noise, primals, tangents):
    """γ̇ = (K + ridge·D²)⁻¹ (ḃ − K̇γ − ridge·(D²)˙γ), the dropped unknowns held at zero.

    Not by differentiating the elimination, whose 1/pivot² overflows long before 1/pivot does.
    """
    (system, first), (system_dot, _) = primals, tangents
    gamma = solve_small(system, drop, ridge, first, noise)
    k_dot, b_dot, squares_dot = system_dot[..., :-2], system_dot[..., -2], system_dot[..., -1]
    change = b_dot - ridge * squares_dot * gamma
    change -= jnp.einsum("bij,bj->bi", k_dot, gamma, precision="highest")
    inverse = _inverse(system, max(drop, noise), ridge, first)
    return gamma, jnp.einsum("bij,bj->bi", inverse, change, precision="highest")


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _inverse(system, drop, ridge, first):
    """(K + ridge·D²)⁻¹ with zeros for dropped unknowns, (batch, m, m)."""
    m, squares = system.shape[1], system[..., -1]
    identity = jnp.eye(m, dtype=system.dtype) + jnp.zeros_like(system[..., :m])
    both = jnp.concatenate([system[..., :m], identity], axis=-1)
    return _eliminated(both, squares, drop, ridge, first)[..., m:]


@_inverse.defjvp
def _inverse_jvp(drop, ridge, primals, tangents):
    (system, first), (system_dot, _) = primals, tangents
    x, m = _inverse(system, drop, ridge, first), system.shape[1]
    k_dot = system_dot[..., :m] + ridge * jnp.eye(m) * system_dot[..., -1:]
    return x, -jnp.einsum("bij,bjk,bkl->bil", x, k_dot, x, precision="highest")


def _eliminated(a: jax.Array, squares: jax.Array, drop, ridge, first) -> jax.Array:
    """The rows of a = [K | …], (batch, m, ≥ m), after K has become the identity."""
    m = a.shape[1]
    rows = lax.iota(jnp.int32, m)
    # In the units of a solve, 1e-24 of the first residual in float32. Its inverse, and what a
    # derivative multiplies that by, are finite.
    tiny = float(jnp.finfo(a.dtype).tiny) ** 0.8

    # The last column, which need not take part, does: to cut it off would be a kernel more.
    def eliminate(turn, ab):
        k = turn if first is None else (first + turn) % m
        row, column, square = _at(ab, k, axis=1), _at(ab, k, axis=2), _at(squares, k, axis=1)
        # An entry of the diagonal is first read in its own turn: its ridge can wait until then.
        pivot = _at(row, k, axis=1) + ridge * square
        alive = jnp.abs(pivot) > jnp.maximum(drop * square, tiny)
        row *= jnp.where(alive, 1 / jnp.where(alive, pivot, 1), 0)[:, None]
        return jnp.where((rows == k)[:, None], row[:, None], ab - column[:, :, None] * row[:, None])

    # On a CPU a loop, which compiles in less time than m copies of its body and runs in less too.
    # Elsewhere copies: on a GPU the loop takes longer than all else that a step does (docs/design).
    loop = lambda ab: lax.fori_loop(0, m, eliminate, ab)
    copies = lambda ab: lax.fori_loop(0, m, eliminate, ab, unroll=min(m, UNROLL) or 1)
    return lax.platform_dependent(a, cpu=loop, default=copies)


def _at(a: jax.Array, index, axis: int) -> jax.Array:
    return lax.dynamic_index_in_dim(a, index, axis, keepdims=False)
