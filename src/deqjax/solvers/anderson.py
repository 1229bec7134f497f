"""Anderson acceleration, type II, in difference form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from .._errors import check_dtype, check_integer, check_tolerance
from .._small import put, replace_pair, solve_small
from .._state import History, dot, finite, subtract, zero_scalars
from .base import Solver, Step, eps


class AndersonState(NamedTuple):
    """The last m differences: ΔR of residuals, ΔY = Δz + β Δr of what they suggest; the system of
    `_small`, [ΔRᵀΔR | ΔRᵀr | ‖Δrᵢ‖²], and the γ of the next step."""

    d_r: History
    d_y: History
    system: jax.Array
    gamma: jax.Array


@dataclass(frozen=True, kw_only=True)
class Anderson(Solver):
    """z⁺ = z + β r − ΔY γ,  γ = argmin ‖r − ΔR γ‖² + λ ‖Dγ‖²,  with r = f(z) − z.

    Type II Anderson acceleration in the difference form of Walker and Ni (SIAM J. Numer. Anal.
    49(4), 2011): ΔR and ΔY hold the last `memory` differences of r and of z + β r. It is the same
    step as z⁺ = Σ αᵢ [β f(zᵢ) + (1 − β) zᵢ] with Σ αᵢ = 1, but differences keep the small
    least-squares problem accurate as the residual falls. On a linear f with enough memory it is
    GMRES in disguise.

    A step passes over ΔR once and over ΔY once: the new row of the Gram matrix, ΔRᵀΔr, is also what
    ΔRᵀr changes by. D holds the lengths of ΔR's columns: the ridge is relative to each of them, as
    if they were scaled to unit length, and nothing depends on the scale of z.

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

    def __post_init__(self):
        super().__post_init__()
        check_integer("memory", self.memory, least=0)
        check_tolerance("ridge", self.ridge)
        check_dtype("history_dtype", self.history_dtype)
        if not 0 < self.mixing <= 2:
            raise ValueError(f"mixing must be in (0, 2], such as 1.0; got {self.mixing!r}")

    def init(self, point, max_steps):
        m = self.memory
        zeros = History.zeros(point.z, m, self.history_dtype, after=point.residual)
        return AndersonState(
            d_r=zeros,
            d_y=zeros,
            system=zero_scalars(point.z, m, m + 2),
            gamma=zero_scalars(point.z, m),
        )

    def resume(self, state, point, k):
        d_r_r = state.d_r.dots(point.residual)
        system = state.system.at[..., -2].set(d_r_r)
        return state._replace(system=system, gamma=self._gamma(system, eps(point.z)))

    def step(self, f, point, state, k, active):
        """z⁺ = z + β r − ΔY γ, then one new column for ΔR and ΔY."""
        r, beta = point.residual, self.mixing
        memory = state.gamma.shape[-1]
        if memory == 0:
            return Step(self._picard(f, point), state)

        step = jax.tree.map(lambda r, y: beta * r - y, r, state.d_y.combine(state.gamma))
        step, new = f.moved(point.z, step)

        slot = k % memory
        change = subtract(new.residual, r)
        d_r = state.d_r.rounded(change)
        d_y = jax.tree.map(lambda dz, dr: dz + beta * dr, step, change)
        row = state.d_r.dots(d_r)
        # Where storing rounds, ΔRᵀr cannot be carried along: it takes a pass of its own.
        exact = state.d_r.holds(r)
        d_r_r = state.system[..., -2] + row if exact else state.d_r.dots(new.residual)
        square, size = dot(d_r, d_r), new.norms[0]
        kept = finite(active, size, square, after=(row, d_r_r))
        system = replace_pair(
            state.system,
            slot,
            kept,
            row,
            column=put(slot, square, row),
            b=put(slot, dot(d_r, new.residual), d_r_r),
            square=square,
        )
        return Step(
            new.replacing(r, change, kept),
            AndersonState(
                d_r=state.d_r.push(d_r, slot, kept),
                # It waits for no product: it is written while they are taken.
                d_y=state.d_y.push(d_y, slot, finite(active, size)),
                system=system,
                gamma=self._gamma(system, eps(point.z)),
            ),
        )

    def _picard(self, f, point):
        """z⁺ = z + β r; f(z) itself where β = 1."""
        if self.mixing == 1.0:
            return f.at(point.fz)
        return f.moved(point.z, jax.tree.map(lambda r: self.mixing * r, point.residual))[1]

    def _gamma(self, system, round_off):
        ridge = 10 * round_off if self.ridge is None else self.ridge
        # More pairs than there are unknowns, or parallel ones: the pivots are the ridge, give or
        # take the rounding of products. Such a γ does no harm, and its derivative would be noise.
        return solve_small(system, 0.1 * ridge, ridge, noise=1000 * round_off)
