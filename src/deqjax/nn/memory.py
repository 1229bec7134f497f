"""What one segment leaves for the next: states, or the keys and values that were made of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any


class Memory(NamedTuple):
    """The last `memory_length` positions of the previous segment, detached.

    Attributes:
        z: their equilibrium, (batch, memory, d).
        injection: their injected q, k, v, (batch, memory, 3d), as `TransformerCell` orders them.
        valid: (batch, memory) bool, False where there is nothing yet: the stream has just begun.
    """

    z: jax.Array
    injection: jax.Array
    valid: jax.Array


class KeyMemory(NamedTuple):
    """What decoding carries instead of a `Memory`: keys and values of solved positions.

    At an equilibrium they do not change any more, so that the next position is solved without
    projecting the memory again. A cell makes one of its memory (`cell.cache(memory)`), takes it in
    the memory's place, for one position at a time, and returns it from `remember`.

    A ring: the newest position takes the place of the oldest, and nothing moves. The axes are in
    the order in which the products of one position read fastest.

    Attributes:
        k: (batch, heads, d / heads, memory).
        v: (batch, heads, memory, d / heads).
        valid: (batch, memory) bool.
        oldest: () int32, the place of the position furthest back, the next to go.
        position: (heads, memory + 1, d / heads), keys of the relative positions, furthest first.
    """

    k: jax.Array
    v: jax.Array
    valid: jax.Array
    oldest: jax.Array
    position: jax.Array

    def after(self, k: jax.Array, v: jax.Array) -> KeyMemory:
        """With one more position, whose key and value are (batch, 1, heads, d / heads)."""
        size = self.valid.shape[1]
        if not size:
            return self
        put = jax.lax.dynamic_update_slice_in_dim
        valid = jnp.ones((self.valid.shape[0], 1), bool)
        return KeyMemory(
            put(self.k, jnp.moveaxis(k, 1, 3).astype(self.k.dtype), self.oldest, axis=3),
            put(self.v, jnp.swapaxes(v, 1, 2).astype(self.v.dtype), self.oldest, axis=2),
            put(self.valid, valid, self.oldest, axis=1),
            (self.oldest + 1) % size,
            self.position,
        )

    def scores(self, content: jax.Array, relative: jax.Array, own: jax.Array) -> jax.Array:
        """qᵀk of content and of distance, (batch, heads, 1, memory + 1), the new position last.

        Args:
            content: what looks at keys, (batch, 1, heads, d / heads).
            relative: what looks at distances, the same.
            own: the key of the new position, the same.
        """
        memory = jnp.einsum("bihd,bhdj->bhij", content, self.k)
        itself = jnp.einsum("bihd,bjhd->bhij", content, own)
        distance = jnp.einsum("bihd,hjd->bhij", relative, self.position)
        of_memory, of_itself = jnp.split(distance, [memory.shape[-1]], axis=-1)
        of_memory = jnp.roll(of_memory, self.oldest, axis=-1)  # by distance, now by place
        return jnp.concatenate([memory + of_memory, itself + of_itself], axis=-1)


def forget(memory: PyTree, fresh: jax.Array) -> PyTree:
    """The memory without what stands before a new text: `fresh`, (batch, 1) bool, says where one
    begins. Takes one `Memory` or `KeyMemory`, or several, as a `CellStack` has them."""
    return jax.tree.map(
        lambda m: m._replace(valid=m.valid & ~fresh),
        memory,
        is_leaf=lambda m: isinstance(m, Memory | KeyMemory),
    )


def key_memory_of(cell: Any, memory: Any) -> Any:
    """`cell.cache(memory)`; the memory itself of a cell that has no cache."""
    cache = getattr(cell, "cache", None)
    return memory if cache is None else cache(memory)
