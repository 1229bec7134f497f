"""The layers of an explicit network as a loop over one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .memory import KeyMemory, Memory
from .stack import Narrow
from .transformer import TransformerCell, TransformerInput, layer_norm


class Layers(NamedTuple):
    """What `ScannedStack` computes.

    Attributes:
        z: what the last layer returns, (batch, time, d).
        entered: what entered each of them, (batch, layers, time, d); None where there is no memory.
    """

    z: jax.Array
    entered: jax.Array | None


class ScannedStack(nnx.Module):
    """The explicit network of a `CellStack`, as `jax.lax.scan` over its layers.

    The parameters of all layers are one array each, layers first, so that a program holds one layer
    and not L of them: sixteen compile in the time of one. Values and gradients are those of
    `CellStack(cells)` to rounding, dropout masks are the same ones, and so is the memory, a tuple
    of one `Memory` for each layer. The state is a `Layers`: what enters each layer is what the next
    segment remembers, and a loop cannot be asked for it afterwards.

    Args:
        cells: layers of one kind, of injection=None, each of the same sizes.
        final_norm: as in `CellStack`.
        checkpoint: what back-propagation keeps: "none", everything; "all", the state between
            layers.

    Examples:
        >>> from flax import nnx
        >>> from deqjax.nn import LanguageModel, ScannedStack, TransformerCell
        >>> rngs = nnx.Rngs(0)
        >>> layer = lambda: TransformerCell(8, heads=2, d_inner=16, injection=None, rngs=rngs)
        >>> stack = ScannedStack([layer() for _ in range(4)])
        >>> stack.layers.up.kernel.shape
        (4, 8, 16)
        >>> explicit = LanguageModel(50, stack, depth=1, rngs=rngs)
    """

    def __init__(
        self,
        cells: Sequence[TransformerCell],
        *,
        final_norm: bool | None = None,
        checkpoint: str = "none",
    ):
        if not cells:
            raise ValueError("ScannedStack needs at least one cell")
        if any(cell.injection is not None for cell in cells):
            raise ValueError("the cells of a ScannedStack are layers: give them injection=None")
        if checkpoint not in ("none", "all"):
            raise ValueError(f"checkpoint must be 'none' or 'all', got {checkpoint!r}")
        graphs, states = zip(*(nnx.split(cell) for cell in cells), strict=True)
        if any(graph != graphs[0] for graph in graphs):
            raise ValueError("the cells of a ScannedStack must be alike: same sizes, same options")
        self.layers = nnx.merge(graphs[0], jax.tree.map(lambda *x: jnp.stack(x), *states))
        for _, variable in nnx.iter_graph(self.layers):
            if isinstance(variable, nnx.Variable) and variable.get_metadata().get("out_sharding"):
                variable.set_metadata(out_sharding=(None, *variable.get_metadata("out_sharding")))
        self.count, self.checkpoint = len(cells), checkpoint
        self.final_norm = cells[0].norm == "pre" if final_norm is None else final_norm

    @property
    def d(self) -> int:
        return self.layers.d

    @property
    def n_in(self) -> int:
        return self.d

    @property
    def memory_length(self) -> int:
        return self.layers.memory_length

    def output(self, z: Layers) -> jax.Array:
        return z.z

    def initial_state(self, given: TransformerInput) -> Layers:
        x = given.x
        shape = (x.shape[0], self.count, *x.shape[1:])
        return Layers(x, jnp.zeros(shape, x.dtype) if self.memory_length else None)

    def inject(self, given: TransformerInput) -> Any:
        """What each layer needs besides z, layers first."""
        graph, state = nnx.split(self.layers)
        memory = given.memory
        if memory and not isinstance(memory, KeyMemory):
            memory = jax.tree.map(lambda *m: jnp.stack(m), *memory)

        def one(state, memory):
            layer = nnx.merge(graph, state)
            context = layer.inject(TransformerInput(given.x, memory))
            return context, nnx.state(layer, nnx.RngState)

        contexts, counters = jax.vmap(one)(state, memory)
        nnx.update(self.layers, counters)
        return contexts

    def __call__(self, z: Layers, contexts: Any) -> Layers:
        """All layers, one after the other."""
        graph, state = nnx.split(self.layers)

        def one(z, given):
            state, context = given
            return nnx.merge(graph, state)(z, context), z if self.memory_length else None

        step = one if self.checkpoint == "none" else jax.checkpoint(one)
        last, entered = jax.lax.scan(step, z.z, (state, contexts))
        last = layer_norm(last) if self.final_norm else last
        return Layers(last, None if entered is None else jnp.moveaxis(entered, 0, 1))

    def remember(self, given: TransformerInput, z: Layers, contexts: Any) -> Any:
        """The memory for the next segment: of the states that entered the layers."""
        assert z.entered is not None  # there is a memory to remember for
        if isinstance(given.memory, KeyMemory):
            graph, state = nnx.split(self.layers)
            one = lambda state, memory, entered: nnx.merge(graph, state).remember(
                TransformerInput(given.x, memory), entered
            )
            return jax.vmap(one, in_axes=(0, 0, 1))(state, given.memory, z.entered)
        memories = given.memory or (None,) * self.count
        return tuple(
            self.layers.remember(TransformerInput(given.x, memory), z.entered[:, i])
            for i, memory in enumerate(memories)
        )

    def empty_memory(self, batch: int, dtype: Any = jnp.float32) -> tuple[Memory, ...]:
        """The memory before the first segment."""
        return tuple(self.layers.empty_memory(batch, dtype) for _ in range(self.count))

    def cache(self, memories: tuple[Memory, ...]) -> KeyMemory:
        """The same memory as decoding carries it: one, all arrays of which have layers first."""
        graph, state = nnx.split(self.layers)
        stacked = jax.tree.map(lambda *m: jnp.stack(m), *memories)
        return jax.vmap(lambda s, m: nnx.merge(graph, s).cache(m))(state, stacked)


class NarrowScannedStack(Narrow, ScannedStack):
    """`NarrowStack` of a `ScannedStack`."""
