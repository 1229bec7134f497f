"""A batch of quadratic programs in one form, and in units of their own.

    minimise ½ zᵀQz + qᵀz   subject to   Mz − e ∈ {0}ᵖ × (−∞, 0]ᵐ,   lower ≤ z ≤ upper

M stacks A over G and e stacks b over h. All inequalities together are C z ≤ d with C = [G; −I; I]
and d = [h; −lower; upper]: one vector of slacks s and one of multipliers λ, in which rows without
an end (an infinite d) are masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ._products import times, transposed_times


@dataclass(frozen=True)
class Layout:
    """What is known of a batch before its numbers.

    Attributes:
        n: unknowns.
        p: equalities.
        m: inequalities, bounds not counted.
        lower: there are lower bounds.
        upper: there are upper bounds.
        diagonal: Q is a vector.
    """

    n: int
    p: int
    m: int
    lower: bool
    upper: bool
    diagonal: bool

    @property
    def box(self) -> bool:
        return self.lower or self.upper

    def split(self, lam: jax.Array) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
        """The parts of a vector over all inequalities: of G, of the lower and the upper bounds."""
        g, rest = lam[:, : self.m], lam[:, self.m :]
        lower = rest[:, : self.n] if self.lower else None
        return g, lower, rest[:, -self.n :] if self.upper else None

    def join(self, g, lower, upper) -> jax.Array:
        kept = [g, *([lower] if self.lower else []), *([upper] if self.upper else [])]
        return jnp.concatenate(kept, axis=1)

    def on_box(self, lam: jax.Array) -> jax.Array:
        """The bounds' part of Cᵀλ: λ_upper − λ_lower."""
        _, lower, upper = self.split(lam)
        none = jnp.zeros((), lam.dtype)
        return (none if upper is None else upper) - (none if lower is None else lower)


class Program(NamedTuple):
    """Operands: matrices (1 or batch, ...), vectors (batch, ...)."""

    Q: jax.Array  # (·, n, n), or (·, n)
    M: jax.Array  # (·, p + m, n)
    q: jax.Array  # (batch, n)
    e: jax.Array  # (batch, p + m)
    lower: jax.Array | None  # (batch, n)
    upper: jax.Array | None

    def d(self, layout: Layout) -> jax.Array:
        """(batch, r), the right-hand side of C z ≤ d."""
        minus = None if self.lower is None else -self.lower
        return layout.join(self.e[:, layout.p :], minus, self.upper)

    def curved(self, z: jax.Array) -> jax.Array:
        """Qz."""
        return self.Q * z if self.Q.ndim == 2 else times(self.Q, z)


class Point(NamedTuple):
    """z with the multipliers of the equalities and of all inequalities."""

    z: jax.Array  # (batch, n)
    nu: jax.Array  # (batch, p)
    lam: jax.Array  # (batch, r)

    def plus(self, other: Point, step: jax.Array | float = 1.0) -> Point:
        return Point(*(x + step * y for x, y in zip(self, other, strict=True)))


class Residuals(NamedTuple):
    """What the conditions of Karush, Kuhn and Tucker lack.

    Stationarity Qz + q + Aᵀν + Cᵀλ, equalities Az − b, inequalities Cz − d (negative where there
    is slack).
    """

    stationarity: jax.Array
    equality: jax.Array
    inequality: jax.Array


def residuals(program: Program, layout: Layout, curved: jax.Array, x: Point) -> Residuals:
    """curved: Qz, by which a solver may mean another scale of Q than the program's."""
    y = jnp.concatenate([x.nu, x.lam[:, : layout.m]], axis=1)
    pulled = transposed_times(program.M, y)
    rows = times(program.M, x.z) - program.e
    box = layout.join(
        rows[:, layout.p :],
        None if program.lower is None else program.lower - x.z,
        None if program.upper is None else x.z - program.upper,
    )
    stationarity = curved + program.q + pulled + layout.on_box(x.lam)
    return Residuals(stationarity, rows[:, : layout.p], box)


class Units(NamedTuple):
    """What the numbers of a program are measured in, powers of two: nothing is rounded.

    Attributes:
        row: (1 or batch, p + m), the length of each row of M.
        curve: (1 or batch, 1), the size of Q.
        length: (batch, 1), σ, that of z.
        value: (batch, 1), c, that of the objective.
    """

    row: jax.Array
    curve: jax.Array
    length: jax.Array
    value: jax.Array

    @property
    def theta(self) -> jax.Array:
        """The program in its units is ½ θ zᵀQz + qᵀz."""
        return self.curve * self.length**2 / self.value

    def apply(self, p: Program) -> Program:
        low, high = (None if x is None else x / self.length for x in (p.lower, p.upper))
        return Program(
            p.Q / (self.curve if p.Q.ndim == 2 else self.curve[..., None]),
            p.M / self.row[..., None],
            p.q * (self.length / self.value),
            p.e / (self.row * self.length),
            low,
            high,
        )

    def _duals(self, layout: Layout, x: Point, sign: int) -> Point:
        each = (self.length / self.value) ** sign
        rows = self.row**sign * each
        g = x.lam[:, : layout.m] * rows[:, layout.p :]
        lam = jnp.concatenate([g, x.lam[:, layout.m :] * each], axis=1)
        return Point(x.z / self.length**sign, x.nu * rows[:, : layout.p], lam)

    def into(self, layout: Layout, x: Point) -> Point:
        """x in these units."""
        return self._duals(layout, x, 1)

    def out_of(self, layout: Layout, x: Point) -> Point:
        return self._duals(layout, x, -1)


def power_of_two(x: jax.Array) -> jax.Array:
    """The power of two at or below x > 0; 1 where x is zero or not finite."""
    ok = (x > 0) & jnp.isfinite(x)
    return jnp.exp2(jnp.floor(jnp.log2(jnp.where(ok, x, 1))))


def largest(x: jax.Array) -> jax.Array:
    """max |xᵢ| of each sample, (batch, 1)."""
    return jnp.max(jnp.abs(x), axis=tuple(range(1, x.ndim)), initial=0).reshape(-1, 1)
