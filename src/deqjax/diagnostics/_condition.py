"""How far an eigenvalue may be wrong: its condition number, from a left eigenvector."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from ._jacobian import matmul

TRUSTED = 0.02  # of |λ|: what is less certain is called not converged


class Conditions(NamedTuple):
    """Arrays of the shape of the eigenvalues: see `SpectralRadius`."""

    condition: Any
    uncertainty: Any


def conditions(
    h: jax.Array, values: jax.Array, overlaps: jax.Array, residuals: jax.Array, eps: float
) -> Conditions:
    """Of Ritz values λ with vectors x, from a Krylov space of Jᵀ.

    For unit vectors x and y with residuals r = J x − λ x and s = Jᵀȳ − λȳ, λ is an eigenvalue of
    J + E for some ‖E‖ = max(‖r‖, ‖s‖), its condition number there is κ = 1 / |yᴴx|, and to first
    order J's own is within κ ‖E‖ (Kahan, Parlett and Jiang 1982, "Residual bounds on approximate
    eigensystems of nonnormal matrices", SIAM J. Numer. Anal. 19). So y need be no better than x,
    and of those as good we take the one nearest to x, which is the right one where the eigenspace
    has several dimensions: with P a basis of the Krylov space, δ = ‖r‖ and e = Pᴴx,

        y = P argmin_w ‖(Jᵀ − λ̄) P w‖² + δ² ‖w − e‖².

    H alone, without a left space, sees the condition number of λ in the space of x only, which is
    far smaller for a J far from normal.

    Args:
        h: H̃, (batch, m + 1, m), with Jᵀ P = P̃ H̃.
        values: λ, (batch, k), complex.
        overlaps: e, (batch, m, k).
        residuals: ‖r‖, (batch, k).
        eps: relative precision to which J is known.
    """
    m = h.shape[-1]
    floor = rounding(h[:, :m], eps)[:, None]
    delta = residuals + floor

    def one(h, value, e, delta):
        shifted = h - jnp.conj(value) * jnp.eye(m + 1, m)
        delta = jnp.where(delta > 0, delta, 1)
        # By QR: the normal equations would square what is nearly singular here.
        q, r = jnp.linalg.qr(jnp.concatenate([shifted, delta * jnp.eye(m, dtype=e.dtype)]))
        w = solve_triangular(r, delta * matmul(jnp.conj(q[m + 1 :].T), e[:, None])[:, 0])
        length = jnp.linalg.norm(w)
        w = w / jnp.where(length == 0, 1, length)
        return jnp.abs(jnp.vdot(w, e)), jnp.linalg.norm(matmul(shifted, w[:, None]))

    def sample(h, values, overlaps, delta):
        return lax.map(lambda x: one(h, *x), (values, overlaps.T, delta), batch_size=8)

    cosine, left = jax.vmap(sample)(h, values, overlaps, delta)
    error = jnp.maximum(delta, left) / jnp.minimum(cosine, 1)
    return Conditions(jnp.where(delta > 0, error / jnp.where(delta > 0, delta, 1), 1), error)


def rounding(h: Any, eps: float) -> Any:
    """‖E‖ of the J + E whose eigenvalues are found, about √m ε ‖H‖_F for ε of the arithmetic.

    More where J itself is known no better than to `eps`; and Arnoldi's method takes what is below
    10 ε for nothing. (batch,).
    """
    m = h.shape[-1]
    scale = max(float(np.finfo(np.dtype(h.dtype)).eps) * max(m**0.5, 10), eps)
    return scale * (h**2).sum(axis=(-2, -1)) ** 0.5


def dense_conditions(matrices: np.ndarray, vectors: np.ndarray, eps: float) -> Conditions:
    """The same of all eigenvalues, (batch, n), from all eigenvectors, (batch, n, n)."""

    def one(v):
        if not np.isfinite(v).all():
            return np.full(v.shape[0], np.nan)
        try:  # the rows of V⁻¹ are the left eigenvectors, with yᵢᴴxᵢ = 1
            return np.linalg.norm(np.linalg.inv(v), axis=1) * np.linalg.norm(v, axis=0)
        except np.linalg.LinAlgError:
            return np.full(v.shape[0], np.inf)

    condition = np.stack([one(v) for v in vectors])
    floor = rounding(matrices, eps)[:, None]
    with np.errstate(invalid="ignore"):
        return Conditions(condition, np.where(floor == 0, 0.0, condition * floor))


def sentence(radius, uncertainty) -> str:
    """What is known about a spectral radius, or those of a batch, in a few words."""
    radius, uncertainty = np.ravel(radius), np.ravel(uncertainty)
    unsure = ~(uncertainty <= TRUSTED * radius)
    if radius.size == 1:
        said = f"spectral radius {radius[0]:.3g}"
        return f"{said} ± {uncertainty[0]:.1g}, not converged" if unsure[0] else said
    said = f"spectral radii {radius.min():.3g} to {radius.max():.3g}"
    return f"{said}, {unsure.sum()} of {radius.size} not converged" if unsure.any() else said
