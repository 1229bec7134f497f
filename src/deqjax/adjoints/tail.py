"""Back-propagation through a few applications of f after the solve."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from .._errors import check_integer
from .._solution import Stats
from .._state import largest, safe_norm, select
from .base import Adjoint


@dataclass(frozen=True, kw_only=True)
class Tail(Adjoint):
    """Approximate: the gradient of `steps` applications of f from the z that the solve returned.

    z⁺ = f(z, θ), `steps` times from a z that counts as a constant, differentiated as plain code:
    θ̄ = Σᵢ (∂fᵢ/∂θ)ᵀ J_{i+1}ᵀ … J_kᵀ v, each J and ∂f/∂θ at its own iterate. `Phantom` holds both at
    z*; where the solve has converged the two agree (for damping 1), and where it has not, this one
    still is the gradient of a computation, which the implicit gradient is not. Recurrent-depth
    models are trained so (Geiping et al. 2025, arXiv 2502.05171): iterate without a gradient, then
    differentiate a few steps more. The value stays the z of the solve.

    Use it while solves do not converge yet, and 'implicit' afterwards: the error falls like the
    spectral radius of J to the power `steps`, and does not fall at all where that is above one.
    Memory is that of `steps` applications. The report's residual is ‖J₁ᵀ … J_kᵀ v‖, what the
    gradient leaves out; `Status.MAX_STEPS` says that nothing was solved.

    Attributes:
        steps: applications that are differentiated, >= 1.
    """

    steps: int = 5

    name = "tail"

    def __post_init__(self):
        super().__post_init__()
        check_integer("steps", self.steps, least=1)

    def pull_back(self, cell, theta, end, v, solve):
        """θ̄ of f(… f(z, θ) …, θ)."""

        def applied(z, theta):
            def step(z, _):
                fz = cell(z, theta)
                # A sample of which f is no number stays where it is, at an f that has derivatives.
                return select(jnp.isfinite(largest(fz)), fz, z), None

            return lax.scan(step, z, length=self.steps)[0]

        _, pull = jax.vjp(applied, end.z, theta)
        left_out, theta_bar = pull(v)
        return theta_bar, Stats.unsolved(self.steps, safe_norm(left_out), safe_norm(v))
