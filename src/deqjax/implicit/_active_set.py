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
from ._kkt import Factor, factor
from ._optimality import Method
from ._quadratic import Point, largest

ROUNDS = 6
REFINEMENTS = 2


def solved(
    method: Method, system: Factor, w: jax.Array, on: jax.Array, right: Point, x: Point
) -> Point:
    """x with the matrix of `Method.apply` times x equal to `right`, from a guess.

    By refinement: the factored system has proximal terms that this one has not.
    """
    for _ in range(1 + REFINEMENTS):
        left = right.plus(method.apply(w, on, x), -1.0)
        x = x.plus(system.solve(*left))
    return x


class Polished(NamedTuple):
    x: Point
    on: jax.Array  # bool (batch, r)
    merit: jax.Array  # (batch,), infinite where signs are wrong
    pivots: jax.Array  # (batch,), see `Factor`


def polished(method: Method, x: Point, on: jax.Array, wanted: jax.Array) -> Polished:
    """The solution on the constraints that seem to bind at x, corrected where signs are wrong.

    on: bool (batch, r), those constraints.
    wanted: bool (batch,), whose samples it is worth another round for.
    """
    zero, none = jnp.zeros_like(x.lam), jnp.zeros_like(method.theta)
    d = jnp.where(method.ends, method.program.d(method.layout), 0)
    right = Point(-method.program.q, method.program.e[:, : method.layout.p], d)
    eps = float(jnp.finfo(x.z.dtype).eps)

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
        best, _, round_ = carry
        return (round_ < ROUNDS) & jnp.any(wanted & ~jnp.isfinite(best.merit))

    infinite = none[:, 0] + jnp.inf
    first = Polished(x, on, infinite, infinite)
    carry = (first, method.ends & on, jnp.zeros((), jnp.int32))
    return lax.while_loop(unfinished, body, loop_carry(body, carry))[0]
