"""Variational dropout: one mask for all steps in time and all steps of a solve."""

from __future__ import annotations

import jax


def variational_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Zeros with probability `rate`, else 1 / (1 − rate) (Gal and Ghahramani 2016)."""
    return jax.random.bernoulli(key, 1 - rate, shape) / (1 - rate)


def masked(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """x times the mask, in the dtype of x; x itself where there is none."""
    return x if mask is None else x * mask.astype(x.dtype)
