"""Matrices of a bounded norm: the nearest one, and ones that any parameters give."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from .._state import wide


def project_inf_norm(A: Any, kappa: float = 0.95) -> jax.Array:
    """The matrix nearest to A (in the Frobenius norm) with ‖·‖_∞ ≤ κ: every row in an ℓ₁ ball.

    A row a with ‖a‖₁ > κ becomes sign(a)·max(|a| − τ, 0), with the τ for which its ℓ₁ norm is κ
    (Duchi, Shalev-Shwartz, Singer, Chandra, ICML 2008). A row inside is returned bit for bit. What
    is called κ here is κ less some units of its rounding, so that the sum of a row's absolute
    values in exact arithmetic is never above the κ that was asked for: in float32 the plain formula
    exceeds it by 1e-6.

    Works under `jit`, `vmap` and `grad`. The derivative is that of the active set; on the surface
    of the ball it is one-sided. Rows with NaN are NaN. An A that is trained through it has no
    gradient along entries that it sets to zero: where that hurts, use `norm_bounded`.

    Args:
        A: (..., n, d), floating point.
        kappa: κ > 0, a Python number.

    Returns:
        Shape and dtype of A.

    Raises:
        TypeError: an A that is not floating point, or a traced κ.
        ValueError: κ ≤ 0, or an A with less than one axis.

    Examples:
        >>> import jax.numpy as jnp
        >>> from deqjax.theory.wellposed import project_inf_norm
        >>> project_inf_norm(jnp.array([[3.0, -1.0], [0.2, 0.1]]), 1.0).round(3).tolist()
        [[1.0, -0.0], [0.20000000298023224, 0.10000000149011612]]
    """
    A = _matrix("A", A)
    kappa = _inward(kappa, A)
    size = jnp.abs(A.astype(wide(A.dtype)))
    # Everything is seen from the largest entry: those that stay are within κ of it, whatever its
    # size, so that τ is as exact as κ is.
    top = lax.stop_gradient(jnp.max(size, axis=-1, keepdims=True))
    below = size - top
    ordered = -jnp.sort(-lax.stop_gradient(below), axis=-1)
    count = jnp.arange(1, A.shape[-1] + 1)
    level = (jnp.cumsum(ordered, axis=-1) - kappa) / count
    last = jnp.max(jnp.where(ordered > level, count, 1), axis=-1, keepdims=True)
    smallest = jnp.take_along_axis(ordered, last - 1, axis=-1)
    # Equal entries stay together, and so there may be more of them than `last`.
    stays = below >= smallest
    number = jnp.sum(stays, axis=-1, keepdims=True)
    tau = (jnp.sum(jnp.where(stays, below, 0), axis=-1, keepdims=True) - kappa) / number
    nearest = jnp.sign(A) * jnp.where(stays, jnp.maximum(below - tau, 0), 0)
    total = lax.stop_gradient(jnp.sum(jnp.abs(nearest), axis=-1, keepdims=True))
    nearest *= jnp.minimum(1, kappa / jnp.where(total > 0, total, 1))
    outside = ~(jnp.sum(size, axis=-1, keepdims=True) <= kappa)
    return jnp.where(outside, nearest.astype(A.dtype), A)


def norm_bounded(T: Any, kappa: float = 0.95) -> jax.Array:
    """A with ‖A‖_∞ < κ from any T: row i is κ tᵢ / (κ + ‖tᵢ‖₁).

    Every A with ‖A‖_∞ < κ is reached, rows keep their direction and every entry its gradient. It is
    not the nearest matrix: rows of any size are made shorter, by half where ‖tᵢ‖₁ = κ.

    Args:
        T: (..., n, d), floating point.
        kappa: κ > 0, a Python number.

    Raises:
        TypeError: as `project_inf_norm`.
        ValueError: as `project_inf_norm`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from deqjax.theory.wellposed import norm_bounded
        >>> norm_bounded(jnp.array([[1.0, -1.0], [0.0, 0.0]]), 0.5).tolist()
        [[0.19999979436397552, -0.19999979436397552], [0.0, 0.0]]
    """
    T = _matrix("T", T)
    kappa = _inward(kappa, T)
    t = T.astype(wide(T.dtype))
    return (kappa * t / (kappa + jnp.sum(jnp.abs(t), axis=-1, keepdims=True))).astype(T.dtype)


def mu_bounded(T: Any, gamma: float = 0.95) -> jax.Array:
    """A with μ_∞(A) ≤ γ from any T: A = γ I + T − diag(Σⱼ |Tᵢⱼ|).

    aᵢᵢ + Σⱼ≠ᵢ |aᵢⱼ| = γ + tᵢᵢ − |tᵢᵢ| ≤ γ, whatever ‖A‖ is (Jafarpour, Davydov, Proskurnikov,
    Bullo, NeurIPS 2021, arXiv 2106.03194). For non-decreasing activations whose slopes are at most
    1, with `Averaged`; plain Picard may diverge.

    Args:
        T: (n, n), floating point.
        gamma: γ, a Python number; below 1 for slopes in [0, 1].

    Raises:
        TypeError: as `project_inf_norm`.
        ValueError: a γ that is not finite, or a T that is not square.

    Examples:
        >>> import jax.numpy as jnp
        >>> from deqjax.theory.wellposed import certify, mu_bounded
        >>> certify(mu_bounded(jnp.array([[1.0, 9.0], [-9.0, 1.0]]), 0.5), "relu").kind
        'mu_inf'
    """
    T = _matrix("T", T)
    if T.ndim < 2 or T.shape[-1] != T.shape[-2]:
        raise ValueError(f"T must be square, (n, n); got {T.shape}")
    if not (isinstance(gamma, float | int) and -jnp.inf < gamma < jnp.inf):
        raise ValueError(f"gamma must be a finite number, such as 0.95; got {gamma!r}")
    t = T.astype(wide(T.dtype))
    size = jnp.sum(jnp.abs(t), axis=-1)
    # The diagonal is rounded where it may be as large as the row.
    rounding = _rounding(T) * (size + abs(gamma))
    down = gamma - size - lax.stop_gradient(rounding)
    return (t + down[..., None] * jnp.eye(T.shape[-1], dtype=t.dtype)).astype(T.dtype)


def _matrix(name: str, given: Any) -> jax.Array:
    given = jnp.asarray(given)
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(f"{name} must be real and floating point, not {given.dtype}")
    if given.ndim < 1 or given.shape[-1] < 1:
        raise ValueError(f"{name} must be a matrix, (n, d); got the shape {given.shape}")
    return given


def _inward(kappa: float, A: jax.Array) -> float:
    """κ less what a row's sum can be off by, once its entries are rounded to the dtype of A."""
    if isinstance(kappa, Tracer):
        raise TypeError("kappa must be a Python number: it is part of the compiled program")
    if not 0 < float(kappa) < jnp.inf:
        raise ValueError(f"kappa must be a finite number > 0, such as 0.95; got {kappa!r}")
    return float(kappa) * (1 - _rounding(A))


def _rounding(A: jax.Array) -> float:
    """Of a row's sum, relative: each entry is rounded once to the dtype, sums are of a wide one."""
    eps = lambda dtype: float(jnp.finfo(dtype).eps)
    return 2 * eps(A.dtype) + (A.shape[-1] + 6) * eps(wide(A.dtype))
