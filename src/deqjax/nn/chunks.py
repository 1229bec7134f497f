"""A function of positions, computed for some of them at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._closure import vary_with

PyTree = Any


def in_chunks(
    f: Callable[[PyTree, PyTree], jax.Array], rows: PyTree, shared: PyTree, size: int
) -> jax.Array:
    """f(rows, shared), computed for at most `size` positions at a time.

    What f computes on the way is alive for one chunk only, in the gradient too, which computes each
    chunk again. All chunks are equally long: where that does not come out even, zeros precede the
    first position.

    Args:
        f: position t of its result depends on position t of `rows` only. The result is of the shape
            and dtype of the first leaf of `rows`.
        rows: leaves (batch or 1, time, ...).
        shared: what all chunks see.
        size: at least 1.
    """
    time = jax.tree.leaves(rows)[0].shape[1]
    count = -(-time // size)
    if count == 1:
        return f(rows, shared)
    size = -(-time // count)
    front = count * size - time
    pad = lambda x: jnp.pad(x, [(0, 0), (front, 0), *[(0, 0)] * (x.ndim - 2)]) if front else x
    rows = jax.tree.map(pad, rows)
    # Inside shard_map gradients are then summed over devices once, not in every chunk.
    rows, shared = vary_with((rows, shared), rows)

    @partial(jax.checkpoint, prevent_cse=False)  # a loop's body has no twin
    def chunk(rows, shared, start):
        part = lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
        return f(jax.tree.map(part, rows), shared)

    # Slices of arrays, and not rows stacked by chunk, of which a loop keeps copies.
    def step(found, start):
        new = chunk(rows, shared, start)
        return jax.lax.dynamic_update_slice_in_dim(found, new, start, axis=1), None

    # Every position is overwritten. No zeros: see `History.zeros`.
    found = jax.lax.stop_gradient(jax.tree.leaves(rows)[0])
    return jax.lax.scan(step, found, size * jnp.arange(count))[0][:, front:]
