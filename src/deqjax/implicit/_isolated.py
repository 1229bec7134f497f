"""Programs of another library inside `shard_map`.

There the type of an array says over which axes of the mesh it varies, and a loop's carry must have
one type. The loops of a library that knows nothing of this start from constants, which vary over
nothing, and are refused. So they are traced outside of the mesh, where no array has such a type,
and bound as one operation, of which each device runs its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir

from .._closure import vary_with

PyTree = Any

_isolated = Primitive("deqjax_isolated")
_isolated.multiple_results = True


def isolated(fun: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """fun(*args), of arrays; inside `shard_map`, as one operation that varies over all axes that
    any of the args varies over. fun closes over no tracer, communicates with nobody, and is not
    differentiated through: its caller has a rule (`jax.custom_vjp`)."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return fun(*args)
    leaves, treedef = jax.tree.flatten(args)
    with _no_mesh():
        program, shape = jax.make_jaxpr(
            lambda *x: fun(*jax.tree.unflatten(treedef, x)), return_shape=True
        )(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves))
    out = _isolated.bind(*leaves, program=program)
    return jax.tree.unflatten(jax.tree.structure(shape), vary_with(out, leaves))


def _no_mesh():
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


@_isolated.def_impl
def _run(*leaves, program):
    return jax.jit(jaxpr_as_fun(program))(*leaves)


@_isolated.def_abstract_eval
def _types(*_, program):
    return [ShapedArray(x.shape, x.dtype) for x in program.out_avals]


def _lower(ctx, *leaves, program):
    return mlir.core_call_lowering(ctx, *leaves, name="isolated", call_jaxpr=program)


def _batch(leaves, axes, *, program):
    where = [axis if isinstance(axis, int) else None for axis in axes]
    with _no_mesh():
        batched = jax.make_jaxpr(jax.vmap(jaxpr_as_fun(program), in_axes=where))(
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves)
        )
    out = _isolated.bind(*leaves, program=batched)
    return out, [0] * len(out)


mlir.register_lowering(_isolated, _lower)
batching.primitive_batchers[_isolated] = _batch
