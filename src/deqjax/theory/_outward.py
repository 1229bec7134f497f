"""Upper bounds that hold in exact arithmetic, from numbers that were computed in float64.

Entries of float32 and narrower are exact in float64, so nothing is lost before the sums. A sum or
product of n terms in any order is within γₙ = nu/(1 − nu) of the sum of their absolute values,
u = 2⁻⁵³ (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); the bounds
here take more than twice that.
"""

from __future__ import annotations

import numpy as np

EPS = float(np.finfo(np.float64).eps)  # 2u
TINY = float(np.finfo(np.float64).tiny)


def row_ratios(diagonal: np.ndarray, others: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Upper bounds of (dᵢ vᵢ + Σⱼ Oᵢⱼ vⱼ) / vᵢ for O ≥ 0 and v > 0; d has any sign."""
    rest = others @ v
    size = np.abs(diagonal) * v + rest
    error = (len(v) + 4) * EPS * size + len(v) * TINY
    ratios = (diagonal * v + rest + error) / v
    return ratios + 2 * EPS * np.abs(ratios)


def largest_eigenvalue(a: np.ndarray) -> float:
    """An upper bound of λ_max((A + Aᵀ)/2), proved by a Cholesky factor.

    Where the factorisation of M runs to its end in floating point,
    λ_min(M) ≥ −γₙ₊₁/(1 − γₙ₊₁) tr M (Rump, BIT 46, 2006), with M = c I − (A + Aᵀ)/2.
    """
    n = len(a)
    symmetric = (a + a.T) / 2
    size = float(np.abs(symmetric).sum(axis=1).max())
    if size == 0:
        return 0.0
    guess = float(np.linalg.eigvalsh(symmetric)[-1])
    for slack in (8, 128, 2048):
        c = guess + slack * n * EPS * size
        shifted = c * np.eye(n) - symmetric
        try:
            np.linalg.cholesky(shifted)
        except np.linalg.LinAlgError:
            continue
        # The second term is for the rounding of `symmetric` and of `shifted`.
        return c + (n + 3) * EPS * float(np.trace(shifted)) + 4 * EPS * (abs(c) + size)
    return np.inf


def two_norm(a: np.ndarray) -> float:
    """An upper bound of ‖A‖₂."""
    gram = largest_eigenvalue(a.T @ a)
    error = (len(a) + 2) * EPS * float((a**2).sum())
    return float(np.sqrt(max(gram + error, 0.0))) * (1 + 4 * EPS)
