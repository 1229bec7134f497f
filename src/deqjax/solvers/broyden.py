"""Good Broyden, limited memory, in compact form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._errors import check_dtype, check_integer
from .._small import joined, put, replace_pair, solve_small
from .._state import History, dot, finite, subtract, zero_scalars
from ._line_search import backtrack
from .base import Solver, Step, eps

# How much ‖g‖ may grow in a step of the line search.
GROWTH = 2.0


class BroydenState(NamedTuple):
    """The last m differences ΔZ of iterates and ΔF of their values; the system of `_small`,
    [K | ΔZᵀg | ‖sᵢ‖²], and K⁻¹ΔZᵀg for the next step."""

    d_z: History
    d_f: History
    system: jax.Array
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
            float16 has too small a range for the differences of a small state.
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
            system=zero_scalars(point.z, m, m + 2),
            gamma=zero_scalars(point.z, m),
        )

    def resume(self, state, point, k):
        d_z_g = state.d_z.dots(point.residual)
        state = state._replace(system=state.system.at[..., -2].set(d_z_g))
        return self._prepared(state, k, eps(point.z))

    def step(self, f, point, state, k, active):
        """z⁺ = f(z) − ΔF K⁻¹ ΔZᵀ g, then the pair (Δz, Δf)."""
        slot = k % state.gamma.shape[-1]
        r = point.residual
        direction = subtract(r, state.d_f.combine(state.gamma))
        if self.line_search:
            new, f_evals = backtrack(f, point, direction, active, growth=GROWTH)
            s = f.difference(new.z, point.z)
        else:
            (s, new), f_evals = f.moved(point.z, direction), 1
        y = subtract(new.residual, r)
        state, kept = self._learn(state, slot, s, y, new, active)
        return Step(new.replacing(r, y, kept), self._prepared(state, k + 1, eps(point.z)), f_evals)

    def _learn(self, state, slot, s, y, new, active):
        """The state with the pair (s, y), which led to the point `new`, in `slot`, and where it was
        kept.

        Kᵢⱼ = sᵢᵀΔfⱼ − sᵢᵀsⱼ = sᵢᵀyⱼ where sᵢ is not newer than sⱼ, and sᵢᵀΔfⱼ where it is.
        """
        # All of K comes from the pair as it is before the history rounds it: where J is close to I,
        # y is the small difference of two large vectors, s and Δf.
        d_f, g, size = jax.tree.map(jnp.add, s, y), new.residual, new.norms[0]
        row, column = state.d_f.dots(s), state.d_z.dots(y)
        # Where storing rounds, ΔZᵀg cannot be carried along: it takes a pass of its own.
        exact = state.d_z.holds(s)
        d_z_g = state.system[..., -2] + column if exact else state.d_z.dots(g)
        square = dot(s, s)
        kept = finite(active, size, square, after=(row, column, d_z_g))
        system = replace_pair(
            state.system,
            slot,
            kept,
            row,
            column=put(slot, dot(s, y), column),
            b=put(slot, dot(s, g), d_z_g),
            square=square,
        )
        d_z = state.d_z.push(s, slot, kept)
        # It waits for no product with y: it is written while they are taken.
        d_f = state.d_f.push(d_f, slot, finite(active, size, square, after=(row,)))
        return state._replace(d_z=d_z, d_f=d_f, system=system), kept

    def _prepared(self, state, k, round_off):
        """The state with K⁻¹ ΔZᵀ g, by eliminating the pairs from oldest to newest. k: how many
        steps made it."""
        oldest = k % state.gamma.shape[-1]
        gamma = solve_small(state.system, 10 * round_off, 0.0, oldest)
        return state._replace(gamma=gamma)

    @staticmethod
    def minus_inverse_transposed(state: BroydenState, steps, w):
        """−B⁻ᵀ w = w − ΔZ K⁻ᵀ ΔFᵀ w in float32 at least, with the B that `steps` steps, (batch,),
        left behind."""
        kernel, squares = state.system[..., :-2], state.system[..., -1]
        memory = squares.shape[-1]
        b = state.d_f.dots(w)
        # Oldest pair first, as in a step; each sample stopped at its own.
        order = (steps[:, None] + jnp.arange(memory)) % memory
        kernel = jax.vmap(lambda k, o: k[o][:, o].T)(kernel, order)
        b, squares = (jnp.take_along_axis(x, order, axis=1) for x in (b, squares))
        gamma = solve_small(joined(kernel, b, squares), 10 * eps(w))
        gamma = jax.vmap(lambda g, o: jnp.zeros_like(g).at[o].set(g))(gamma, order)
        return subtract(w, state.d_z.combine(gamma))
