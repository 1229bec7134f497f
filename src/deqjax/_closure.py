"""Turn f(z), with whatever it closes over, into a function of arrays alone.

f is traced once into a jaxpr. What it closes over (parameters, keys, tracers of an outer `grad`,
`vmap` or `jit`) comes out as constants of that jaxpr and becomes arguments, so gradients reach it.
`jax.closure_convert` hoists only differentiable tracers; here everything is hoisted, since a key or
an index may be a tracer too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from ._program import Code, code_of

PyTree = Any


class Hoisted(NamedTuple):
    """A function f(z) made pure.

    Attributes:
        pure: pure(z, inputs) -> f(z).
        inputs: what f closed over.
        out: f's output as a pytree of abstract values (shape, dtype, varying mesh axes).
        collectives: the named axes over which f communicates (`psum` and its like).
    """

    pure: Code
    inputs: list
    out: PyTree
    collectives: tuple


def is_plain(*trees: PyTree) -> bool:
    """Whether no type of an array says anything of devices."""
    leaves = jax.tree.leaves(trees)
    spread = any(_varying(x) or any(_aval(x).sharding.spec) for x in leaves)
    return not spread and jax.sharding.get_abstract_mesh().empty


def hoist(f: Callable[[PyTree], PyTree], z: PyTree) -> Hoisted:
    """Trace f at z."""
    closed, shapes = jax.make_jaxpr(f, return_shape=True)(z)
    treedef = jax.tree.structure(shapes)
    # A collective leaves an effect that names its axis; the class is not public, its name is.
    named = [e for e in closed.effects if type(e).__name__ == "NamedAxisEffect"]
    collectives = tuple(sorted({e.name for e in named}, key=str))  # type: ignore[attr-defined]
    out = jax.tree.unflatten(treedef, closed.out_avals)
    return Hoisted(code_of(closed, treedef), list(closed.consts), out, collectives)


def is_differentiable(x) -> bool:
    return jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact)


def vary_like(z: PyTree, target: PyTree) -> PyTree:
    """Inside `shard_map`: type z as varying over every mesh axis that `target` varies over.

    A loop's carry must have one type, and f(z, x) varies over the axes of x even where z0 does not.
    """

    return jax.tree.map(lambda x, t: _cast_varying(x, _varying(t)), z, target)


def loop_carry(body: Callable[[PyTree], PyTree], carry: PyTree) -> PyTree:
    """`carry` as a loop of `body` must start: typed, inside `shard_map`, as what body returns."""
    # Elsewhere nothing varies, and tracing the body once more takes time.
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return carry
    # Not `eval_shape`, whose results have no type where only some axes of the mesh are manual.
    avals = jax.make_jaxpr(body)(carry).out_avals
    return vary_like(carry, jax.tree.unflatten(jax.tree.structure(carry), avals))


def laid_out_like(z: PyTree, target: PyTree) -> PyTree:
    """Under an explicit mesh: z, spread over devices as the type of `target` says."""

    def leaf(x, t):
        wanted = _aval(t).sharding
        return x if _aval(x).sharding.spec == wanted.spec else jax.sharding.reshard(x, wanted)

    return jax.tree.map(leaf, z, target)


def vary_with(theta: PyTree, z: PyTree) -> PyTree:
    """Inside `shard_map`: type all of theta as varying over every mesh axis that z varies over."""
    axes = frozenset().union(*(_varying(x) for x in jax.tree.leaves(z)))
    return jax.tree.map(lambda x: _cast_varying(x, axes), theta)


def varies_less(z: PyTree, target: PyTree) -> bool:
    """Whether `vary_like(z, target)` would change anything."""
    return any(
        _varying(t) - _varying(x)
        for x, t in zip(jax.tree.leaves(z), jax.tree.leaves(target), strict=True)
    )


def _cast_varying(x, axes: frozenset):
    missing = tuple(axes - _varying(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def spread_otherwise(z: PyTree, target: PyTree) -> bool:
    """Whether any leaves of the two differ in their types as to devices."""

    def spread(x):
        return _varying(x), _aval(x).sharding.spec

    return [*map(spread, jax.tree.leaves(z))] != [*map(spread, jax.tree.leaves(target))]


def _varying(x) -> frozenset:
    return frozenset(_aval(x).manual_axis_type.varying)


def _aval(x) -> ShapedArray:
    return x if isinstance(x, ShapedArray) else jax.typeof(x)
