"""Proofs that a program has no solution, checked on vectors that a solve which ran away left.

Infeasible (Farkas): y = (ν, λ ≥ 0) with g = Aᵀν + Cᵀλ and t = bᵀν + dᵀλ < 0. Each feasible z has
gᵀz ≤ t, so that ‖z‖∞ ≥ |t|/‖g‖₁: there is none within that radius, and with g = 0 none at all.

Unbounded: a ray v with qᵀv < 0 and Qv = 0, Av = 0, Cv ≤ 0, along which the objective falls without
end while constraints hold.

With rounding, g and the like are not zero. What counts is a radius, in units in which a solution
would be of size 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ._active_set import apply
from ._interior_point import Method
from ._products import cholesky, lower_solve, plus_diagonal, products, times
from ._quadratic import Point, largest

RADIUS = {"float32": 1e4, "float64": 1e7}


def infeasible(method: Method, x: Point) -> jax.Array:
    """Whether the multipliers of x are such a proof, bool (batch,), or those near them are.

    Multipliers that run away have g ≈ 0 beside their size, and stop growing when rounding says so.
    """
    return _proves(method, x) | _proves(method, _nearest_ray(method, x))


def _nearest_ray(method: Method, x: Point) -> Point:
    """y less its part that makes g: y − C (CᵀC)⁻¹ g, over the rows that have a multiplier."""
    layout, program, ends = method.layout, method.program, method.ends
    size = jnp.maximum(largest(x.nu), largest(jnp.where(ends, x.lam, 0)))
    scale = 1 / jnp.where(size > 0, size, 1)
    nu, lam = x.nu * scale, jnp.where(ends, jnp.maximum(x.lam, 0), 0) * scale
    on = ends & (lam > 1e-3)
    lam = jnp.where(on, lam, 0)
    zero = jnp.zeros_like(lam)
    kept = jnp.concatenate([jnp.ones_like(nu), on[:, : layout.m].astype(nu.dtype)], axis=1)
    C = jnp.swapaxes(program.M * kept[:, :, None], 1, 2)
    _, low, high = layout.split(on.astype(nu.dtype))
    box = sum((b for b in (low, high) if b is not None), jnp.zeros_like(x.z))
    N = plus_diagonal(products(C, C), box)
    ridge = 1e2 * float(jnp.finfo(N.dtype).eps) * jnp.max(jnp.abs(N), axis=(1, 2))
    L = cholesky(plus_diagonal(N, jnp.broadcast_to(ridge[:, None], x.z.shape)))
    for _ in range(2):
        g = apply(method, zero, on, Point(jnp.zeros_like(x.z), nu, lam)).z
        v = lower_solve(L, lower_solve(L, g), transpose=True)
        rows = times(program.M, v)
        nu = nu - rows[:, : layout.p]
        lam = jnp.where(on, lam - layout.join(rows[:, layout.p :], -v, v), 0)
    return Point(x.z, nu, lam)


def _proves(method: Method, x: Point) -> jax.Array:
    """Whether the multipliers of x are a proof as they are."""
    layout, program, ends = method.layout, method.program, method.ends
    lam = jnp.where(ends, jnp.maximum(x.lam, 0), 0)
    size = jnp.maximum(largest(x.nu), largest(lam))
    scale = 1 / jnp.where(size > 0, size, 1)
    lam, nu = lam * scale, x.nu * scale
    zero = jnp.zeros_like(lam)
    g = apply(method, zero, ends, Point(jnp.zeros_like(x.z), nu, lam)).z
    terms = jnp.concatenate(
        [program.e[:, : layout.p] * nu, jnp.where(ends, program.d(layout), 0) * lam], axis=1
    )
    t = terms.sum(axis=1)
    rounding = 1e3 * float(jnp.finfo(t.dtype).eps) * jnp.abs(terms).sum(axis=1)
    far = -t >= RADIUS[t.dtype.name] * jnp.abs(g).sum(axis=1)
    return far & (-t > rounding) & jnp.isfinite(size)[:, 0]


def unbounded(method: Method, x: Point) -> jax.Array:
    """Whether z of x, which has run away, is such a ray, bool (batch,)."""
    size = largest(x.z)
    v = x.z / jnp.where(size > 0, size, 1)
    fall = -jnp.sum(method.program.q * v, axis=1)
    zero = jnp.zeros_like(x.lam)
    image = apply(method, zero, method.ends, Point(v, jnp.zeros_like(x.nu), zero))
    off = jnp.concatenate(
        [largest(image.z), largest(image.nu), largest(jnp.maximum(image.lam, 0))], axis=1
    ).max(axis=1)
    return (fall >= RADIUS[v.dtype.name] * off) & (fall > 0) & jnp.isfinite(size)[:, 0]
