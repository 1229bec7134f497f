"""Turn f(z, *args), with whatever it closes over, into a function of arrays alone.

f is traced once into a jaxpr. What it closes over (parameters, keys, tracers of an outer `grad`,
`vmap` or `jit`) comes out as constants of that jaxpr and becomes arguments, so gradients reach it.
`jax.closure_convert` hoists only differentiable tracers; here everything is hoisted, since a key or
an index may be a tracer too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

PyTree = Any


def hoist(f: Callable, z: PyTree, args: tuple) -> tuple[Callable, list, PyTree]:
    """Trace f at (z, *args).

    Returns:
        pure: pure(z, inputs) -> f's output, for the flat list `inputs`.
        inputs: closed-over values and the leaves of args, in that order.
        out: f's output as a pytree of abstract values (shape, dtype, varying mesh axes).
    """
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(z, *args)
    leaves = jax.tree.leaves(args)
    inputs = [*closed.consts, *leaves]
    split = len(closed.consts)
    treedef = jax.tree.structure(shapes)

    def pure(z, inputs):
        run = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, list(inputs[:split])))
        return jax.tree.unflatten(treedef, run(*jax.tree.leaves(z), *inputs[split:]))

    return pure, inputs, jax.tree.unflatten(treedef, closed.out_avals)


def is_differentiable(x) -> bool:
    return jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact)


def vary_like(z: PyTree, target: PyTree) -> PyTree:
    """Inside `shard_map`: type z as varying over every mesh axis that `target` varies over.

    A loop's carry must have one type, and f(z, x) varies over the axes of x even where z0 does not.
    """

    def leaf(x, t):
        missing = tuple(_varying(t) - _varying(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(leaf, z, target)


def _varying(x) -> frozenset:
    aval = x if isinstance(x, ShapedArray) else jax.typeof(x)
    return frozenset(getattr(aval, "vma", None) or ())
