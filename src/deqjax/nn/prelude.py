"""Explicit layers before an equilibrium, as part of its cell."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .memory import Memory, key_memory_of
from .stack import CellStack
from .transformer import TransformerInput


class PreludeContext(NamedTuple):
    """What stays fixed in a solve."""

    layers: Any  # of the prelude's
    h: jax.Array  # (batch, time, d): what the prelude returns
    cell: Any


class Prelude(nnx.Module):
    """f(z, x) = cell(z, h) with h = layers(x), computed once per solve.

    A recurrent-depth model (Geiping et al. 2025, arXiv 2502.05171) whose loop is an equilibrium:
    what every solver step would have to work out again of the input is worked out before the solve.

    Memory is a pair, that of the layers and that of the cell.

    Args:
        layers: a `CellStack` without injection.
        cell: any cell that takes a `TransformerInput` of the layers' width.

    Examples:
        >>> from flax import nnx
        >>> from deqjax.nn import CellStack, LanguageModel, Prelude, TransformerCell
        >>> rngs = nnx.Rngs(0)
        >>> options = dict(heads=2, d_inner=16, norm="pre", rngs=rngs)
        >>> first = CellStack([TransformerCell(8, injection=None, **options)], final_norm=False)
        >>> core = CellStack([TransformerCell(8, injection="state", **options)])
        >>> model = LanguageModel(50, Prelude(first, core), rngs=rngs)
    """

    def __init__(self, layers: CellStack, cell: Any):
        if layers.injected:
            raise ValueError("the layers before an equilibrium must have injection=None")
        if layers.d != cell.n_in:
            raise ValueError(
                f"the layers return a width of {layers.d} and the cell takes one of {cell.n_in}: "
                "they must be the same"
            )
        self.layers, self.cell = layers, cell

    @property
    def d(self) -> int:
        return self.cell.d

    @property
    def n_in(self) -> int:
        return self.layers.n_in

    @property
    def memory_length(self) -> int:
        return max(self.layers.memory_length, self.cell.memory_length)

    def output(self, z: jax.Array) -> jax.Array:
        return self.cell.output(z)

    def initial_state(self, given: TransformerInput) -> jax.Array:
        return self.cell.initial_state(given)

    def inject(self, given: TransformerInput) -> PreludeContext:
        """Everything that stays fixed while z is being solved for: the layers too."""
        before, of_cell = given.memory or (None, None)
        given = TransformerInput(given.x, before)
        context = self.layers.inject(given)
        h = self.layers(self.layers.initial_state(given), context)
        return PreludeContext(context, h, self.cell.inject(TransformerInput(h, of_cell)))

    def __call__(self, z: jax.Array, context: PreludeContext) -> jax.Array:
        """f(z) for z of shape (batch, time, d)."""
        return self.cell(z, context.cell)

    def remember(self, given: TransformerInput, z: jax.Array, context: PreludeContext):
        """The memory for the next segment, of the layers and of the cell."""
        before, of_cell = given.memory or (None, None)
        layers = self.layers.remember(TransformerInput(given.x, before), z, context.layers)
        given = TransformerInput(context.h, of_cell)
        return layers, self.cell.remember(given, z, context.cell)

    def empty_memory(self, batch: int, dtype: Any = jnp.float32) -> tuple[Any, Memory]:
        """The memory before the first segment."""
        return self.layers.empty_memory(batch, dtype), self.cell.empty_memory(batch, dtype)

    def cache(self, memory: tuple[Any, Any]) -> tuple[Any, Any]:
        """The same memory as decoding carries it."""
        before, of_cell = memory
        return key_memory_of(self.layers, before), key_memory_of(self.cell, of_cell)
