"""The sufficient conditions, one function each: (A, σ) ↦ (bound, v), certified where bound < 1.

All are of D A for every diagonal D with entries between the slopes of σ: then
z ↦ σ(A z + b), or an average of it with z, contracts in one norm for every b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ._activations import Activation
from ._outward import EPS, largest_eigenvalue, row_ratios


class Found(NamedTuple):
    bound: float
    vector: np.ndarray | None
    said: str


def inf_norm(a: np.ndarray, sigma: Activation) -> Found:
    """L ‖A‖_∞ < 1: z ↦ σ(Az + b) contracts in the maximum norm."""
    v = np.ones(len(a))
    return Found(_weighted(a, sigma, v), v, f"L ‖A‖_∞ of {sigma.name}")


def perron(a: np.ndarray, sigma: Activation) -> Found:
    """L |A| v < v for v = (I − L|A|)⁻¹ 1, which is positive if and only if L λ_pf(|A|) < 1.

    Then z ↦ σ(Az + b) contracts in maxᵢ |zᵢ|/vᵢ. What is verified is the inequality and not how v
    was found, so a reducible A needs nothing special, and no eigenvalue is computed.
    """
    v = _positive_solution(sigma.lipschitz * np.abs(a))
    bound = np.inf if v is None else _weighted(a, sigma, v)
    return Found(bound, v, f"L λ_pf(|A|) of {sigma.name}")


def mu_inf(a: np.ndarray, sigma: Activation) -> Found:
    """hi·maxᵢ(aᵢᵢ + Σⱼ≠ᵢ |aᵢⱼ| vⱼ/vᵢ) < 1, for slopes in [0, hi]: the average of z and σ(Az + b)
    contracts in maxᵢ |zᵢ|/vᵢ (Jafarpour et al. 2021), for v = 1 or the v of `perron` for A with its
    diagonal as it is."""
    said = f"hi μ_∞(A) of {sigma.name}"
    if sigma.slopes[0] < 0:
        return Found(np.inf, None, f"{said}, which decreases somewhere,")
    hi, diagonal = sigma.slopes[1], np.diag(a)
    others = np.abs(a) - np.diag(np.abs(diagonal))

    def bound(v):
        return float(np.max(hi * row_ratios(diagonal, others, v))) + 2 * EPS

    v = np.ones(len(a))
    first = bound(v)
    if first >= 1:
        other = _positive_solution(hi * (others + np.diag(diagonal)))
        if other is not None and bound(other) < first:
            v, first = other, bound(other)
    return Found(first, v, said)


def monotone(a: np.ndarray, sigma: Activation) -> Found:
    """hi λ_max((A + Aᵀ)/2) < 1, for slopes in [0, hi]: I − hi A is strongly monotone and σ(·/hi)
    the proximal operator of a convex function (Winston and Kolter 2020)."""
    said = f"hi λ_max((A + Aᵀ)/2) of {sigma.name}"
    if sigma.slopes[0] < 0:
        return Found(np.inf, None, f"{said}, which decreases somewhere,")
    bound = sigma.slopes[1] * largest_eigenvalue(a)
    return Found(bound + 2 * EPS * abs(bound), None, said)


METHODS: dict[str, Callable[[np.ndarray, Activation], Found]] = {
    m.__name__: m for m in (inf_norm, perron, mu_inf, monotone)
}


def components(a: np.ndarray) -> list[np.ndarray]:
    """The indices of the strongly connected components of A's graph: permuted so, A is block
    triangular with these diagonal blocks."""
    reaches = (a != 0) | np.eye(len(a), dtype=bool)
    while True:
        further = reaches.astype(np.float32) @ reaches.astype(np.float32) > 0
        if (further == reaches).all():
            break
        reaches = further
    mutual = reaches & reaches.T
    label = mutual.argmax(axis=1)  # the first member of each one's component
    return [np.flatnonzero(label == i) for i in np.unique(label)]


def _weighted(a: np.ndarray, sigma: Activation, v: np.ndarray) -> float:
    ratios = row_ratios(np.zeros(len(a)), np.abs(a), v)
    return float(sigma.lipschitz * np.max(ratios)) * (1 + 2 * EPS)


def _positive_solution(m: np.ndarray) -> np.ndarray | None:
    """v = (I − M)⁻¹ 1, if it is positive."""
    try:
        v = np.linalg.solve(np.eye(len(m)) - m, np.ones(len(m)))
    except np.linalg.LinAlgError:
        return None
    return v if np.isfinite(v).all() and (v > 0).all() else None
