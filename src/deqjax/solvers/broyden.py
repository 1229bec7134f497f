"""Good Broyden, limited memory, in compact form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._errors import check_dtype, check_integer
from .._small import solve_small
from .._state import History, cast_like, dot, subtract, zero_scalars
from .base import Point, Solver, Step, eps


class BroydenState(NamedTuple):
    """The last m differences ΔZ of iterates and ΔF of their values, the small matrix K, and 1/‖s‖.

    K and the lengths lag by one pair until `Broyden.learn`.
    """

    d_z: History
    d_f: History
    kernel: jax.Array
    inverse_length: jax.Array


@dataclass(frozen=True, kw_only=True)
class Broyden(Solver):
    """z⁺ = z − B⁻¹ g(z),  g(z) = f(z) − z,  B⁻¹ = −I + ΔF K⁻¹ ΔZᵀ.

    Broyden's "good" method with B₀ = −I, as the DEQ paper uses it (Bai et al. 2019), in the compact
    representation of Byrd, Nocedal and Schnabel (Math. Programming 63, 1994). With the last
    `memory` pairs sᵢ = Δzᵢ, yᵢ = Δgᵢ (so that Δfᵢ = sᵢ + yᵢ) their formula for B₀ = −I becomes

        K = ΔZᵀΔF − triu(ΔZᵀΔZ),    z⁺ = f(z) − ΔF K⁻¹ ΔZᵀ g(z),

    one small system and one pass over each history, the shape of an Anderson step. Dropping the
    oldest pair leaves exactly the matrix that the remaining pairs build from B₀, so the secant
    condition B Δz = Δg of the newest pair always holds. Pairs that would make B singular are
    skipped.

    Attributes:
        memory: how many pairs are kept. State kept: 2·m·|z|.
        history_dtype: store ΔZ and ΔF in this dtype, such as "bfloat16"; None means the state's.
    """

    memory: int = 10
    history_dtype: Any = None

    name = "broyden"

    def __post_init__(self):
        super().__post_init__()
        check_integer("memory", self.memory, least=1)
        check_dtype("history_dtype", self.history_dtype)

    def init(self, point, max_steps):
        m = max(1, min(self.memory, max_steps))
        return BroydenState(
            d_z=History.zeros(point.z, m, self.history_dtype),
            d_f=History.zeros(point.z, m, self.history_dtype),
            kernel=zero_scalars(point.z, m, m),
            inverse_length=zero_scalars(point.z, m),
        )

    def step(self, f, point, state, k, active):
        """z⁺ = f(z) − ΔF K⁻¹ ΔZᵀ g, then the pair (Δz, Δf)."""
        memory = state.kernel.shape[-1]
        slot = k % memory
        state = self.learn(state, (k - 1) % memory)
        gamma = self._gamma(state, slot, state.d_z.dots(point.residual), eps(point.z))
        z = cast_like(subtract(point.fz, state.d_f.combine(gamma)), point.z)
        new = Point(z, f(z))
        d_z = state.d_z.push(subtract(new.z, point.z), slot, active)
        d_f = state.d_f.push(subtract(new.fz, point.fz), slot, active)
        return Step(new, state._replace(d_z=d_z, d_f=d_f))

    def learn(self, state, newest):
        """The state with the row and column of the pair in slot `newest` in K.

        Kᵢⱼ = sᵢᵀΔfⱼ − sᵢᵀsⱼ = sᵢᵀyⱼ where sᵢ is not newer than sⱼ, and sᵢᵀΔfⱼ where it is. A step
        does this first, for the pair that the last one pushed (see `History`).
        """
        s, d_f = state.d_z.at(newest), state.d_f.at(newest)
        kernel = state.kernel.at[:, newest, :].set(state.d_f.dots(s))
        kernel = kernel.at[:, :, newest].set(state.d_z.dots(subtract(d_f, s)))
        square = dot(s, s)
        inverse = jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
        inverse_length = state.inverse_length.at[:, newest].set(inverse)
        return state._replace(kernel=kernel, inverse_length=inverse_length)

    def _gamma(self, state, oldest, b, round_off):
        """K⁻¹ b by eliminating the pairs from oldest to newest, each scaled to ‖s‖ = 1."""
        scale = state.inverse_length
        kernel = state.kernel * scale[:, :, None] * scale[:, None, :]
        kernel = jnp.roll(kernel, (-oldest, -oldest), axis=(1, 2))
        b = jnp.roll(scale * b, -oldest, axis=1)
        gamma = solve_small(kernel, b, drop=10 * round_off)
        return scale * jnp.roll(gamma, oldest, axis=1)
