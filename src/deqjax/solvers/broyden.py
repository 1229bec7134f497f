"""Good Broyden, limited memory, in compact form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import check_dtype, check_integer
from .._small import joined, solve_small
from .._state import subtract
from ._line_search import backtrack
from ._pairs import Pairs
from .base import Solver, Step, eps, no_reverse_mode

# How much ‖g‖ may grow in a step of the line search.
GROWTH = 2.0


class BroydenState(Pairs):
    """W = ΔZ, differences of iterates; Y = ΔF, those of their values. The system is K."""


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
    differentiates = False

    def __post_init__(self):
        super().__post_init__()
        check_integer("memory", self.memory, least=1)
        check_dtype("history_dtype", self.history_dtype)

    def unrolled(self):
        if self.line_search:
            raise no_reverse_mode(self)
        return self

    def init(self, point, max_steps):
        return BroydenState.none(point, self.memory, self.history_dtype)

    def resume(self, state, point, k):
        return self._solved(state.beside(point.r), k, point)

    def step(self, f, point, state, k, active):
        """z⁺ = f(z) − ΔF K⁻¹ ΔZᵀ g, then the pair (Δz, Δf)."""
        r = point.r
        direction = subtract(r, state.correction())
        if self.line_search:
            new, f_evals = backtrack(f, point, direction, active, growth=GROWTH)
            s = f.difference(new.z, point.z)
        else:
            (s, new), f_evals = f.moved(point.z, direction), 1

        # All of K comes from the pair as it is before the history rounds it: where J is close to I,
        # y is the small difference of two large vectors, s and Δf. Kᵢⱼ is sᵢᵀΔfⱼ − sᵢᵀsⱼ = sᵢᵀyⱼ
        # where sᵢ is not newer than sⱼ, and sᵢᵀΔfⱼ where it is.
        y = subtract(new.r, r)
        d_f = jax.tree.map(jnp.add, s, y)
        row = state.y.dots(s)
        state, kept = state.learn(k % state.memory, s, d_f, y, new, active, row)
        return Step(new.replacing(r, y, kept), self._solved(state, k + 1, point), f_evals)

    def _solved(self, pairs, k, point):
        """γ = K⁻¹ ΔZᵀ g, by eliminating the pairs from oldest to newest. k: how many steps made
        them."""
        return pairs.solved(10 * eps(point.z), first=k % pairs.memory)

    @staticmethod
    def minus_inverse_transposed(state: BroydenState, steps, w):
        """−B⁻ᵀ w = w − ΔZ K⁻ᵀ ΔFᵀ w in float32 at least, with the B that `steps` steps, (batch,),
        left behind."""
        kernel, squares = state.system[..., :-2], state.system[..., -1]
        memory = squares.shape[-1]
        b = state.y.dots(w)
        # Oldest pair first, as in a step; each sample stopped at its own.
        order = (steps[:, None] + jnp.arange(memory)) % memory
        kernel = jax.vmap(lambda k, o: k[o][:, o].T)(kernel, order)
        b, squares = (jnp.take_along_axis(x, order, axis=1) for x in (b, squares))
        gamma = solve_small(joined(kernel, b, squares), 10 * eps(w))
        gamma = jax.vmap(lambda g, o: jnp.zeros_like(g).at[o].set(g))(gamma, order)
        return subtract(w, state.w.combine(gamma))
