"""GMRES as a solver: for affine equations, adjoint ones above all."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from .._errors import check_integer
from ._krylov import gmres
from .base import Cell, Point, Solver, Step, no_reverse_mode


@dataclass(frozen=True, kw_only=True)
class GMRES(Solver):
    """z⁺ = z + d,  ‖(I − J) d − r‖ as small as the tolerance asks,  r = f(z) − z.

    For an affine f, such as an adjoint equation: a step is one cycle of GMRES (Saad and Schultz
    1986) on Jacobian-vector products of f, a further step a restart. On a nonlinear f it is
    Newton's method without a line search; use 'newton_krylov' there.

    An evaluation in `f_evals` is one of f or one Jacobian-vector product, which costs about as
    much. f needs a forward-mode derivative: an f that itself calls `fixed_point` must do so with
    `forward_mode=True`.

    Attributes:
        memory: largest Krylov space. State kept while a step runs: memory·|z|, in float32 at least.
    """

    memory: int = 30

    name = "gmres"

    def __post_init__(self):
        super().__post_init__()
        check_integer("memory", self.memory, least=1)

    def unrolled(self):
        raise no_reverse_mode(self)

    def init(self, point, max_steps):
        return ()

    def step(self, f, point, state, k, active):
        """z⁺ = z + d."""
        d, products = self._direction(f, point, 0.0, active)
        return Step(f.at(f.plus(point.z, d)), state, products + 2)

    def _direction(self, f: Cell, point: Point, forcing, active):
        """d with ‖(I − J) d − r‖ ≤ max(η ‖r‖, half the tolerance), and its products."""
        target = jnp.maximum(forcing * point.norms[0], 0.5 * f.limit(point))
        matvec = f.linearised(point.z)
        return gmres(matvec, point.r, f=f, memory=self.memory, target=target, active=active)
