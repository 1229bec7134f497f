"""From the caller's layout of a state to the one inside, and back.

Inside, the batch is on axis 0, and small leaves of one dtype are one vector: what a step does, it
does for each leaf, and kernels of a few numbers cost a start each, and time to compile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._closure import vary_with
from ._program import at_once
from ._state import dot, from_front, is_sharded, to_front

PyTree = Any

# Leaves of at most so many numbers, the whole batch counted, travel together.
SMALL = 2**14


@dataclass(frozen=True)
class Packing:
    """Which leaves of a state are together in which vector.

    Attributes:
        tree: the structure of the state.
        shapes: of each leaf, without the batch.
        groups: indices of leaves, one tuple a vector; a leaf that travels alone keeps its shape.
    """

    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, z: PyTree) -> Packing | None:
        """That of a state with the batch first; None where no two leaves belong together."""
        leaves, tree = jax.tree.flatten(z)
        groups: dict[Any, list[int]] = {}
        for i, x in enumerate(leaves):
            small = x.size <= SMALL and not is_sharded(x)
            groups.setdefault(x.dtype if small else i, []).append(i)
        if len(groups) == len(leaves):
            return None
        return cls(tree, tuple(x.shape[1:] for x in leaves), tuple(map(tuple, groups.values())))

    def pack(self, z: PyTree) -> Packed:
        leaves = jax.tree.leaves(vary_with(z, z))

        def vector(group):
            if len(group) == 1:
                return leaves[group[0]]
            rows = (leaves[i].reshape(leaves[i].shape[0], -1) for i in group)
            return jnp.concatenate([*rows], axis=1)

        return Packed(tuple(map(vector, self.groups)), self)

    def unpack(self, packed: Packed) -> PyTree:
        leaves: dict[int, jax.Array] = {}
        for group, vector in zip(self.groups, packed.vectors, strict=True):
            if len(group) == 1:
                leaves[group[0]] = vector
                continue
            ends = self._ends(group)
            for i, start, end in zip(group, [0, *ends], ends, strict=False):
                part = lax.slice_in_dim(vector, start, end, axis=1)
                leaves[i] = part.reshape(part.shape[0], *self.shapes[i])
        return jax.tree.unflatten(self.tree, [leaves[i] for i in range(len(leaves))])

    def squares(self, packed: Packed) -> jax.Array:
        """‖x‖² of each leaf of the state, (batch, leaves)."""
        columns = [self._squares(*pair) for pair in zip(self.groups, packed.vectors, strict=True)]
        order = np.argsort([i for group in self.groups for i in group])
        return jnp.concatenate(columns, axis=1)[:, order]

    def _squares(self, group, vector) -> jax.Array:
        if len(group) == 1:
            return dot(vector, vector)[:, None]
        ends = np.asarray(self._ends(group))
        sizes = np.diff(ends, prepend=0)
        # One kernel for all leaves: each a row, as long as the longest.
        place = np.arange(max(sizes.max(), 1))
        index = np.minimum((ends - sizes)[:, None] + place, max(ends[-1] - 1, 0))
        square = jnp.square(jnp.abs(vector)) if vector.shape[1] else jnp.zeros((len(vector), 1))
        return jnp.where(place < sizes[:, None], square[:, index], 0).sum(axis=-1)

    def _ends(self, group) -> list[int]:
        return np.cumsum([prod(self.shapes[i]) for i in group]).tolist()


@partial(jax.tree_util.register_dataclass, data_fields=["vectors"], meta_fields=["packing"])
@dataclass(frozen=True)
class Packed:
    """A state, or what is like one, as few vectors: (batch, n) each, or a leaf that is alone."""

    vectors: tuple[jax.Array, ...]
    packing: Packing


def by_leaf(z: PyTree) -> jax.Array | None:
    """‖x‖² of each leaf of the caller's state, (batch, leaves); None if it has but one."""
    if isinstance(z, Packed):
        return z.packing.squares(z)
    leaves = jax.tree.leaves(z)
    return jnp.stack([dot(x, x) for x in leaves], axis=1) if len(leaves) > 1 else None


@dataclass(frozen=True)
class Layout:
    """What a caller's state looks like.

    Attributes:
        axis: where its batch is; None, there is none (`to_front`).
        packing: None, all leaves stay as they are.
    """

    axis: int | None = 0
    packing: Packing | None = None

    @classmethod
    def of(cls, z: PyTree, axis: int | None) -> Layout:
        return cls(axis, Packing.of(to_front(z, axis)))

    def inner(self, z: PyTree) -> PyTree:
        if self.packing is None:
            return to_front(z, self.axis)
        return _packed(self.axis, self.packing, z)

    def outer(self, z: PyTree) -> PyTree:
        if self.packing is None:
            return from_front(z, self.axis)
        return _unpacked(self.axis, self.packing, z)


_packed = at_once(lambda axis, packing, z: packing.pack(to_front(z, axis)), static=(0, 1))
_unpacked = at_once(lambda axis, packing, z: from_front(packing.unpack(z), axis), static=(0, 1))


INNER = Layout()
