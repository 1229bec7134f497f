"""Whether plain iteration would keep a solution: the spectral radius of J at z*, sample by sample.

A root finder goes to equilibria that f itself would leave. Where f is iterated from a state near
z*, the distance is multiplied by J = ∂f/∂z a step; so z* is kept where the spectral radius of J is
below one. Products with J tell it, without a matrix: power iteration (von Mises and
Pollaczek-Geiringer 1929), which runs on every device and for a whole batch at once, where the
Arnoldi method of `diagnostics.spectral_radius` needs eigenvalues of a matrix that is not symmetric.

It is an estimate, and no proof. Of n unknowns a direction has about 1/√n of a start that is drawn,
and `count` products see it once its growth over that of the others, to the power `count`, is more
than √n: 16 products and a thousand unknowns tell growths apart that differ by a quarter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._closure import loop_carry
from ._state import norm, safe_norm, times, wide

PyTree = Any


class Stability(NamedTuple):
    """Per sample, (batch,).

    Attributes:
        stable: bool, radius + error is below one, as far as so many products can tell.
        radius: of J, by what the last half of the products grew on average.
        error: how far apart the averages of their two halves are: what further products might
            change. A pair of complex eigenvalues makes growth swing, and this larger.
    """

    stable: jax.Array
    radius: jax.Array
    error: jax.Array


def stability(f: Callable[[PyTree], PyTree], z: PyTree, count: int) -> Stability:
    """By `count` products with J, of a vector that begins as the residual and some noise.

    Args:
        f: of states with the batch on axis 0, whose samples are independent: each is scaled by
            itself, and where f couples them no radius is that of anything.
        z: the solution.
        count: of products, at least 4.
    """
    z = lax.stop_gradient(z)
    fz, push = jax.linearize(f, z)
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(z))))
    # The residual lies along what iteration has left, and noise along everything; half as much, so
    # that the two never cancel.
    noise = _unit(jax.tree.map(lambda x: _noise(next(keys), x), z))
    residual = _unit(jax.tree.map(lambda a, b: a.astype(wide(a.dtype)) - b, fz, z))
    start = jax.tree.map(lambda r, n: jnp.where(jnp.isfinite(r), r, 0) + 0.5 * n, residual, noise)

    def product(v, _):
        v = push(jax.tree.map(lambda v, z: v.astype(z.dtype), v, z))
        v = jax.tree.map(lambda x: x.astype(wide(x.dtype)), v)
        return _unit(v), safe_norm(v)

    start = loop_carry(lambda v: product(v, None)[0], _unit(start))
    _, growth = lax.scan(product, start, length=count)
    # Nothing that grows by nothing is a growth of zero, which has no logarithm.
    log = jnp.log(jnp.maximum(growth, jnp.finfo(growth.dtype).tiny))[count // 2 :]
    halves = [part.mean(axis=0) for part in jnp.array_split(log, 2)]
    radius = jnp.exp(log.mean(axis=0))
    error = jnp.abs(jnp.exp(halves[1]) - jnp.exp(halves[0]))
    return Stability(radius + error < 1, radius, error)


def _unit(v: PyTree) -> PyTree:
    size = norm(v)
    return times(v, 1 / jnp.where(size > 0, size, 1))


def _noise(key: jax.Array, x: jax.Array) -> jax.Array:
    """Like x, the same for all samples, and varying over devices as x does."""
    drawn = jax.random.normal(key, x.shape[1:], jnp.finfo(x.dtype).dtype)
    return (drawn + jnp.zeros_like(x)).astype(wide(x.dtype))
