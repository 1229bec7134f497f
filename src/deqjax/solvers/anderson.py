"""Anderson acceleration, type II, in difference form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._errors import check_dtype, check_integer, check_tolerance
from .._small import solve_small
from .._state import (
    History,
    diagonal,
    dot,
    finite,
    put_column,
    put_row,
    subtract,
    zero_scalars,
)
from .base import Solver, Step, eps


class AndersonState(NamedTuple):
    """The last m differences: ΔR of residuals, ΔY = Δz + β Δr of what they suggest; ΔRᵀΔR, ΔRᵀr,
    and the γ of the next step."""

    d_r: History
    d_y: History
    gram: jax.Array
    d_r_r: jax.Array
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
    ΔRᵀr changes by. The Gram's columns are scaled to unit length (D holds
    the lengths), so the ridge λ is relative to its trace and nothing depends on the scale of z.

    Attributes:
        memory: history length m, in differences; 0 is Picard. State kept: 2·m·|z|.
        mixing: β > 0; 1 uses f(z) fully, smaller values are cautious.
        ridge: λ as a fraction of the mean of the scaled Gram's diagonal; None means 10 times the
            round-off of the arithmetic (1.2e-6 in float32, 2.2e-15 in float64).
        history_dtype: store ΔR and ΔY in this dtype, such as "bfloat16"; None means the state's.
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
            gram=zero_scalars(point.z, m, m),
            d_r_r=zero_scalars(point.z, m),
            gamma=zero_scalars(point.z, m),
        )

    def resume(self, state, point, k):
        d_r_r = state.d_r.dots(point.residual)
        return state._replace(d_r_r=d_r_r, gamma=self._gamma(state.gram, d_r_r, eps(point.z)))

    def step(self, f, point, state, k, active):
        """z⁺ = z + β r − ΔY γ, then one new column for ΔR and ΔY."""
        r, beta = point.residual, self.mixing
        memory = state.gram.shape[-1]
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
        d_r_r = state.d_r_r + row if state.d_r.holds(r) else state.d_r.dots(new.residual)
        row = put_column(slot, dot(d_r, d_r), row)
        gram = put_column(slot, row, put_row(slot, row, state.gram))
        d_r_r = put_column(slot, dot(d_r, new.residual), d_r_r)
        kept = finite(active, row, d_r_r)
        return Step(
            new.replacing(r, change, kept),
            AndersonState(
                d_r=state.d_r.push(d_r, slot, kept),
                # It waits for no product: it is written while they are taken.
                d_y=state.d_y.push(d_y, slot, finite(active, new.norms[0])),
                gram=gram,
                d_r_r=d_r_r,
                gamma=self._gamma(gram, d_r_r, eps(point.z)),
            ),
        )

    def _picard(self, f, point):
        """z⁺ = z + β r; f(z) itself where β = 1."""
        if self.mixing == 1.0:
            return f.at(point.fz)
        return f.moved(point.z, jax.tree.map(lambda r: self.mixing * r, point.residual))[1]

    def _gamma(self, gram, b, round_off):
        squares = diagonal(gram)
        scale = jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)
        ridge = 10 * round_off if self.ridge is None else self.ridge
        scaled = gram * scale[:, :, None] * scale[:, None, :]
        scaled += ridge * jnp.eye(gram.shape[-1], dtype=gram.dtype)
        return scale * solve_small(scaled, scale * b, drop=0.1 * ridge)
