"""The mixing method: coordinate descent for min ⟨SSᵀ, VVᵀ⟩ over unit vectors vᵢ.

With Q = SSᵀ without its diagonal, one coordinate is minimised exactly by

    gᵢ = Σⱼ Qᵢⱼ vⱼ,   vᵢ ← −gᵢ/‖gᵢ‖,

and a sweep does this for every free i in turn, each with the latest of the others (Wang, Chang and
Kolter 2017, arXiv 1706.00476). Here V is (n, batch, k), so that one product Q[block]·V gives the
gᵢ of a block for all samples at once; what has changed inside of the block since then is added
coordinate by coordinate. The values are those of the plain sweep up to rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._closure import vary_with
from .._measure import power_of_two
from .._solution import Stats, Status

# Coordinates a product: the corrections inside of a block grow with it, 16 to 32 were fastest.
BLOCK = 16
EXACT = lax.Precision.HIGHEST  # GPUs and TPUs round operands of products otherwise


class Given(NamedTuple):
    """What V has where z is given: vᵢ = −cos(πzᵢ) v₀ + sin(πzᵢ) wᵢ, with v₀ = e₁ and wᵢ ⊥ v₀.

    Attributes:
        v: (n, batch, k) those vectors; random unit ones where nothing is given.
        w: (n, batch, k) the wᵢ, or (n, 1, k).
    """

    v: jax.Array
    w: jax.Array


class Minimum(NamedTuple):
    """v: (n, batch, k); stats: per sample."""

    v: jax.Array
    stats: Stats


def cos_pi(z: jax.Array) -> jax.Array:
    """cos(πz) on [0, 1], exact at 0, ½ and 1."""
    return jnp.sin(jnp.pi * (0.5 - z))


def sin_pi(z: jax.Array) -> jax.Array:
    """sin(πz) on [0, 1], exact at 0, ½ and 1."""
    return jnp.sin(jnp.pi * jnp.where(z > 0.5, 1 - z, z))


def start(keys: jax.Array, z: jax.Array, given: jax.Array, rows: int, k: int) -> Given:
    """Where the sweeps begin.

    Args:
        keys: of the random directions, (1,) for the same in every sample, or (batch,).
        z: (batch, n) finite.
        given: bool (batch, n).
        rows: of S: the truth vector, n inputs, the auxiliary ones.
        k: dimension of the vectors.
    """
    # Drawn in float32: a key then means the same problem in every precision.
    draw = jax.vmap(lambda key: jax.random.normal(key, (rows, k), jnp.float32), out_axes=1)
    directions = draw(keys).astype(z.dtype)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    truth = jnp.eye(1, k, dtype=z.dtype)[0]
    batch, n = z.shape
    w = unit(directions.at[..., 0].set(0))[1 : n + 1]
    z, given = z.T[..., None], given.T[..., None]
    fixed = sin_pi(z) * w - cos_pi(z) * truth
    v = jnp.broadcast_to(unit(directions).at[0].set(truth), (rows, batch, k))
    return Given(v.at[1 : n + 1].set(jnp.where(given, fixed, v[1 : n + 1])), w)


def is_free(given: jax.Array, rows: int) -> jax.Array:
    """Which coordinates move: bool (rows, batch), for given (batch, n)."""
    truth_and_aux = jnp.ones((rows, given.shape[0]), bool).at[0].set(False)
    return truth_and_aux.at[1 : given.shape[1] + 1].set(~given.T)


def unit(S: jax.Array) -> jax.Array:
    """A power of two near the largest entry of S: V does not depend on the size of S, and products
    of very large or very small ones would overflow."""
    size = jnp.max(jnp.abs(S), initial=0)
    return power_of_two(size, least=4 * float(jnp.finfo(S.dtype).tiny))


def gram(S: jax.Array) -> jax.Array:
    """SSᵀ without its diagonal, which adds a constant to the objective."""
    q = jnp.matmul(S, S.T, precision=EXACT)
    return jnp.where(jnp.eye(len(q), dtype=bool), 0, q)


def product(Q: jax.Array, v: jax.Array) -> jax.Array:
    """Σⱼ Qᵢⱼ vⱼ for v (n, batch, k)."""
    return lax.dot_general(Q, v, (((1,), (0,)), ((), ())), precision=EXACT)


def sweep(
    Q: jax.Array, v: jax.Array, moves: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One pass over all coordinates.

    Args:
        Q: (n, n), symmetric with a zero diagonal, n a multiple of `BLOCK`.
        v: (n, batch, k).
        moves: bool (n, batch).

    Returns:
        The new v; the fall of ⟨Q, VVᵀ⟩, which is Σ ‖gᵢ‖‖vᵢ⁺ − vᵢ‖² per sample, and Σ ‖gᵢ‖.
    """

    def block(carry, first):
        v, *sums = carry
        rows, old, move = (lax.dynamic_slice_in_dim(x, first, BLOCK) for x in (Q, v, moves))
        g = product(rows, v)
        within = lax.dynamic_slice_in_dim(rows, first, BLOCK, axis=1)

        def coordinate(i, carry):
            step, fall, size = carry
            g_i = g[i] + product(within[i][None], step)[0]
            norm = jnp.linalg.norm(g_i, axis=-1)
            # Without a force there is no better place: vᵢ stays.
            move_i = move[i] & (norm > 0)
            new = -g_i / jnp.where(norm > 0, norm, 1)[:, None]
            d = jnp.where(move_i[:, None], new - old[i], 0)
            fall += norm * jnp.sum(d * d, axis=-1)
            size += jnp.where(move_i, norm, 0)
            return lax.dynamic_update_index_in_dim(step, d, i, 0), fall, size

        step, *sums = lax.fori_loop(0, BLOCK, coordinate, (jnp.zeros_like(old), *sums))
        return (lax.dynamic_update_slice_in_dim(v, old + step, first, 0), *sums), None

    none = jnp.zeros_like(v[0, :, 0])
    (v, *sums), _ = lax.scan(block, (v, none, none), jnp.arange(0, len(Q), BLOCK))
    return v, (sums[0], sums[1])


def minimise(
    S: jax.Array, v: jax.Array, free: jax.Array, sound: jax.Array, *, max_sweeps: int, rtol: float
) -> Minimum:
    """Sweeps until each sample has met its own test, or `max_sweeps` are done.

    The test is √(fall/Σ‖gᵢ‖) ≤ rtol: the size of the last steps ‖vᵢ⁺ − vᵢ‖, weighted by ‖gᵢ‖.

    Args:
        S: (n, m), as `in_units` gives it.
        v: (n, batch, k), the start.
        free: bool (n, batch).
        sound: bool (batch,), which samples are numbers; the others stay where they are.
        max_sweeps: static.
        rtol: static.
    """
    rows = len(v)
    more = -rows % BLOCK
    padded = lambda x: jnp.pad(x, ((0, more), *((0, 0),) * (x.ndim - 1)))
    Q, v, free = gram(padded(S)), padded(v), padded(free)

    def running(carry):
        t, _, _, active, _, _ = carry
        return (t < max_sweeps) & active.any()

    def body(carry):
        t, v, steps, active, fall, size = carry
        v, (new_fall, new_size) = sweep(Q, v, free & active)
        fall, size = jnp.where(active, new_fall, fall), jnp.where(active, new_size, size)
        steps = steps + active
        active &= ~(fall <= rtol**2 * size)
        return t + 1, v, steps, active, fall, size

    none = jnp.zeros_like(v[0, :, 0])
    count = jnp.zeros(sound.shape, jnp.int32)
    carry = vary_with((jnp.int32(0), v, count, sound, none + jnp.inf, none), (Q, v, free, sound))
    _, v, steps, active, fall, size = lax.while_loop(running, body, carry)
    status = jnp.where(active, int(Status.MAX_STEPS), int(Status.CONVERGED))
    status = jnp.where(sound, status, int(Status.NONFINITE)).astype(jnp.int32)
    stats = Stats(
        status=status,
        converged=status == Status.CONVERGED,
        steps=steps,
        f_evals=steps,
        residual=jnp.sqrt(fall),
        rel_residual=jnp.sqrt(fall / jnp.where(size > 0, size, 1)),
    )
    return Minimum(v[:rows], stats)
