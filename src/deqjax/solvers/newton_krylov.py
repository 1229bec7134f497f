"""Newton's method with the linear systems solved by GMRES."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .._errors import check_fraction
from .._state import norm, zero_scalars
from ._line_search import backtrack
from .base import Step
from .gmres import GMRES


class NewtonState(NamedTuple):
    """η, how exactly the next linear system is solved, relative to its right-hand side."""

    forcing: jax.Array


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(GMRES):
    """z⁺ = z + t d,  ‖(I − J) d − r‖ ≤ η ‖r‖,  r = f(z) − z,  t from a line search.

    Inexact Newton: GMRES on Jacobian-vector products of f, solved more exactly as the residual
    falls (Eisenstat and Walker 1996, choice 2, with γ = 0.9), and Armijo's condition on ‖r‖. It
    converges from further away than the quasi-Newton methods and quadratically at the end, but a
    step costs several evaluations: first choice for hard root finding, rarely for a trained DEQ.

    An evaluation in `f_evals` is one of f or one Jacobian-vector product. f needs a forward-mode
    derivative: an f that itself calls `fixed_point` must do so with `forward_mode=True`.

    Attributes:
        memory: largest Krylov space. State kept while a step runs: memory·|z|, in float32 at least.
        forcing: η of the first step, in (0, 1), and the largest that is used.
    """

    forcing: float = 0.1

    name = "newton_krylov"

    def __post_init__(self):
        super().__post_init__()
        check_fraction("forcing", self.forcing)

    def init(self, point, max_steps):
        return NewtonState(zero_scalars(point.z) + self.forcing)

    def for_adjoint(self):
        return GMRES(memory=self.memory, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps)

    def step(self, f, point, state, k, active):
        """z⁺ = z + t d, then η for the next step."""
        eta = state.forcing
        d, products = self._direction(f, point, eta, active)
        new, trials = backtrack(f, point, d, active)
        before, after = norm(point.r), norm(new.r)
        # η⁺ = 0.9 (‖r⁺‖ / ‖r‖)², but not much below the last one while that was large.
        ratio = after / jnp.where(before > 0, before, 1)
        safeguard = jnp.where(0.9 * eta**2 > 0.1, 0.9 * eta**2, 0.0)
        forcing = jnp.clip(jnp.maximum(0.9 * ratio**2, safeguard), 0.0, self.forcing)
        forcing = jnp.where(jnp.isfinite(forcing), forcing, self.forcing)
        return Step(new, NewtonState(forcing), products + 1 + trials)
