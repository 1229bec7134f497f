"""Mehrotra's predictor–corrector for a batch, with proximal terms, in the units of a program.

A step solves the Newton system of

    Qz + q + Aᵀν + Cᵀλ = 0,   Az = b,   Cz + s = d,   λ∘s = t

twice with one factor: for t = κ, which tells how far the way there is clear, and for
t = κ + σ(μ − κ) − Δs∘Δλ of that first direction (Mehrotra 1992; Nocedal and Wright 2006, 16.6). The
Hessian of the system is H and not Q where Q is singular, and equalities have −δ on the diagonal:
proximal terms around the point where the step begins, which leave the solution as it is (Friedlander
and Orban 2012).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._closure import loop_carry
from .._state import select
from ._kkt import Equations, factor
from ._quadratic import Layout, Point, Program, Residuals, largest, residuals

# A point this far out, in units in which a solution is of size 1, is on its way to infinity.
FAR = {"float32": 1e6, "float64": 1e12}


class Errors(NamedTuple):
    """What the stop test compares, (batch, 1) each, relative to the sizes that it involves."""

    stationarity: jax.Array
    primal: jax.Array
    complementarity: jax.Array


class State(NamedTuple):
    """Of a loop. Per sample: (batch, 1), and (batch,) for what counts or decides."""

    x: Point
    s: jax.Array
    residual: Residuals
    kappa: jax.Array
    boost: jax.Array
    going: jax.Array
    arrived: jax.Array
    steps: jax.Array
    merit: jax.Array
    best: tuple[Point, jax.Array]  # of all points seen
    best_merit: jax.Array
    centre: tuple[Point, jax.Array] | None  # the point of the central path at κ
    trace: jax.Array | None


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

    def direction(self, solve, x, s, r, t) -> tuple[Point, jax.Array]:
        """Newton's, to λ∘s = t; and Δs."""
        lam = x.lam
        right = jnp.where(self.ends, -r.inequality + s - t / lam, 0)
        dx = solve.solve(-r.stationarity, -r.equality, right)
        return dx, jnp.where(self.ends, t / lam - s - solve.w * dx.lam, 0)

    def start(self) -> tuple[Point, jax.Array]:
        """The solution of the system with w = 1, its slacks and multipliers moved inside."""
        d = jnp.where(self.ends, self.program.d(self.layout), 0)
        one = jnp.ones_like(d)
        solve = factor(self.layout, self.eq, one, self.ends, jnp.ones_like(self.theta))
        x = solve.solve(-self.program.q, self.program.e[:, : self.layout.p], d)
        inside = lambda v: jnp.where(self.ends, v + _lift(v, self.ends), 1)
        lam = jnp.where(self.ends, inside(x.lam), 0)
        return x._replace(lam=jnp.where(self.ends, lam, 1)), inside(-x.lam)


def _lift(v, on):
    """What makes all entries positive: nothing where they are, else 1 more than the least needs."""
    least = jnp.min(jnp.where(on, v, jnp.inf), axis=1, keepdims=True, initial=jnp.inf)
    return jnp.where(least > 1e-2, 0, jnp.where(jnp.isfinite(least), 1 - least, 1))


def longest(v: jax.Array, dv: jax.Array, on: jax.Array) -> jax.Array:
    """The largest α with v + α dv ≥ 0, (batch, 1)."""
    blocked = on & (dv < 0)
    ratio = jnp.where(blocked, -v / jnp.where(blocked, dv, -1), jnp.inf)
    return jnp.min(ratio, axis=1, keepdims=True, initial=jnp.inf)


def step(method: Method, state: State) -> State:
    """One predictor–corrector step of the samples that are going."""
    x, s, r, kappa, ends = state.x, state.s, state.residual, state.kappa, method.ends
    count = jnp.maximum(ends.sum(axis=1, keepdims=True), 1)
    mean = lambda lam, s: jnp.sum(jnp.where(ends, lam * s, 0), axis=1, keepdims=True) / count
    mu = mean(x.lam, s)
    system = factor(method.layout, method.eq, s / x.lam, ends, state.boost)

    dx, ds = method.direction(system, x, s, r, kappa)
    clear = jnp.minimum(1, jnp.minimum(longest(x.lam, dx.lam, ends), longest(s, ds, ends)))
    left = mean(x.lam + clear * dx.lam, s + clear * ds) - kappa
    over = jnp.maximum(mu - kappa, 0)
    sigma = jnp.clip(left / jnp.where(over > 0, over, 1), 0, 1) ** 3
    t = jnp.maximum(kappa + sigma * over - ds * dx.lam, 0.0)
    # Beyond what a step can reach the correction is another problem's.
    t = jnp.minimum(t, 10 * jnp.maximum(mu, kappa))
    dx, ds = method.direction(system, x, s, r, t)
    most = jnp.minimum(longest(x.lam, dx.lam, ends), longest(s, ds, ends))
    alpha = jnp.minimum(1, jnp.maximum(0.99, 1 - mu) * most)

    new, new_s = x.plus(dx, alpha), s + alpha * ds
    new = new._replace(lam=jnp.where(ends, new.lam, 1))
    new_r = method.residuals(new, new_s)
    sound = jnp.isfinite(sum(largest(v) for v in (*new, new_s, *new_r)))[:, 0]
    moved = state.going & sound
    x, s, r = select(moved, (new, new_s, new_r), (x, s, r))
    boost = jnp.where(sound[:, None], state.boost, state.boost * 100)
    return state._replace(x=x, s=s, residual=r, boost=boost)


def looked_at(method: Method, state: State, tol: Errors, max_steps: int, counted: int) -> State:
    """After a step: which samples go on, and the best point so far."""
    errors = method.errors(state.x, state.s, state.residual, state.kappa)
    within = jnp.all(jnp.concatenate(errors, 1) <= jnp.concatenate(tol, 1), axis=1)
    going = state.going
    steps = state.steps + jnp.where(going, counted, 0)
    centre, kappa = state.centre, state.kappa
    if centre is not None:
        # κ itself is a measure: half of it off is another point of the path.
        close = errors.complementarity <= jnp.minimum(tol.complementarity, 1e-2 * kappa)
        centred = going & within & (kappa > 0)[:, 0] & close[:, 0]
        centre = select(centred, (state.x, state.s), centre)
        arrived = going & within & (kappa == 0)[:, 0]
        kappa = jnp.where(centred[:, None], 0, kappa)
    else:
        arrived = going & within
    plain = method.errors(state.x, state.s, state.residual, jnp.zeros_like(kappa))
    merit = jnp.max(jnp.concatenate(plain, axis=1), axis=1)
    better = going & (merit <= state.best_merit)
    best = select(better, (state.x, state.s), state.best)
    trace = state.trace
    if trace is not None:
        rows = jnp.arange(merit.shape[0])
        kept = trace[steps, rows]
        trace = trace.at[steps, rows].set(jnp.where(going, merit, kept))
    dual, primal = method.sizes(state.x)
    lost = (jnp.maximum(dual, primal) > FAR[state.s.dtype.name])[:, 0] | (state.boost > 1e9)[:, 0]
    return state._replace(
        kappa=kappa,
        centre=centre,
        arrived=state.arrived | arrived,
        going=going & ~arrived & ~lost & (steps < max_steps),
        steps=steps,
        merit=merit,
        best=best,
        best_merit=jnp.where(better, merit, state.best_merit),
        trace=trace,
    )


def run(method: Method, state: State, tol: Errors, max_steps: int) -> State:
    """Steps of all samples that are going, each until its own test holds."""

    def body(state):
        return looked_at(method, step(method, state), tol, max_steps, 1)

    state = looked_at(method, state, tol, max_steps, 0)
    return lax.while_loop(lambda s: jnp.any(s.going), body, loop_carry(body, state))


def begin(method: Method, going: jax.Array, kappa: jax.Array | None, trace: int | None) -> State:
    """The state before the first step. trace: how many steps it has room for."""
    x, s = method.start()
    zero = jnp.zeros_like(method.theta)
    r = method.residuals(x, s)
    return State(
        x,
        s,
        r,
        kappa=zero if kappa is None else kappa,
        boost=zero + 1,
        going=going,
        arrived=jnp.zeros_like(going),
        steps=jnp.zeros(going.shape, jnp.int32),
        merit=zero[:, 0] + jnp.inf,
        best=(x, s),
        best_merit=zero[:, 0] + jnp.inf,
        centre=None if kappa is None else (x, s),
        trace=None if trace is None else jnp.full((trace + 1, going.size), jnp.nan, s.dtype),
    )
