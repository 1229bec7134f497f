"""The gradient's linear system where it has no solution, or many: least squares, of least norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from ._optimality import Method
from ._quadratic import Point


def least_norm(
    method: Method, w: jax.Array, on: jax.Array, right: Point, x: Point, which: jax.Array
) -> Point:
    """x, with the samples `which`, bool (batch,), by the pseudo-inverse of `Method.apply`.

    One dense eigendecomposition for each of them, and nothing for the others.
    """
    sizes = [v.shape[1] for v in x]
    flat = lambda p: jnp.concatenate(p, axis=1)

    def replaced():
        total = sum(sizes)
        columns = []
        for part in jnp.split(jnp.eye(total, dtype=w.dtype), [sizes[0], sizes[0] + sizes[1]], 1):
            columns.append(part)

        def column(unit):
            point = Point(*(jnp.broadcast_to(v, (len(w), *v.shape)) for v in unit))
            return flat(method.apply(w, on, point))

        J = jax.vmap(column, out_axes=2)(tuple(columns))

        def one(sample):
            J, right, x, needed = sample
            return lax.cond(needed, lambda: _pseudo_inverse_times(J, right), lambda: x)

        return lax.map(one, (J, flat(right), flat(x), which))

    solved = lax.cond(jnp.any(which), replaced, lambda: flat(x))
    return Point(*jnp.split(solved, [sizes[0], sizes[0] + sizes[1]], axis=1))


def _pseudo_inverse_times(J: jax.Array, b: jax.Array) -> jax.Array:
    values, vectors = jnp.linalg.eigh(J, symmetrize_input=True)
    size = jnp.abs(values)
    kept = size > J.shape[0] * 10 * jnp.finfo(J.dtype).eps * jnp.max(size)
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    at = lambda a, b: jnp.matmul(a, b, precision="highest")
    return at(vectors, inverse * at(vectors.T, b))
