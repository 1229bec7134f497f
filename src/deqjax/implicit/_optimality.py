"""What stays the same in a solve, and how far a point is from being the solution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ._kkt import Equations
from ._products import times, transposed_times
from ._quadratic import Layout, Point, Program, Residuals, largest, residuals


class Errors(NamedTuple):
    """What the stop test compares, (batch, 1) each, relative to the sizes that it involves."""

    stationarity: jax.Array
    primal: jax.Array
    complementarity: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Method:
    """What stays the same in a solve."""

    layout: Layout = field(metadata=dict(static=True))
    program: Program
    eq: Equations
    theta: jax.Array
    ends: jax.Array  # bool (batch, r): the rows of C that are constraints

    def residuals(self, x: Point, s: jax.Array) -> Residuals:
        curved = self.theta * self.program.curved(x.z)
        found = residuals(self.program, self.layout, curved, x)
        inequality = jnp.where(self.ends, found.inequality + s, 0)
        return found._replace(inequality=inequality)

    def sizes(self, x: Point) -> tuple[jax.Array, jax.Array]:
        """Of duals and of z, 1 at least."""
        y = jnp.maximum(largest(x.nu), largest(x.lam))
        return jnp.maximum(y, 1), jnp.maximum(largest(x.z), 1)

    def errors(self, x: Point, s: jax.Array, r: Residuals, kappa: jax.Array) -> Errors:
        dual, primal = self.sizes(x)
        gap = jnp.where(self.ends, x.lam * s - kappa, 0)
        feasible = jnp.maximum(largest(r.equality), largest(r.inequality))
        return Errors(largest(r.stationarity) / dual, feasible / primal, largest(gap))

    def apply(self, w: jax.Array, on: jax.Array, x: Point) -> Point:
        """[θQ Aᵀ Cᵀ; A 0 0; C 0 −W] times x, rows of C that are not `on` left out."""
        layout, program = self.layout, self.program
        lam = jnp.where(on, x.lam, 0)
        y = jnp.concatenate([x.nu, lam[:, : layout.m]], axis=1)
        first = self.theta * program.curved(x.z) + transposed_times(program.M, y)
        rows = times(program.M, x.z)
        inequality = layout.join(rows[:, layout.p :], -x.z, x.z) - w * lam
        first = first + layout.on_box(lam)
        return Point(first, rows[:, : layout.p], jnp.where(on, inequality, 0))
