"""The system of the constraints that bind: the polish of a solution, and its exact gradient.

With the inequalities that bind as equalities, and the others left out, the conditions of Karush,
Kuhn and Tucker are linear. What the interior point has left of error in z and the multipliers goes
in one solve, if it knows which constraints bind; where signs come out wrong, these are moved to the
other side and the system is solved again (a primal–dual active set method: Hintermüller, Ito and
Kunisch 2002).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._closure import loop_carry
from .._state import select
from ._interior_point import Method
from ._kkt import Factor, factor
from ._products import times, transposed_times
from ._quadratic import Point, largest

ROUNDS = 4
REFINEMENTS = 2


def apply(method: Method, w: jax.Array, on: jax.Array, x: Point) -> Point:
    """The symmetric matrix [θQ Aᵀ Cᵀ; A 0 0; C 0 −W] times x, rows of C that are off being zero."""
    layout, program = method.layout, method.program
    lam = jnp.where(on, x.lam, 0)
    y = jnp.concatenate([x.nu, lam[:, : layout.m]], axis=1)
    first = method.theta * program.curved(x.z) + transposed_times(program.M, y)
    rows = times(program.M, x.z)
    inequality = layout.join(rows[:, layout.p :], -x.z, x.z) - w * lam
    return Point(
        first + layout.on_box(lam), rows[:, : layout.p], jnp.where(on, inequality, 0)
    )


def solved(
    method: Method, system: Factor, w: jax.Array, on: jax.Array, right: Point, x: Point
) -> Point:
    """x with the matrix of `apply` times x equal to `right`, from a guess, by refinement: the
    factored system has proximal terms that this one has not."""
    for _ in range(1 + REFINEMENTS):
        left = right.plus(apply(method, w, on, x), -1.0)
        x = x.plus(system.solve(*left))
    return x


class Polished(NamedTuple):
    x: Point
    on: jax.Array  # bool (batch, r)
    merit: jax.Array  # (batch,), infinite where signs are wrong
    pivots: jax.Array  # (batch,), see `Factor`


def polished(method: Method, x: Point, s: jax.Array, wanted: jax.Array) -> Polished:
    """The solution on the constraints that seem to bind at x, corrected where signs are wrong.

    wanted: bool (batch,), whose samples it is worth another round for.
    """
    zero, none = jnp.zeros_like(s), jnp.zeros_like(method.theta)
    d = jnp.where(method.ends, method.program.d(method.layout), 0)
    right = Point(-method.program.q, method.program.e[:, : method.layout.p], d)
    eps = float(jnp.finfo(s.dtype).eps)

    def solve(on):
        system = factor(method.layout, method.eq, zero, on, none + 1)
        guess = x._replace(lam=jnp.where(on, x.lam, 0))
        kept = right._replace(lam=jnp.where(on, d, 0))
        new = solved(method, system, zero, on, kept, guess)
        lacking = method.residuals(new, zero)
        slack = jnp.where(method.ends, -lacking.inequality, 0)
        dual, primal = method.sizes(new)
        # Signs hold to rounding, and what is beyond them is counted as an error.
        wrong = jnp.maximum(
            largest(jnp.minimum(new.lam, 0)) / dual, largest(jnp.minimum(slack, 0)) / primal
        )
        clipped = new._replace(lam=jnp.where(on, jnp.maximum(new.lam, 0), 0))
        after = method.residuals(clipped, jnp.maximum(slack, 0))
        merit = jnp.max(jnp.concatenate(method.errors(clipped, slack, after, none), 1), axis=1)
        merit = jnp.where((wrong <= 1e3 * eps)[:, 0] & jnp.isfinite(merit), merit, jnp.inf)
        binds = method.ends & jnp.where(on, new.lam > 0, slack < 0)
        return Polished(clipped, on, merit, system.pivots), binds

    def body(carry):
        best, on, round_ = carry
        found, binds = solve(on)
        # One that is found stays, whatever the others need.
        best = select(~jnp.isfinite(best.merit), found, best)
        return best, binds, round_ + 1

    def unfinished(carry):
        best, on, round_ = carry
        return (round_ < ROUNDS) & jnp.any(wanted & ~jnp.isfinite(best.merit))

    on = method.ends & (x.lam > s)
    infinite = none[:, 0] + jnp.inf
    first = Polished(x, on, infinite, infinite)
    carry = (first, on, jnp.zeros((), jnp.int32))
    return lax.while_loop(unfinished, body, loop_carry(body, carry))[0]
