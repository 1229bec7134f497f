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
    """The last m differences ΔZ of iterates and ΔF of their values, and the small matrix K."""

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
        """z⁺ = f(z) − ΔF K⁻¹ ΔZᵀ g, then the pair (s, Δf) and its row and column of K."""
        memory = state.kernel.shape[-1]
        slot = k % memory
        gamma = self._gamma(state, slot, state.d_z.dots(point.residual), eps(point.z))
        z = cast_like(subtract(point.fz, state.d_f.combine(gamma)), point.z)
        new = Point(z, f(z))

        s, d_f = subtract(new.z, point.z), subtract(new.fz, point.fz)
        history_z = state.d_z.push(s, slot, active)
        history_f = state.d_f.push(d_f, slot, active)
        # Kᵢⱼ = sᵢᵀΔfⱼ − sᵢᵀsⱼ where sᵢ is not newer than sⱼ, and sᵢᵀΔfⱼ where it is.
        kernel = state.kernel.at[:, slot, :].set(history_f.dots(s))
        kernel = kernel.at[:, :, slot].set(history_z.dots(subtract(d_f, s)))
        square = dot(s, s)
        inverse_length = jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
        inverse_length = state.inverse_length.at[:, slot].set(inverse_length)
        return Step(new, BroydenState(history_z, history_f, kernel, inverse_length))

    def _gamma(self, state, oldest, b, round_off):
        """K⁻¹ b by eliminating the pairs from oldest to newest, each scaled to ‖s‖ = 1."""
        scale = state.inverse_length
        kernel = state.kernel * scale[:, :, None] * scale[:, None, :]
        kernel = jnp.roll(kernel, (-oldest, -oldest), axis=(1, 2))
        b = jnp.roll(scale * b, -oldest, axis=1)
        gamma = solve_small(kernel, b, drop=10 * round_off)
        return scale * jnp.roll(gamma, oldest, axis=1)
