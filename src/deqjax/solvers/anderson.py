"""Anderson acceleration, type II, in difference form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from .._errors import check_dtype, check_integer, check_tolerance
from .._state import subtract
from ._pairs import Pairs
from .base import Solver, Step, eps


class AndersonState(Pairs):
    """W = ΔR, differences of residuals; Y = ΔY, those of z + β r. The system is a Gram matrix."""


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """z⁺ = z + β r − ΔY γ,  γ = argmin ‖r − ΔR γ‖² + λ ‖Dγ‖²,  with r = f(z) − z.

    Type II Anderson acceleration in the difference form of Walker and Ni (SIAM J. Numer. Anal.
    49(4), 2011): ΔR and ΔY hold the last `memory` differences of r and of z + β r. It is the same
    step as z⁺ = Σ αᵢ [β f(zᵢ) + (1 − β) zᵢ] with Σ αᵢ = 1, but differences keep the small
    least-squares problem accurate as the residual falls. On a linear f with enough memory it is
    GMRES in disguise.

    A step passes over ΔR once and over ΔY once: the new row of the Gram matrix, ΔRᵀΔr, is also what
    ΔRᵀr changes by (`Pairs`). D holds the lengths of ΔR's columns: the ridge is relative to each of
    them, as if they were scaled to unit length, and nothing depends on the scale of z.

    Attributes:
        memory: history length m, in differences; 0 is Picard. State kept: 2·m·|z|.
        mixing: β > 0; 1 uses f(z) fully, smaller values are cautious.
        ridge: λ, relative to the diagonal of the Gram matrix; None means 10 times the round-off of
            the arithmetic (1.2e-6 in float32, 2.2e-15 in float64).
        history_dtype: store ΔR and ΔY in this dtype, such as "bfloat16"; None means the state's.
            float16 has too small a range for the differences of a small state.
    """

    memory: int = 5
    mixing: float = 1.0
    ridge: float | None = None
    history_dtype: Any = None

    name = "anderson"
    differentiates = False

    def __post_init__(self):
        super().__post_init__()
        check_integer("memory", self.memory, least=0)
        check_tolerance("ridge", self.ridge)
        check_dtype("history_dtype", self.history_dtype)
        if not 0 < self.mixing <= 2:
            raise ValueError(f"mixing must be in (0, 2], such as 1.0; got {self.mixing!r}")

    def init(self, point, max_steps):
        return AndersonState.none(point, self.memory, self.history_dtype)

    def resume(self, state, point, k):
        return self._solved(state.beside(point.r), point)

    def step(self, f, point, state, k, active):
        """z⁺ = z + β r − ΔY γ, then one new column for ΔR and ΔY."""
        r, beta = point.r, self.mixing
        if state.memory == 0:
            return Step(self._picard(f, point), state)
        direction = jax.tree.map(lambda r, y: beta * r - y, r, state.correction())
        step, new = f.moved(point.z, direction)

        change = subtract(new.r, r)
        d_r = state.w.rounded(change)
        d_y = jax.tree.map(lambda dz, dr: dz + beta * dr, step, change)
        state, kept = state.learn(k % state.memory, d_r, d_y, d_r, new, active)
        return Step(new.replacing(r, change, kept), self._solved(state, point))

    def _picard(self, f, point):
        """z⁺ = z + β r; f(z) itself where β = 1."""
        if self.mixing == 1.0:
            return f.at(point.fz)
        return f.moved(point.z, jax.tree.map(lambda r: self.mixing * r, point.r))[1]

    def _solved(self, pairs, point):
        round_off = eps(point.z)
        ridge = 10 * round_off if self.ridge is None else self.ridge
        # More pairs than there are unknowns, or parallel ones: the pivots are the ridge, give or
        # take the rounding of products. Such a γ does no harm, and its derivative would be noise.
        return pairs.solved(0.1 * ridge, ridge, noise=1000 * round_off)
