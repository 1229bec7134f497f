"""Random draws that belong to a sample, wherever in a batch, and on whichever device, it is.

Row i of a batch draws from its own key, so that a batch that is spread over devices, or cut into
pieces that are accumulated, draws what the whole batch on one device draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp

_rows: ContextVar[jax.Array | None] = ContextVar("rows", default=None)


@contextmanager
def batch_rows(rows: jax.Array) -> Iterator[None]:
    """Within it the samples in hand are those `rows`, int32 (n,), of a larger batch."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


def draw_rows(draw: Callable[[jax.Array], jax.Array], key: jax.Array, n: int) -> jax.Array:
    """draw(key of the row) for each of n samples, stacked along a new first axis.

    Whatever is not drawn for as many samples as `batch_rows` names (a few of them, say) counts its
    rows from 0.
    """
    rows = _rows.get()
    if rows is None or rows.shape[0] != n:
        rows = jnp.arange(n)
    return jax.vmap(lambda row: draw(jax.random.fold_in(key, row)))(rows)
