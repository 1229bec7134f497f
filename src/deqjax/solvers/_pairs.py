"""The last m pairs of a quasi-Newton method, and the combination of them that a step takes off."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from .._small import replace_pair, solve_small, with_column
from .._state import History, dot, finite, zero_scalars
from .base import Point

PyTree = Any


class Pairs(NamedTuple):
    """Wᵀ(r − ΔR γ) = 0, and z⁺ = z + βr − Yγ: what Anderson and Broyden have in common.

    r = f(z) − z; ΔR, its last m differences, is not kept. What W and Y are makes the method: for
    Anderson W = ΔR, the least-squares condition, for Broyden W = ΔZ.

    Attributes:
        w: W, m vectors in a ring.
        y: Y, likewise.
        system: [WᵀΔR | Wᵀr | ‖wᵢ‖²], see `_small`, (batch, m, m + 2).
        gamma: γ for the next step, (batch, m).
    """

    w: History
    y: History
    system: jax.Array
    gamma: jax.Array

    @classmethod
    def none(cls, point: Point, memory: int, dtype: Any) -> Pairs:
        """No pairs yet: all that is kept is zero."""
        zeros = History.zeros(point.z, memory, dtype, after=point.r)
        system = zero_scalars(point.z, memory, memory + 2)
        return cls(zeros, zeros, system, zero_scalars(point.z, memory))

    @property
    def memory(self) -> int:
        return self.gamma.shape[-1]

    def correction(self) -> PyTree:
        """Yγ."""
        return self.y.combine(self.gamma)

    def learn(
        self,
        slot: jax.Array,
        w: PyTree,
        y: PyTree,
        change: PyTree,
        new: Point,
        active: jax.Array | None,
        row: jax.Array | None = None,
    ) -> tuple[Pairs, jax.Array]:
        """The pairs with (w, y) in `slot`, γ still the old one; and where they were kept.

        Args:
            slot: int32, the place of the oldest pair.
            w: the new vector of W.
            y: that of Y.
            change: the new difference of r.
            new: the point that the step has led to.
            active: samples that learn; None if all do.
            row: wᵀΔR, (batch, m), where it is not Wᵀchange: the new row of the system.
        """
        column = self.w.dots(change)
        # Where storing rounds, Wᵀr cannot be carried along: it takes a pass of its own.
        exact = self.w.holds(change)
        b = self.system[..., -2] + column if exact else self.w.dots(new.r)
        square, size = dot(w, w), new.norms[0]
        rows = () if row is None else (row,)
        kept = finite(active, size, square, after=(*rows, column, b))
        system = replace_pair(
            self.system,
            slot,
            kept,
            column if row is None else row,
            column=with_column(slot, dot(w, change), column),
            b=with_column(slot, dot(w, new.r), b),
            square=square,
        )
        # Y waits for no product that it is not read by: it is written while they are taken.
        late = finite(active, size, *([square] if rows else []), after=rows)
        pairs = self._replace(
            w=self.w.push(w, slot, kept), y=self.y.push(y, slot, late), system=system
        )
        return pairs, kept

    def solved(self, drop: float, ridge: float = 0.0, *, first=None, noise: float = 0.0) -> Pairs:
        """The pairs with their γ; the options are those of `solve_small`."""
        return self._replace(gamma=solve_small(self.system, drop, ridge, first, noise))

    def beside(self, r: PyTree) -> Pairs:
        """The same pairs, and another r."""
        return self._replace(system=self.system.at[..., -2].set(self.w.dots(r)))
