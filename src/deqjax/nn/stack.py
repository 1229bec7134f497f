"""Several cells as one: a deep cell for an equilibrium, or the layers of an explicit network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .memory import KeyMemory, Memory
from .transformer import (
    Masks,
    TransformerCell,
    TransformerContext,
    TransformerInput,
    layer_norm,
)

Checkpoint = Literal["none", "all", "sqrt"]


class Unprepared(NamedTuple):
    """What the context of a cell is made from when it is needed, and made again when it is again:
    under checkpoints, keys and values of the memory are not kept either."""

    given: TransformerInput
    masks: Masks


StackContext = tuple[TransformerContext | Unprepared, ...]


class CellStack(nnx.Module):
    """f = f_L ∘ ... ∘ f₁ of `TransformerCell`s, as one cell of the same interface.

    With cells of injection="qkv", every one of which adds its own W x to q, k and v, this is a cell
    of L blocks for `DEQ`; so it is where the first is of injection="state" and the others of None.
    With cells that have no injection it is an explicit network, such as
    Transformer-XL (Dai et al. 2019, arXiv 1901.02860): its state starts at the embedded input, and
    `LanguageModel(..., depth=1)` applies it once.

    Memory is a tuple, one `Memory` for each cell, of the states that entered it.

    Args:
        cells: all of one width and memory length, and of one injection, but that None may follow.
        final_norm: normalise what the last cell returns; None does where a cell is pre-LN.
        checkpoint: what back-propagation keeps: "none", everything; "all", the state between cells;
            "sqrt", the state every √L cells (Chen et al. 2016, arXiv 1604.06174). On a CPU with
            jaxlib 0.10 the compiler undoes it (and every `jax.checkpoint` outside a loop).

    Examples:
        >>> from flax import nnx
        >>> from deqjax.nn import CellStack, LanguageModel, TransformerCell
        >>> rngs = nnx.Rngs(0)
        >>> layer = lambda: TransformerCell(8, heads=2, d_inner=16, injection=None, rngs=rngs)
        >>> explicit = LanguageModel(50, CellStack([layer() for _ in range(4)]), depth=1, rngs=rngs)
    """

    def __init__(
        self,
        cells: Sequence[TransformerCell],
        *,
        final_norm: bool | None = None,
        checkpoint: Checkpoint = "none",
    ):
        if not cells:
            raise ValueError("CellStack needs at least one cell")
        for name in ("d", "memory_length"):
            if len({getattr(cell, name) for cell in cells}) > 1:
                raise ValueError(f"the cells of a CellStack must have the same {name}")
        injections = [cell.injection for cell in cells]
        if len(set(injections)) > 1 and not (injections[0] == "state" and not any(injections[1:])):
            raise ValueError(
                "the cells of a CellStack must have the same injection, or the first one 'state' "
                f"and the others None; got {injections}"
            )
        if checkpoint not in ("none", "all", "sqrt"):
            raise ValueError(f"checkpoint must be 'none', 'all' or 'sqrt', got {checkpoint!r}")
        self.cells = nnx.List(cells)
        pre = any(cell.norm == "pre" for cell in cells)
        self.final_norm = pre if final_norm is None else final_norm
        self.checkpoint = checkpoint

    @property
    def d(self) -> int:
        return self.cells[0].d

    @property
    def n_in(self) -> int:
        return self.d

    def output(self, z: jax.Array) -> jax.Array:
        return z

    @property
    def memory_length(self) -> int:
        return self.cells[0].memory_length

    @property
    def injected(self) -> bool:
        return self.cells[0].injection is not None

    def initial_state(self, given: TransformerInput) -> jax.Array:
        return jnp.zeros_like(given.x) if self.injected else given.x

    def inject(self, given: TransformerInput) -> StackContext:
        """Everything that stays fixed while z is being solved for."""
        memories = given.memory or (None,) * len(self.cells)
        contexts = []
        for cell, memory in zip(self.cells, memories, strict=True):
            late = Unprepared(TransformerInput(given.x, memory), cell.masks(given.x.shape[0]))
            contexts.append(late if self.checkpoint != "none" else cell.inject(*late))
        return tuple(contexts)

    def __call__(self, z: jax.Array, context: StackContext) -> jax.Array:
        """f(z) for z of shape (batch, time, d)."""
        for layers in self._groups():
            run = lambda z, layers=layers: self._through(layers, z, context)[0]
            z = run(z) if self.checkpoint == "none" else jax.checkpoint(run)(z)
        return layer_norm(z) if self.final_norm else z

    def remember(self, given: TransformerInput, z: jax.Array, context: StackContext):
        """The memory for the next segment: of the states that enter the cells at z*."""
        if not self.injected:
            z = given.x
        states = self._through(range(len(self.cells)), z, context)[1]
        memories = given.memory or (None,) * len(self.cells)
        triples = zip(self.cells, memories, states, strict=True)
        return tuple(c.remember(TransformerInput(given.x, m), s) for c, m, s in triples)

    def empty_memory(self, batch: int, dtype: Any = jnp.float32) -> tuple[Memory, ...]:
        """The memory before the first segment."""
        return tuple(cell.empty_memory(batch, dtype) for cell in self.cells)

    def cache(self, memories: tuple[Memory, ...]) -> tuple[KeyMemory, ...]:
        """The same memory as decoding carries it."""
        return tuple(cell.cache(m) for cell, m in zip(self.cells, memories, strict=True))

    def _through(self, layers, z, context: StackContext):
        """z after those layers, and what entered each of them."""
        entered = []
        for i in layers:
            cell, of_cell = self.cells[i], context[i]
            entered.append(z)
            z = cell(z, cell.inject(*of_cell) if isinstance(of_cell, Unprepared) else of_cell)
        return z, entered

    def _groups(self) -> list[range]:
        n = len(self.cells)
        size = {"none": n, "all": 1, "sqrt": math.ceil(math.sqrt(n))}[self.checkpoint]
        return [range(i, min(i + size, n)) for i in range(0, n, size)]


_AnyStack: Any = nnx.Module  # what it is mixed into


class Narrow(_AnyStack):
    """What makes a stack narrower than the embedding: x P goes in, and z Pᵀ comes out."""

    def __init__(
        self,
        cells: Sequence[TransformerCell],
        *,
        n_in: int,
        checkpoint: Any = "none",
        rngs: nnx.Rngs,
    ):
        super().__init__(cells, checkpoint=checkpoint)
        init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        self.projection = nnx.Param(init(rngs.params(), (n_in, self.d)))

    @property
    def n_in(self) -> int:
        return self.projection.shape[0]

    def output(self, z: Any) -> jax.Array:
        return super().output(z) @ self.projection[...].T

    def initial_state(self, given: TransformerInput) -> Any:
        return super().initial_state(self._narrow(given))

    def inject(self, given: TransformerInput) -> Any:
        return super().inject(self._narrow(given))

    def remember(self, given: TransformerInput, z: Any, context: Any) -> Any:
        return super().remember(self._narrow(given), z, context)

    def _narrow(self, given: TransformerInput) -> TransformerInput:
        return given._replace(x=given.x @ self.projection[...])


class NarrowStack(Narrow, CellStack):
    """Layers narrower than the embedding: x P goes in, and z Pᵀ comes out.

    Args:
        cells: those of `CellStack`.
        checkpoint: those of `CellStack`.
        n_in: width of the embedded input.
        rngs: for P, (n_in, d).
    """
