"""Certificates against exact enumeration, and the projection against its optimum."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deqjax.theory.wellposed import certify, project_inf_norm

from .enumeration import draw, is_well_posed

METHODS = ("inf_norm", "perron", "mu_inf", "monotone", "block_triangular", None)


def checked(count: int) -> dict[str, Any]:
    """How many of `count` random matrices each method certifies, and how many of these falsely.

    The row "spectral radius" is what ρ(A) < 1 would say, which is no certificate.
    """
    matrices = draw(count)
    well_posed = np.array([is_well_posed(m) for m in matrices])
    rows = []
    for method in METHODS:
        held = np.array([certify(m.A, "relu", method).holds for m in matrices])
        rows.append(_row(method or "any of them", held, well_posed))
    radius = np.array([np.abs(np.linalg.eigvals(m.A)).max() < 1 for m in matrices])
    rows.append(_row("ρ(A) < 1: no certificate", radius, well_posed))
    return dict(matrices=count, well_posed=int(well_posed.sum()), rows=rows)


def _row(method: str, held: np.ndarray, well_posed: np.ndarray) -> dict[str, Any]:
    return dict(method=method, certified=int(held.sum()), false=int((held & ~well_posed).sum()))


def optimum(row: np.ndarray, kappa: float) -> np.ndarray:
    """The nearest point of the ℓ₁ ball, in rational arithmetic: τ is where the KKT conditions hold,
    |a| > τ on the support and ≤ τ off it."""
    a = [Fraction(float(x)) for x in row]
    size = sorted((abs(x) for x in a), reverse=True)
    if sum(size) <= Fraction(kappa):
        return row
    levels = [(sum(size[:k]) - Fraction(kappa)) / k for k in range(1, len(a) + 1)]
    ends = [*size[1:], Fraction(0)]
    tau = next(
        t for t, s, end in zip(levels, size, ends, strict=True) if t < s and (end <= t or not end)
    )
    return np.array([float(max(abs(x) - tau, 0)) * (1 if x > 0 else -1) for x in a])


def projected(rows: int = 400, kappa: float = 0.95) -> list[dict[str, Any]]:
    """Distance to the optimum in float64, and in each dtype how far a row's exact sum is above κ,
    of the projection and of the textbook formula."""
    rng = np.random.default_rng(0)
    found = []
    for n in (4, 64):
        A = rng.normal(size=(rows, n)) * np.geomspace(0.1, 1e3, rows)[:, None]
        want = np.stack([optimum(row, kappa) for row in A])
        for dtype in ("float64", "float32", "bfloat16"):
            a = jnp.asarray(A, dtype)
            ours = jax.jit(project_inf_norm, static_argnums=1)(a, kappa)
            error = float(np.abs(np.asarray(ours) - want).max()) if dtype == "float64" else None
            found.append(
                dict(n=n, dtype=dtype, error=error, ours=_excess(ours, kappa),
                     textbook=_excess(_textbook(a, kappa), kappa))
            )  # fmt: skip
    return found


def _textbook(a: jax.Array, kappa: float) -> jax.Array:
    """Duchi et al. 2008, as it stands."""
    size = jnp.sort(jnp.abs(a), axis=-1)[:, ::-1]
    level = (jnp.cumsum(size, axis=-1) - kappa) / jnp.arange(1, a.shape[-1] + 1, dtype=a.dtype)
    last = jnp.maximum((size > level).sum(axis=-1, keepdims=True) - 1, 0)
    tau = jnp.take_along_axis(level, last, axis=-1)
    shorter = jnp.sign(a) * jnp.maximum(jnp.abs(a) - tau, 0)
    return jnp.where(jnp.abs(a).sum(axis=-1, keepdims=True) > kappa, shorter, a)


def _excess(a: jax.Array, kappa: float) -> float:
    """max(0, the largest exact row sum − κ)."""
    sums = [sum(abs(Fraction(float(x))) for x in row) for row in np.asarray(a, np.float64)]
    return float(max(max(sums) - Fraction(kappa), 0))
