"""A train step that keeps parameters and moments in memory the way the step reads them.

How the numbers of a matrix follow each other in memory is its layout. A program that is handed
arrays in the usual one has to turn each of them round, and back at its end, where another suits
its products better: on a TPU, every step did so with large tables and their moments
(docs/design.md, "Several devices"). Here the compiler chooses; an array is turned once, when it is
new, restored, or comes from the step of another phase.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout

PyTree = Any


class Step:
    """`step(state, batch) -> (state, metrics)`, compiled at its first call for the arrays that it
    gets there, which it may overwrite.

    Args:
        step: the function.
        state: a `TrainState`, or its shapes.
        where: the sharding of each of its arrays; None for wherever they are.

    Attributes:
        compiled: the program, once it has been called.
    """

    def __init__(self, step: Callable, state: PyTree, where: PyTree | None):
        formats = _chosen(state, where)
        self._step = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(formats, None),
            out_shardings=(formats, None),
        )
        self.compiled: jax.stages.Compiled | None = None

    def lower(self, state: PyTree, batch: PyTree) -> jax.stages.Lowered:
        """The program for arrays like these, or for their shapes."""
        return self._step.lower(_shape(state), _shape(batch))

    def __call__(self, state: PyTree, batch: PyTree) -> tuple[PyTree, dict[str, jax.Array]]:
        if self.compiled is None:
            self.compiled = self.lower(state, batch).compile()
        (wanted, _), _ = self.compiled.input_formats
        return self.compiled(jax.tree.map(_laid_out, state, wanted), batch)


def _chosen(state: PyTree, where: PyTree | None) -> PyTree:
    """The compiler's choice for matrices of numbers; other arrays have one layout."""

    def choose(x, sharding=None):
        numbers = not jnp.issubdtype(x.dtype, jax.dtypes.extended)
        return Format(Layout.AUTO, sharding) if numbers and x.ndim > 1 else sharding

    return jax.tree.map(choose, state) if where is None else jax.tree.map(choose, state, where)


def _laid_out(x: Any, wanted: Format) -> Any:
    if jnp.issubdtype(x.dtype, jax.dtypes.extended) or x.ndim < 2:
        return x
    return x if x.format.layout == wanted.layout else jax.device_put(x, wanted, donate=True)


def _shape(tree: PyTree) -> PyTree:
    def shape(x):
        sharding = getattr(x, "sharding", None) if getattr(x, "committed", True) else None
        return jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding, weak_type=getattr(x, "weak_type", False)
        )

    return jax.tree.map(shape, tree)
