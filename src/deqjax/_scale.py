"""Unknowns of different size: z = scale · ẑ, and everything is done to ẑ.

A change of variables before anything else sees the equation, so that norms, stop test, inner
products, ridges and adjoints all mean the scaled unknowns without knowing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

PyTree = Any


def checked_scale(scale: PyTree, z0: PyTree) -> PyTree:
    """A scale for each leaf of z0, of its dtype, as powers of two.

    Raises:
        TypeError: neither a number nor a pytree of the structure of z0.
        ValueError: sizes that are not positive and finite, or that do not fit their leaf.
    """
    if jax.tree.structure(scale) == jax.tree.structure(0.0) and jnp.ndim(scale) == 0:
        scale = jax.tree.map(lambda x: scale, z0)
    if jax.tree.structure(scale) != jax.tree.structure(z0):
        raise TypeError(
            "scale must be one positive number, or a pytree like z0 with an array or a number for "
            f"each leaf: z0 is {jax.tree.structure(z0)}, scale {jax.tree.structure(scale)}"
        )

    def leaf(path, s, x):
        where = jax.tree_util.keystr(path)
        if not _fits(jnp.shape(s), x.shape):
            raise ValueError(
                f"scale{where} of shape {jnp.shape(s)} does not fit z0{where}, {x.shape}"
            )
        if not isinstance(s, Tracer) and not np.all(np.asarray(s) > 0) & np.all(np.isfinite(s)):
            raise ValueError(f"scale{where} must be positive and finite sizes of the unknowns")
        real = jnp.finfo(x.dtype).dtype
        s = lax.stop_gradient(jnp.asarray(s).astype(jnp.promote_types(real, jnp.float32)))
        s = lax.reduce_precision(s, jnp.finfo(s.dtype).nexp, 0).astype(real)
        # As many axes as its leaf has, so that a batch axis is where it is in the state.
        return s.reshape((1,) * (x.ndim - s.ndim) + s.shape)

    return jax.tree_util.tree_map_with_path(leaf, scale, z0)


def _fits(shape: tuple[int, ...], leaf: tuple[int, ...]) -> bool:
    tail = leaf[len(leaf) - len(shape) :]
    return len(shape) <= len(leaf) and all(n in (1, m) for n, m in zip(shape, tail, strict=True))


def scaled(f: Callable, scale: PyTree) -> Callable:
    """f(ẑ, scale, *args) of the scaled unknowns."""
    return lambda z, scale, *args: over(f(by(z, scale), *args), scale)


def by(z: PyTree, scale: PyTree) -> PyTree:
    return jax.tree.map(lambda x, s: x * s, z, scale)


def over(z: PyTree, scale: PyTree) -> PyTree:
    return jax.tree.map(lambda x, s: x / s, z, scale)
