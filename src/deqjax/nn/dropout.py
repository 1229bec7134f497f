"""Variational dropout: one mask for all steps in time and all steps of a solve."""

from __future__ import annotations

import jax
from flax import nnx

from .._rows import draw_rows


def variational_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Zeros with probability `rate`, else 1 / (1 − rate) (Gal and Ghahramani 2016)."""
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)


def row_masks(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """The same for samples, shape (batch, ...): each has a mask of its own, and keeps it when the
    batch is spread over devices."""
    return draw_rows(lambda key: variational_mask(key, rate, shape[1:]), key, shape[0])


def weight_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """`variational_mask` of a matrix, of which one byte an entry is kept for the gradient."""
    uniform = jax.random.uniform(key, shape, float)
    # What a loop returns is stored. Without it compilers keep the random bits, eight bytes an
    # entry, and compare them again wherever the mask is used.
    kept = jax.lax.map(lambda rows: rows < 1 - rate, uniform, batch_size=-(-shape[0] // 8))
    return kept / (1 - rate)


def masked(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """x times the mask, in the dtype of x; x itself where there is none."""
    return x if mask is None else x * mask.astype(x.dtype)


class VariationalDropout(nnx.Module):
    """Dropout of (batch, time, n) with the same mask at all steps in time.

    Args:
        rate: in [0, 1).
        rngs: masks are drawn from `rngs.dropout`.
    """

    def __init__(self, rate: float, *, rngs: nnx.Rngs):
        self.rate = rate
        self.deterministic = False
        self.rngs = rngs.fork() if rate else None

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.rngs is None or self.deterministic:
            return x
        return masked(row_masks(self.rngs.dropout(), self.rate, (x.shape[0], 1, x.shape[2])), x)
