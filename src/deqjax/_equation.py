"""The equation z = f(z), as everything inside the library passes it on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._closure import (
    Hoisted,
    hoist,
    is_differentiable,
    laid_out_like,
    spread_otherwise,
    vary_like,
    vary_with,
)
from ._compaction import take
from ._program import still

PyTree = Any


class Rows(NamedTuple):
    """f on a part of the batch, in two steps, so that the first is done once and not in the loop.

    Attributes:
        prepare: prepare(index) -> context, index of shape (size,).
        apply: apply(z, context) -> f(z) for leaves of z (size, ...).
    """

    prepare: Callable[[jax.Array], PyTree]
    apply: Callable[[PyTree, PyTree], PyTree]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["inputs", "parts"],
    meta_fields=["code", "collectives"],
)
@dataclass(frozen=True)
class Equation:
    """z = f(z) with the batch on axis 0, free of closures: a pytree of the arrays that f reads.

    Attributes:
        code: code(z, inputs) -> f(z), static.
        inputs: the arrays that f closed over.
        collectives: the named axes over which f communicates.
        parts: f on parts of the batch, by their size, where those were asked for.
    """

    code: Any
    inputs: list
    collectives: tuple = ()
    parts: dict[int, Part] = field(default_factory=dict)

    @classmethod
    def traced(cls, f: Callable | Hoisted, z: PyTree) -> tuple[PyTree, Equation]:
        """z and the equation, of one type: a loop's carry has one.

        Inside `shard_map`, what steps a solve takes depends on all leaves: they vary together.
        """
        if isinstance(f, Hoisted):
            return z, cls(f.pure, f.inputs, f.collectives)
        hoisted = hoist(f, z)
        typed = vary_with(laid_out_like(z, hoisted.out), (z, hoisted.out))
        if spread_otherwise(z, typed) or spread_otherwise(hoisted.out, typed):
            z, hoisted = typed, hoist(lambda z: laid_out_like(vary_with(f(z), z), z), typed)
        return z, cls(hoisted.pure, hoisted.inputs, hoisted.collectives)

    def __call__(self, z: PyTree) -> PyTree:
        return self.code(z, self.inputs)

    @property
    def values(self) -> Equation:
        """The same without rules of f's own for derivatives."""
        return replace(self, code=self.code.values)

    @property
    def still(self) -> Equation:
        """The same, with nothing to differentiate."""
        return replace(self, inputs=still(self.inputs))

    def with_parts(self, rows: Rows | None, z: PyTree, sizes: Iterable[int]) -> Equation:
        """The same, ready for `rows` of so many samples."""
        if rows is None or not sizes:
            return self
        parts = {size: Part.of(rows, z, size) for size in sizes}
        return replace(self, parts=jax.lax.stop_gradient(parts))

    def rows(self, index: jax.Array) -> Equation:
        """The equation of the samples in index, (size,)."""
        return self.parts[index.shape[0]].rows(index)

    def parted(self) -> tuple[list, Equation]:
        """θ, the inputs with a derivative, and the equation without them."""
        open_ = [is_differentiable(x) for x in self.inputs]
        theta = [x for x, t in zip(self.inputs, open_, strict=True) if t]
        rest = [None if t else x for x, t in zip(self.inputs, open_, strict=True)]
        return theta, replace(self, inputs=rest)

    def joined(self, theta: list) -> Equation:
        """The inverse of `parted`."""
        given = iter(theta)
        return replace(self, inputs=[next(given) if x is None else x for x in self.inputs])


@partial(jax.tree_util.register_dataclass, data_fields=["inputs"], meta_fields=["prepare", "apply"])
@dataclass(frozen=True)
class Part:
    """`Rows` of one size, free of closures."""

    prepare: Any
    apply: Any
    inputs: tuple[list, list]

    @classmethod
    def of(cls, rows: Rows, z: PyTree, size: int) -> Part:
        index = vary_with(jnp.zeros((size,), jnp.int32), z)
        part = take(z, index)
        prepare, prepare_inputs, context, _ = hoist(rows.prepare, index)
        context = vary_like(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), context), context)
        apply, apply_inputs, *_ = hoist(lambda zc: rows.apply(*zc), (part, context))
        return cls(prepare, apply, (prepare_inputs, apply_inputs))

    def rows(self, index: jax.Array) -> Equation:
        for_prepare, for_apply = self.inputs
        return Equation(_InContext(self.apply), [self.prepare(index, for_prepare), for_apply])


@dataclass(frozen=True)
class _InContext:
    apply: Any

    def __call__(self, z: PyTree, inputs: list) -> PyTree:
        context, given = inputs
        return self.apply((z, context), given)
