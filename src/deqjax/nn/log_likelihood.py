"""Cross-entropy that is right however small it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """−log softmax(logits)[target] at every position, in nats.

    As log(1 + exp(u)) with u = log Σ exp(logits of the others) − the target's logit. The textbook
    form, the log-sum-exp of all logits less the target's, subtracts two numbers that agree where
    the target is nearly certain: in float32 a loss of 1e-7 comes out as 1.2e-7 or as zero, and the
    mean over many such positions is wrong by half. Here it has the relative precision of the
    logits down to the smallest float, and so has its gradient, in both modes.

    Args:
        logits: (..., classes), floating point; in bfloat16 or float16, computed in float32.
        targets: int (...).

    Returns:
        (...), NaN where a target is outside [0, classes).

    Raises:
        ValueError: the leading axes of logits are not those of targets.

    Examples:
        >>> import jax.numpy as jnp
        >>> float(cross_entropy(jnp.array([30.0, 0.0]), jnp.array(0)))  # exp(-30)
        9.357622912219837e-14
    """
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"targets must have shape {logits.shape[:-1]}, got {targets.shape}")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    here = targets[..., None] == jnp.arange(logits.shape[-1])
    return jnp.where(here.any(-1), picked(logits, here), jnp.nan)


def picked(logits: jax.Array, here: jax.Array) -> jax.Array:
    """The same, the target given as a mask: `here` is true once in each row, or not at all."""
    # Masked sums and not a gather: its gradient is no scatter into a second matrix of this size.
    # And −∞ rather than logsumexp's own `where`, with which XLA keeps one more such matrix.
    others = jax.nn.logsumexp(jnp.where(here, -jnp.inf, logits), axis=-1)
    return jax.nn.softplus(others - jnp.sum(jnp.where(here, logits, 0), -1))


def log_softmax(logits: jax.Array) -> jax.Array:
    """log softmax over the last axis, for the likeliest class as precise as for the others.

    log p_i = x_i − x_k − log(1 + Σ_{j≠k} exp(x_j − x_k)) with x_k the largest logit.
    """
    k = jnp.argmax(logits, axis=-1, keepdims=True)
    shifted = logits - jnp.take_along_axis(logits, k, axis=-1)
    others = jnp.where(jnp.arange(logits.shape[-1]) == k, 0, jnp.exp(shifted))
    return shifted - jnp.log1p(others.sum(-1, keepdims=True))
