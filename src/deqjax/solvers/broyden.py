"""Good Broyden, limited memory, in compact form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._errors import check_dtype, check_integer
from .._small import solve_small
from .._state import History, dot, finite, put_column, put_row, subtract, zero_scalars
from ._line_search import backtrack
from .base import Solver, Step, eps

# How much ‖g‖ may grow in a step of the line search.
GROWTH = 2.0


class BroydenState(NamedTuple):
    """The last m differences ΔZ of iterates and ΔF of their values; K, 1/‖s‖, ΔZᵀg, and K⁻¹ΔZᵀg
    for the next step."""

    d_z: History
    d_f: History
    kernel: jax.Array
    inverse_length: jax.Array
    d_z_g: jax.Array
    gamma: jax.Array


@dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """z⁺ = z − B⁻¹ g(z),  g(z) = f(z) − z,  B⁻¹ = −I + ΔF K⁻¹ ΔZᵀ.

    Broyden's "good" method with B₀ = −I, as the DEQ paper uses it (Bai et al. 2019), in the compact
    representation of Byrd, Nocedal and Schnabel (Math. Programming 63, 1994). With the last
    `memory` pairs sᵢ = Δzᵢ, yᵢ = Δgᵢ (so that Δfᵢ = sᵢ + yᵢ) their formula for B₀ = −I becomes

        K = ΔZᵀΔF − triu(ΔZᵀΔZ),    z⁺ = f(z) − ΔF K⁻¹ ΔZᵀ g(z),

    one small system, one pass over ΔZ and two over ΔF: the new column of K, ΔZᵀy, is also what ΔZᵀg
    changes by. Dropping the oldest pair leaves exactly the matrix that the remaining pairs build
    from B₀, so the secant condition B Δz = Δg of the newest pair always holds. Pairs that would
    make B singular are skipped.

    Attributes:
        memory: how many pairs are kept. State kept: 2·m·|z|.
        line_search: shorten the step until ‖g‖ no more than doubles; its evaluations count in
            `f_evals`. For root finding far from the solution; a DEQ rarely needs it. A quasi-Newton
            direction need not descend, and to insist on descent (Armijo) cuts steps so short that
            they teach nothing: on the project's set of test problems it solves fewer.
        history_dtype: store ΔZ and ΔF in this dtype, such as "bfloat16"; None means the state's.
    """

    memory: int = 10
    line_search: bool = False
    history_dtype: Any = None

    name = "broyden"

    def __post_init__(self):
        super().__post_init__()
        check_integer("memory", self.memory, least=1)
        check_dtype("history_dtype", self.history_dtype)

    @property
    def has_inner_loops(self):
        return self.line_search

    def init(self, point, max_steps):
        m = self.memory
        zeros = History.zeros(point.z, m, self.history_dtype, after=point.residual)
        return BroydenState(
            d_z=zeros,
            d_f=zeros,
            kernel=zero_scalars(point.z, m, m),
            inverse_length=zero_scalars(point.z, m),
            d_z_g=zero_scalars(point.z, m),
            gamma=zero_scalars(point.z, m),
        )

    def resume(self, state, point, k):
        state = state._replace(d_z_g=state.d_z.dots(point.residual))
        return self._prepared(state, k, eps(point.z))

    def step(self, f, point, state, k, active):
        """z⁺ = f(z) − ΔF K⁻¹ ΔZᵀ g, then the pair (Δz, Δf)."""
        slot = k % state.kernel.shape[-1]
        r = point.residual
        direction = subtract(r, state.d_f.combine(state.gamma))
        if self.line_search:
            new, f_evals = backtrack(f, point, direction, active, growth=GROWTH)
            s = subtract(new.z, point.z)
        else:
            (s, new), f_evals = f.moved(point.z, direction), 1
        y = subtract(new.residual, r)
        state, kept = self._learn(state, slot, s, y, new.residual, finite(active, new.norms[0]))
        return Step(new.replacing(r, y, kept), self._prepared(state, k + 1, eps(point.z)), f_evals)

    def _learn(self, state, slot, s, y, g, active):
        """The state with the pair (s, y) in `slot`, and where it was kept; g is the residual that
        it led to.

        Kᵢⱼ = sᵢᵀΔfⱼ − sᵢᵀsⱼ = sᵢᵀyⱼ where sᵢ is not newer than sⱼ, and sᵢᵀΔfⱼ where it is.
        """
        # All of K comes from the pair as it is before the history rounds it: where J is close to I,
        # y is the small difference of two large vectors, s and Δf.
        d_f = jax.tree.map(jnp.add, s, y)
        row, column = state.d_f.dots(s), state.d_z.dots(y)
        # Where storing rounds, ΔZᵀg cannot be carried along: it takes a pass of its own.
        d_z_g = state.d_z_g + column if state.d_z.holds(s) else state.d_z.dots(g)
        square = dot(s, s)
        length = jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
        small = dict(
            kernel=put_column(
                slot, put_column(slot, dot(s, y), column), put_row(slot, row, state.kernel)
            ),
            inverse_length=put_column(slot, length, state.inverse_length),
            d_z_g=put_column(slot, dot(s, g), d_z_g),
        )
        kept = finite(active, row, column, d_z_g)
        d_z = state.d_z.push(s, slot, kept)
        # It waits for no product with y: it is written while they are taken.
        d_f = state.d_f.push(d_f, slot, finite(active, row))
        return state._replace(d_z=d_z, d_f=d_f, **small), kept

    def _prepared(self, state, k, round_off):
        """The state with K⁻¹ ΔZᵀ g, by eliminating the pairs from oldest to newest, each scaled to
        ‖s‖ = 1. k: how many steps made it."""
        oldest = k % state.kernel.shape[-1]
        scale = state.inverse_length
        kernel = state.kernel * scale[:, :, None] * scale[:, None, :]
        b = scale * state.d_z_g
        gamma = scale * solve_small(kernel, b, drop=10 * round_off, first=oldest)
        return state._replace(gamma=gamma)

    @staticmethod
    def minus_inverse_transposed(state: BroydenState, steps, w):
        """−B⁻ᵀ w = w − ΔZ K⁻ᵀ ΔFᵀ w in float32 at least, with the B that `steps` steps, (batch,),
        left behind."""
        scale = state.inverse_length
        memory = scale.shape[-1]
        kernel = state.kernel * scale[:, :, None] * scale[:, None, :]
        b = scale * state.d_f.dots(w)
        # Oldest pair first, as in a step; each sample stopped at its own.
        order = (steps[:, None] + jnp.arange(memory)) % memory
        kernel = jax.vmap(lambda k, o: k[o][:, o].T)(kernel, order)
        gamma = solve_small(kernel, jnp.take_along_axis(b, order, axis=1), drop=10 * eps(w))
        gamma = jax.vmap(lambda g, o: jnp.zeros_like(g).at[o].set(g))(gamma, order)
        return subtract(w, state.d_z.combine(scale * gamma))
