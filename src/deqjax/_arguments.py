"""Checks of what a call is given besides its options: the state, f and the batch axis."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._closure import Hoisted, hoist

PyTree = Any


def as_arguments(args: tuple) -> tuple:
    """Those of f: numbers as arrays. What is no number but callable, as the activation in an
    Equinox module is, stays as it is.

    Raises:
        TypeError: something that f cannot be given, such as a string.
    """

    def leaf(path, x):
        if isinstance(x, jax.Array) or callable(x):
            return x
        try:
            return jnp.asarray(x)
        except TypeError:
            pass
        where = jax.tree_util.keystr(path)
        raise TypeError(
            f"args{where} is {x!r}, a {type(x).__name__}, and f is given arrays: let it close over "
            "what is none, as functools.partial(f, ...) does"
        )

    return jax.tree_util.tree_map_with_path(leaf, args)


def traced_cell(f: Callable, z0: PyTree, args: tuple) -> Hoisted:
    """f, traced at z0; an error of its own says with what it was called."""
    try:
        return hoist(lambda z: f(z, *args), z0)
    except Exception as wrong:
        shapes = jax.tree.map(lambda x: getattr(jax.typeof(x), "str_short", str)(), z0)
        wrong.add_note(
            f"deqjax: f raised this when it was called as f(z, *args) with a z like z0, {shapes}: "
            "z0 must have the shapes that f takes and returns"
        )
        raise


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
        if jnp.finfo(dtype).bits < 16:
            where = jax.tree_util.keystr(path)
            raise TypeError(
                f"z0{where} has dtype {dtype}, in which residuals are nothing but rounding: keep "
                "the state in bfloat16 or wider, and cast inside f"
            )
    return jax.tree.map(_strong, z0)


def _strong(x):
    # A weak type (from a Python scalar) would change inside the loop.
    if isinstance(x, jax.Array) and not jax.typeof(x).weak_type:
        return x
    return lax.convert_element_type(x, jnp.result_type(x))


def checked_axis(axis: Any) -> int | None:
    """batch_axis, any integer, as Python's."""
    try:
        if not isinstance(axis, bool):
            return None if axis is None else operator.index(axis)
    except TypeError:
        pass
    raise TypeError(f"batch_axis must be None or an integer, got {axis!r}")


def batch_size(z0: PyTree, axis: int | None) -> int | None:
    if axis is None:
        return None
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


def check_cell(out: PyTree, z0: PyTree) -> None:
    """out: what f returned, as a pytree of abstract values."""
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
