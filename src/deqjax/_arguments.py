"""Checks of what a call is given besides its options: the state, f and the batch axis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

PyTree = Any


def as_array(x):
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def checked_state(z0: PyTree) -> PyTree:
    leaves = jax.tree.leaves(z0)
    if not leaves:
        raise ValueError("z0 has no arrays: give at least one floating-point array as the state")
    for path, x in jax.tree_util.tree_leaves_with_path(z0):
        try:
            dtype = jnp.result_type(x)
        except TypeError:
            dtype = type(x).__name__
        if isinstance(dtype, str) or not jnp.issubdtype(dtype, jnp.inexact):
            where = jax.tree_util.keystr(path)
            raise TypeError(
                f"z0{where} has dtype {dtype}, but a state must be floating point: convert it, for "
                "example with jnp.asarray(z0, float)"
            )
    # A weak type (from a Python scalar) would change inside the loop.
    return jax.tree.map(lambda x: lax.convert_element_type(x, jnp.result_type(x)), z0)


def batch_size(z0: PyTree, axis: int | None) -> int | None:
    if axis is None:
        return None
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"batch_axis must be None or an integer, got {axis!r}")
    sizes = set()
    for path, x in jax.tree_util.tree_leaves_with_path(z0):
        if not -x.ndim <= axis < x.ndim:
            where = jax.tree_util.keystr(path)
            raise ValueError(
                f"batch_axis={axis} does not exist in z0{where}, which has shape {x.shape}"
            )
        sizes.add(x.shape[axis])
    if len(sizes) > 1:
        raise ValueError(
            f"the leaves of z0 have different sizes {sorted(sizes)} along batch_axis={axis}: every "
            "leaf must hold the same batch"
        )
    return sizes.pop()


def check_cell(f: Callable, z0: PyTree, args: tuple) -> None:
    out = jax.eval_shape(f, z0, *args)
    want, got = jax.tree.structure(z0), jax.tree.structure(out)
    if want != got:
        raise TypeError(f"f must return the structure of z0, {want}; it returned structure {got}")
    pairs = zip(jax.tree_util.tree_leaves_with_path(z0), jax.tree.leaves(out), strict=True)
    for (path, x), y in pairs:
        where = jax.tree_util.keystr(path)
        if x.shape != y.shape:
            raise ValueError(
                f"f must keep the shape of the state: z0{where} has shape {x.shape}, f returned "
                f"shape {y.shape}"
            )
        if x.dtype != y.dtype:
            raise TypeError(
                f"f must keep the dtype of the state: z0{where} is {x.dtype}, f returned "
                f"{y.dtype}; cast one of them"
            )
