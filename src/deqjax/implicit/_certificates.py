"""Proofs that a program has no solution, checked on the directions in which a solve runs away.

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

from ._optimality import Method
from ._quadratic import Point, largest

RADIUS = {"float32": 1e4, "float64": 1e7}


def infeasible(method: Method, x: Point) -> jax.Array:
    """Whether the multipliers of x are such a proof, bool (batch,)."""
    layout, program, ends = method.layout, method.program, method.ends
    lam = jnp.where(ends, jnp.maximum(x.lam, 0), 0)
    size = jnp.maximum(largest(x.nu), largest(lam))
    scale = 1 / jnp.where(size > 0, size, 1)
    lam, nu = lam * scale, x.nu * scale
    zero = jnp.zeros_like(lam)
    g = method.apply(zero, ends, Point(jnp.zeros_like(x.z), nu, lam)).z
    terms = jnp.concatenate(
        [program.e[:, : layout.p] * nu, jnp.where(ends, program.d(layout), 0) * lam], axis=1
    )
    t = terms.sum(axis=1)
    rounding = 1e3 * float(jnp.finfo(t.dtype).eps) * jnp.abs(terms).sum(axis=1)
    far = -t >= RADIUS[t.dtype.name] * jnp.abs(g).sum(axis=1)
    return far & (-t > rounding) & jnp.isfinite(size)[:, 0]


def unbounded(method: Method, x: Point) -> jax.Array:
    """Whether z of x is such a ray, bool (batch,)."""
    size = largest(x.z)
    v = x.z / jnp.where(size > 0, size, 1)
    fall = -jnp.sum(method.program.q * v, axis=1)
    zero = jnp.zeros_like(x.lam)
    image = method.apply(zero, method.ends, Point(v, jnp.zeros_like(x.nu), zero))
    off = jnp.concatenate(
        [largest(image.z), largest(image.nu), largest(jnp.maximum(image.lam, 0))], axis=1
    ).max(axis=1)
    return (fall >= RADIUS[v.dtype.name] * off) & (fall > 0) & jnp.isfinite(size)[:, 0]
