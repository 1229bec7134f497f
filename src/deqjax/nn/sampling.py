"""The next token, drawn from logits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .._errors import check_integer


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. What is left out has probability zero, in this order:

    Attributes:
        temperature: logits are divided by it: below 1, safer text; 0 takes the most likely token.
        top_k: only so many of the most likely tokens; None, all.
        top_p: only the most likely tokens that together have this probability (nucleus sampling,
            Holtzman et al. 2020, arXiv 1904.09751), at least one; None, all.

    Raises:
        ValueError, TypeError: a value that cannot be.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature must be a number of at least 0, which takes the most likely token; "
                f"got {self.temperature!r}"
            )
        check_integer("top_k", self.top_k, least=1, optional=True)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1; got {self.top_p!r}")

    def __call__(self, logits_bv: jax.Array, keys_b: jax.Array) -> jax.Array:
        """int32 (batch,), each row by its own key."""
        if not self.temperature:
            return jnp.argmax(logits_bv, -1).astype(jnp.int32)
        left = self.left(logits_bv / self.temperature)
        return jax.vmap(jax.random.categorical)(keys_b, left).astype(jnp.int32)

    def left(self, logits: jax.Array) -> jax.Array:
        """The logits, −∞ where a token is left out. Equals of the last one kept are kept."""
        size = logits.shape[-1]
        if self.top_k is not None and self.top_k < size:
            least = jax.lax.top_k(logits, self.top_k)[0][..., -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        if self.top_p is not None and self.top_p < 1:
            falling = -jnp.sort(-logits, axis=-1)
            p = jax.nn.softmax(falling, axis=-1)
            before = jnp.cumsum(p, axis=-1) - p  # of the tokens that are more likely
            # The first is kept whatever rounding says.
            kept = (before < self.top_p).at[..., 0].set(True)
            least = jnp.min(jnp.where(kept, falling, jnp.inf), axis=-1, keepdims=True)
            logits = jnp.where(logits < least, -jnp.inf, logits)
        return logits
