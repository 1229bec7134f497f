"""The Jacobian of f at z, as a linear map on flat vectors, one for each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._state import from_front, scalar_dtype, to_front
from ._inputs import checked

PyTree = Any


class Jacobian:
    """J = ∂f/∂z at z for every sample, matrix-free.

    Vectors are (batch, n), in float32 at least: all leaves of a sample's state in one row, complex
    numbers as pairs of reals. f itself runs in the dtypes of z.

    Attributes:
        batch: number of samples; 1 if `batch_axis` is None.
        n: numbers in one sample's state.
        dtype: of the vectors.
    """

    def __init__(self, f: Callable, z: PyTree, args: tuple, batch_axis: int | None):
        z, self.batch = checked(f, z, args, batch_axis)
        z = to_front(z, batch_axis)
        self.dtype = scalar_dtype(z)
        self._batched = batch_axis is not None

        def flat(v):
            out = f(from_front(_unravel(v, z), batch_axis), *args)
            return self._ravel(to_front(out, batch_axis))

        self._z = self._ravel(z)
        self.n = self._z.shape[1]
        _, self._push = jax.linearize(flat, self._z)

    def push(self, v: jax.Array) -> jax.Array:
        """J v, (batch, n). One JVP."""
        return self._push(v)

    def pull(self, u: jax.Array) -> jax.Array:
        """Jᵀu, (batch, n). One VJP."""
        return jax.linear_transpose(self._push, self._z)(u)[0]

    def random(self, key: jax.Array | None) -> jax.Array:
        """Gaussian vectors, (batch, n); the same ones each time where key is None."""
        key = jax.random.key(0) if key is None else key
        return jax.random.normal(key, (self.batch, self.n), self.dtype)

    def squeeze(self, x: jax.Array) -> jax.Array:
        """Drop the batch axis of length one where the caller gave none."""
        return x if self._batched else x[0]

    def _ravel(self, z: PyTree) -> jax.Array:
        def leaf(x):
            if jnp.iscomplexobj(x):
                x = jnp.stack([x.real, x.imag], axis=-1)
            return x.reshape(x.shape[0], -1).astype(self.dtype)

        return jnp.concatenate([leaf(x) for x in jax.tree.leaves(z)], axis=1)


def _unravel(v: jax.Array, like: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(like)
    out, start = [], 0
    for x in leaves:
        pairs = (2,) if jnp.iscomplexobj(x) else ()
        shape = (*x.shape, *pairs)
        size = x[0].size * (2 if pairs else 1)
        part = v[:, start : start + size].reshape(shape)
        start += size
        if pairs:
            part = lax.complex(part[..., 0], part[..., 1])
        out.append(part.astype(x.dtype))
    return jax.tree.unflatten(treedef, out)


def eps_of(z: PyTree) -> float:
    """Relative precision in which f runs, as far as the dtypes of z tell."""
    return max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(z))


def size(z: PyTree) -> int:
    """n for a state in inner layout."""
    return sum(x[0].size * (2 if jnp.iscomplexobj(x) else 1) for x in jax.tree.leaves(z))


def norm(v: jax.Array, axes: int = 1) -> jax.Array:
    """‖v‖ over the last `axes` axes."""
    return jnp.sqrt(jnp.sum(v * v, axis=tuple(range(-axes, 0))))


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """AB per sample, at full precision on every platform."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b of two norms; 0 where both vanish, infinity where b alone does."""
    return jnp.where(a == 0, 0.0, a / jnp.where(b == 0, 1.0, b)) + jnp.where(
        (a != 0) & (b == 0), jnp.inf, 0.0
    )
