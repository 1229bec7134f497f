"""When z = σ(A z + b) has exactly one solution: certificates, and matrices that have one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .._errors import suggest
from ._activations import ACTIVATIONS as ACTIVATIONS
from ._activations import Activation as Activation
from ._activations import Refused as Refused
from ._activations import as_activation as as_activation
from ._certificate import Certificate as Certificate
from ._certificate import lipschitz_bound as lipschitz_bound
from ._certificate import real_matrix
from ._certificate import rescaled as rescaled
from ._methods import METHODS, components
from ._projection import mu_bounded as mu_bounded
from ._projection import norm_bounded as norm_bounded
from ._projection import project_inf_norm as project_inf_norm

BLOCKS, LOCAL = "block_triangular", "local"


def certify(
    A: Any,
    activation: str | Activation | Callable,
    method: str | None = None,
    *,
    slopes: Any = None,
) -> Certificate:
    """Look for a proof that z = σ(A z + b) has exactly one solution for every b.

    With L the Lipschitz constant of σ and [lo, hi] its slopes, any of these is one, and each is
    only sufficient:

    - "inf_norm": L ‖A‖_∞ < 1. Picard converges, in the maximum norm.
    - "perron": L λ_pf(|A|) < 1, by a v > 0 with L |A| v < v: the vector. Picard converges, in the
      norm maxᵢ |zᵢ|/vᵢ (El Ghaoui, Gu, Travacca, Askari, Tsai 2021, arXiv 1908.06315).
    - "mu_inf": hi·μ_∞(A) < 1, lo ≥ 0; μ_∞(A) = maxᵢ(aᵢᵢ + Σⱼ≠ᵢ |aᵢⱼ|), weighted by a v where that
      helps. `Averaged` converges (Jafarpour et al. 2021, arXiv 2106.03194).
    - "monotone": hi·λ_max((A + Aᵀ)/2) < 1, lo ≥ 0. `PeacemanRachford` and `ForwardBackward`
      converge (Winston and Kolter 2020, arXiv 2006.08591).
    - "block_triangular": A is so when its unknowns are put in another order, and each diagonal
      block has one of the proofs above, of any kind.

    The inequalities are verified on the numbers of A as they are, in float64 and rounded outward:
    `holds` is never owed to rounding. They are about exact arithmetic; what a solver reaches in
    float32 is what its statistics say.

    A spectral radius is no proof, ρ(A) < 1 least of all: of random 3 × 3 matrices with ρ = 0.9, one
    in twenty has an equation without a solution or with several. The method "local" computes ρ of
    the Jacobian at one z*, diag(slopes) A, and never holds.

    Not for cells that are not of this form (attention, normalisation, gates): LayerNorm and
    functions of which nothing is known are refused, with the reason.

    Args:
        A: (n, n), concrete real numbers.
        activation: a name, a function of `jax.nn` or `jax.numpy`, or an `Activation`.
        method: one of the above; None tries all but "local", and gives the first that holds.
        slopes: σ′(A z* + b), (n,); for "local" alone.

    Returns:
        A `Certificate`. With method=None, one that does not hold says how far each method is off.

    Raises:
        ValueError: an A that is not square or not finite, an unknown method or name.
        TypeError: called inside `jit`, or an A that is not real.

    Examples:
        >>> import jax, numpy as np
        >>> A = np.array([[0.0, 4.0], [0.1, 0.0]])
        >>> found = certify(A, jax.nn.relu)
        >>> found.holds, found.kind, found.vector.round(2).tolist()
        (True, 'perron', [8.33, 1.83])
        >>> print(certify([[1.0]], "relu"))
        no certificate of relu: inf_norm 1, perron inf, mu_inf 1, monotone 1, which must be < 1
    """
    if method is not None and method not in (*METHODS, BLOCKS, LOCAL):
        known = suggest(str(method), (*METHODS, BLOCKS, LOCAL))
        raise ValueError(f"method={method!r} is not a known method{known}")
    a = real_matrix("A", A)
    if a.shape[0] != a.shape[1]:
        raise ValueError(f"A must be square, (n, n); got {a.shape}")
    try:
        sigma = as_activation(activation)
    except Refused as refused:
        return Certificate(False, "refused", -np.inf, None, np.inf, str(refused))
    if method == LOCAL:
        return _local(a, sigma, slopes)
    if slopes is not None:
        raise ValueError("slopes= is of one z*, and only method='local' is about one")
    if method == BLOCKS:
        return _of_blocks(a, sigma)
    if method is not None:
        return _by(method, a, sigma)
    tried = [_by(name, a, sigma) for name in METHODS]
    for found in tried:
        if found.holds:
            return found
    blocks = components(a)
    if len(blocks) > 1:
        found = _of_blocks(a, sigma)
        if found.holds:
            return found
    best = min(tried, key=lambda found: found.bound)
    told = ", ".join(f"{found.kind} {found.bound:.6g}" for found in tried)
    return Certificate(
        *(False, "none", best.margin, None, best.bound),
        f"no certificate of {sigma.name}: {told}, which must be < 1",
        sigma.lipschitz,
    )


def compose(*certificates: Certificate) -> Certificate:
    """The certificate of equations that feed each other in one direction only.

    z₁ = σ₁(A₁z₁ + b₁), z₂ = σ₂(A₂z₂ + Bz₁ + b₂), …: block triangular with diagonal blocks Aᵢ, each
    with an activation of its own. It has exactly one solution for every b, whatever B is, if and
    only if each block has.

    Raises:
        ValueError: no certificates.

    Examples:
        >>> from deqjax.theory.wellposed import certify, compose
        >>> both = compose(certify([[0.9]], "relu"), certify([[-5.0]], "tanh"))
        >>> both.holds, round(both.margin, 6)
        (True, 0.1)
    """
    if not certificates:
        raise ValueError("compose needs at least one certificate")
    worst = max(certificates, key=lambda c: (not c.holds, c.bound))
    kinds = ", ".join(sorted({c.kind for c in certificates}))
    holds = all(c.holds for c in certificates)
    told = "each has a certificate" if holds else f"one has none: {worst.reason}"
    return Certificate(
        *(holds, BLOCKS, worst.margin, None, worst.bound),
        f"block triangular with {len(certificates)} diagonal blocks ({kinds}): {told}",
        max(c.lipschitz for c in certificates),
    )


def averaging(A: Any, activation: str | Activation | Callable) -> float:
    """The λ with which z⁺ = (1 − λ) z + λ σ(A z + b) converges under a "mu_inf" certificate.

    λ = 1/(1 + hi·maxᵢ max(0, −aᵢᵢ)): the largest for which no diagonal entry of
    (1 − λ) I + λ D A is negative, so that its norm is at most 1 − λ (1 − max(0, bound)).
    For `deqjax.Picard(damping=λ)`; `monotone.Averaged` takes it from a traced A.

    Examples:
        >>> from deqjax.theory.wellposed import averaging
        >>> averaging([[-3.0, 0.5], [0.5, 0.2]], "relu")
        0.25
    """
    hi = as_activation(activation).slopes[1]
    return float(1 / (1 + hi * max(0.0, -float(np.diag(real_matrix("A", A)).min()))))


def _by(method: str, a: np.ndarray, sigma: Activation) -> Certificate:
    bound, v, said = METHODS[method](a, sigma)
    holds = bool(bound < 1)
    told = "one solution for every b" if holds else "which must be < 1"
    return Certificate(
        *(holds, method, 1 - bound, v if holds else None, bound),
        f"{said} is {'at most ' if holds else ''}{bound:.6g}: {told}",
        sigma.lipschitz,
    )


def _of_blocks(a: np.ndarray, sigma: Activation) -> Certificate:
    def best(block):
        found = [_by(name, block, sigma) for name in METHODS]
        return min(found, key=lambda c: c.bound)

    return compose(*(best(a[np.ix_(i, i)]) for i in components(a)))


def _local(a: np.ndarray, sigma: Activation, slopes: Any) -> Certificate:
    if slopes is None or np.shape(slopes) != (len(a),):
        raise ValueError(f"method='local' needs slopes=σ′(A z* + b), of shape ({len(a)},)")
    j = np.asarray(slopes, np.float64)[:, None] * a
    radius = float(np.abs(np.linalg.eigvals(j)).max())
    return Certificate(
        *(False, LOCAL, 1 - radius, None, radius),
        f"local, not a certificate: the spectral radius at this z* is {radius:.6g}, which says how "
        "Picard ends near it, and nothing of other solutions or other b",
        sigma.lipschitz,
    )
