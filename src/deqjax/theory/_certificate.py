"""What a certificate is, and what follows from one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ._activations import Activation, as_activation
from ._outward import EPS, two_norm

# The norm in which each kind bounds.
NORMS = {"inf_norm": "inf", "perron": "inf", "mu_inf": "inf", "monotone": "2"}


@dataclass(frozen=True)
class Certificate:
    """Whether z = σ(A z + b) has exactly one solution for every b, and why. `str()` is the reason.

    Attributes:
        holds: True is a proof, for A as the numbers it is made of and in exact arithmetic. False is
            none: another method may hold, and an equation without a certificate may be well-posed.
        kind: "inf_norm", "perron", "mu_inf", "monotone", "block_triangular"; "local" is a spectral
            radius and never holds; "refused", nothing is known of the activation; "none".
        margin: 1 − bound: how far from failing.
        vector: v > 0 of the weighted norm maxᵢ |zᵢ|/vᵢ, (n,) float64; None where there is none.
        bound: what must be below 1, rounded up.
        reason: a sentence.
        lipschitz: of the activation; NaN where it was refused.
    """

    holds: bool
    kind: str
    margin: float
    vector: Any
    bound: float
    reason: str
    lipschitz: float = float("nan")

    def __str__(self) -> str:
        return self.reason


def lipschitz_bound(certificate: Certificate, U: Any = None) -> float:
    """How much z* moves at most when x does, for z* = σ(A z* + U x + b) with this certificate.

    With σ's Lipschitz constant L and the certificate's bound κ, ‖Δz‖ ≤ L/(1 − κ) ‖UΔx‖, in the norm
    that the certificate is of: maxᵢ |zᵢ|/vᵢ for "inf_norm", "perron" and "mu_inf" (El Ghaoui et al.
    2021; Jafarpour et al. 2021), ‖·‖₂ for "monotone" (Pabbaraju, Winston, Kolter, ICLR 2021). What
    is returned is for plain norms: ‖Δz‖_∞ ≤ bound·‖Δx‖_∞, or ‖Δz‖₂ ≤ bound·‖Δx‖₂ for "monotone".

    An upper bound for all x, often far above what a z* shows: `deqjax.diagnostics.lipschitz` is a
    lower one, at one z.

    Args:
        certificate: of A and σ.
        U: (n, d); None is the identity: the bound of b ↦ z*.

    Raises:
        ValueError: a certificate that does not hold, or one of blocks, which is of no single norm;
            a U with another number of rows.

    Examples:
        >>> import numpy as np
        >>> from deqjax.theory.wellposed import certify, lipschitz_bound
        >>> round(lipschitz_bound(certify(0.5 * np.eye(2), "relu"), 3 * np.eye(2)), 6)
        6.0
    """
    if not certificate.holds or certificate.kind not in NORMS:
        raise ValueError(
            f"lipschitz_bound needs a certificate that holds and is of one norm ({', '.join(NORMS)}"
            f"); this one is {certificate.kind!r}: {certificate.reason}"
        )
    gain = certificate.lipschitz / certificate.margin * (1 + 4 * EPS)
    u = None if U is None else real_matrix("U", U)
    if NORMS[certificate.kind] == "2":
        return gain if u is None else gain * two_norm(u)
    v = certificate.vector
    size = np.ones(len(v))
    if u is not None:
        if len(u) != len(v):
            raise ValueError(f"U must have {len(v)} rows, one for each entry of z; got {u.shape}")
        size = np.abs(u).sum(axis=1) * (1 + (u.shape[1] + 2) * EPS)
    return float(gain * np.max(v) * np.max(size / v) * (1 + 4 * EPS))


def rescaled(
    A: Any, U: Any, b: Any, vector: Any, activation: str | Activation | Callable
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same equation for z/v: (V⁻¹AV, V⁻¹U, V⁻¹b), V = diag(v); its A has ‖·‖_∞ < 1.

    With the vector of a "perron" certificate (El Ghaoui et al. 2021, section 3). z* is v times the
    solution of the new equation. That needs σ(z/v) = σ(z)/v, so a positively homogeneous σ (relu,
    leaky_relu, abs, identity): with any other the new equation is another one.

    Args:
        A: (n, n).
        U: (n, d).
        b: (..., n).
        vector: v > 0, (n,).
        activation: as in `certify`.

    Raises:
        ValueError: an activation that is not positively homogeneous, or a v that is not positive.

    Examples:
        >>> import numpy as np
        >>> from deqjax.theory.wellposed import certify, rescaled
        >>> A, b = np.array([[0.0, 4.0], [0.1, 0.0]]), np.ones(2)
        >>> v = certify(A, "relu").vector
        >>> scaled, *_ = rescaled(A, np.eye(2), b, v, "relu")
        >>> bool(np.abs(scaled).sum(axis=1).max() < 1)
        True
    """
    sigma = as_activation(activation)
    if not sigma.homogeneous:
        raise ValueError(
            f"rescaling needs σ(z/v) = σ(z)/v, and {sigma.name} is not positively homogeneous: the "
            "rescaled equation would have another solution; use the weighted norm of the "
            "certificate as it is"
        )
    if vector is None or not np.all(np.asarray(vector) > 0):
        raise ValueError("vector must be that of a certificate that holds, with all entries > 0")
    A, U, b = jnp.asarray(A), jnp.asarray(U), jnp.asarray(b)
    v = jnp.asarray(vector, A.dtype)
    return A * (v / v[:, None]), U / v[:, None], b / v


def real_matrix(name: str, given: Any) -> np.ndarray:
    """`given` as float64: exact for what is not wider."""
    if isinstance(given, Tracer):
        raise TypeError(
            f"{name} must have concrete numbers, since a certificate is a Python object: call this "
            "outside jit"
        )
    matrix = np.asarray(given)
    if not any(jnp.issubdtype(matrix.dtype, kind) for kind in (np.floating, np.integer)):
        raise TypeError(f"{name} must be a matrix of real numbers, not {matrix.dtype}")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must be a matrix with two axes; got the shape {matrix.shape}")
    matrix = matrix.astype(np.float64)
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name} has entries that are not finite: nothing can be certified")
    return matrix
