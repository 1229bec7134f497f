"""What a language model asks of its cell."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax

from .transformer import TransformerInput


@runtime_checkable
class LanguageCell(Protocol):
    """A cell f of which `deqjax.nn.LanguageModel` solves z* = f(z*, context): any NNX module with
    these attributes and methods. `TransformerCell`, `TrellisCell`, `CellStack` and `Prelude` are
    such cells; `DEQ` alone asks for less, the call, and `inject` and `initial_state` where it has
    them.

    The order of the calls: `initial_state` and `inject` once, before the solve; f at every solver
    step, forward and backward; `output` and `remember` once, at z*. A segment of the text is
    (batch, time); each position may look at those before it alone, and at the memory.

    Attributes:
        n_in: width of the embedded input x, and of what `output` returns.
        d: width of the state z.
        memory_length: positions that one segment hands to the next; 0, and nothing is remembered.

    Examples:
        >>> from flax import nnx
        >>> from deqjax.nn import TrellisCell
        >>> isinstance(TrellisCell(4, hidden=6, rngs=nnx.Rngs(0)), LanguageCell)
        True
        >>> missing(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))[:4]
        ['d', 'empty_memory', 'initial_state', 'inject']
    """

    @property
    def n_in(self) -> int: ...

    @property
    def d(self) -> int: ...

    @property
    def memory_length(self) -> int: ...

    def initial_state(self, given: TransformerInput) -> jax.Array:
        """z0, (batch, time, d), where `given.x` is (batch, time, n_in)."""
        ...

    def inject(self, given: TransformerInput) -> Any:
        """The context: all that does not depend on z. A pytree; random masks are drawn here."""
        ...

    def __call__(self, z: jax.Array, context: Any) -> jax.Array:
        """f(z), shaped like z. Pure: the same context gives the same f at every solver step."""
        ...

    def output(self, z: jax.Array) -> jax.Array:
        """What the softmax sees, (batch, time, n_in)."""
        ...

    def empty_memory(self, batch: int, dtype: Any = ...) -> Any:
        """The memory before a text: a `deqjax.nn.Memory` whose `valid` is False, or a tuple of
        them; its shapes are those of every later memory. () for a cell that has none."""
        ...

    def remember(self, given: TransformerInput, z: jax.Array, context: Any) -> Any:
        """The memory for the next segment, without gradients. Asked only where `memory_length`."""
        ...


def missing(cell: Any) -> list[str]:
    """What a cell lacks of a `LanguageCell`."""
    wanted = ("n_in", "d", "memory_length", *(n for n in vars(LanguageCell) if n[0] != "_"))
    return sorted({name for name in wanted if not hasattr(cell, name)})
