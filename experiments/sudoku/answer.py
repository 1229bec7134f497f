"""What both layers have in common: a puzzle's tensors, and the completed board."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deqjax import Stats


class Answer(NamedTuple):
    """scores: (batch, n, n, n), of every digit in every cell. stats: of the solve, per board."""

    scores: jax.Array
    stats: Stats


def digits_one_hot(boards: jax.Array | np.ndarray) -> jax.Array:
    """Boards (batch, n, n) as float32 (batch, n³): zeros where a cell is empty."""
    n = boards.shape[-1]
    hot = jax.nn.one_hot(jnp.asarray(boards, jnp.int32) - 1, n, dtype=jnp.float32)
    return hot.reshape(len(boards), n**3)


def filled(scores: jax.Array) -> jax.Array:
    """The board of the highest scores, uint8 (batch, n, n)."""
    return (jnp.argmax(scores, axis=-1) + 1).astype(jnp.uint8)
