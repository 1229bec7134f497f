"""Picard iteration, damped: the baseline, and the right choice for strong contractions."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from .._errors import check_fraction
from .base import Solver, Step


@dataclass(frozen=True, kw_only=True)
class Picard(Solver):
    """z⁺ = (1 − λ) z + λ f(z).

    Converges linearly at the rate ρ((1 − λ) I + λ J), so only where the Jacobian J of f at z* has a
    spectral radius below one (for λ = 1). No history: the least memory of all solvers.

    Do not use it for trained DEQs, whose Jacobians drift towards radius one: 'anderson' or
    'broyden' need far fewer evaluations there.

    Attributes:
        damping: λ in (0, 1]; smaller values tame oscillation (negative eigenvalues of J).
    """

    damping: float = 1.0

    name = "picard"
    differentiates = False

    def __post_init__(self):
        super().__post_init__()
        check_fraction("damping", self.damping)

    @property
    def learns_slopes(self):
        return False

    def init(self, point, max_steps):
        return ()

    def step(self, f, point, state, k, active):
        """z⁺ = (1 − λ) z + λ f(z)."""
        if self.damping == 1.0:
            z = point.fz
        else:
            z = f.plus(point.z, jax.tree.map(lambda r: self.damping * r, point.r))
        return Step(f.at(z), state)
