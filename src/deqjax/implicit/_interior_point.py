"""Mehrotra's predictor–corrector for a batch, with proximal terms, in the units of a program.

A step solves the Newton system of

    Qz + q + Aᵀν + Cᵀλ = 0,   Az = b,   Cz + s = d,   λ∘s = t

twice with one factor: for t = κ, which tells how far the way there is clear, and for
t = κ + σ(μ − κ) − Δs∘Δλ of that first direction (Mehrotra 1992; Nocedal and Wright 2006, 16.6). The
Hessian of the system is H and not Q where Q is singular, and equalities have −δ on the diagonal:
proximal terms around the point where the step begins, which leave the solution as it is
(Friedlander and Orban 2012).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._closure import loop_carry, vary_like
from .._solution import Status
from .._state import select
from . import _certificates as certificates
from ._kkt import factor
from ._optimality import Errors, Method
from ._quadratic import Point, Residuals, largest

# A point this far out, in units in which a solution is of size 1, is on its way to infinity.
FAR = {"float32": 1e6, "float64": 1e12}
# After so many steps most samples have arrived, and it is worth asking whether the others can.
PROMPT = 5


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
    binding: jax.Array  # bool (batch, r): the last step took s to zero rather than λ
    proof: jax.Array  # the status of a certificate that there is no solution, else 0
    best: tuple[Point, jax.Array]  # of all points seen
    best_merit: jax.Array
    centre: tuple[Point, jax.Array] | None  # the point of the central path at κ
    trace: jax.Array | None


def direction(ends, system, x, s, r, t) -> tuple[Point, jax.Array]:
    """Newton's, to λ∘s = t; and Δs."""
    right = jnp.where(ends, -r.inequality + s - t / x.lam, 0)
    dx = system.solve(-r.stationarity, -r.equality, right)
    return dx, jnp.where(ends, t / x.lam - s - system.w * dx.lam, 0)


def start(method: Method) -> tuple[Point, jax.Array]:
    """The solution of the system with w = 1, its slacks and multipliers moved inside."""
    layout, program, ends = method.layout, method.program, method.ends
    d = jnp.where(ends, program.d(layout), 0)
    system = factor(layout, method.eq, jnp.ones_like(d), ends, jnp.ones_like(method.theta))
    x = system.solve(-program.q, program.e[:, : layout.p], d)
    inside = lambda v: jnp.where(ends, v + _lift(v, ends), 1)
    return x._replace(lam=inside(x.lam)), inside(-x.lam)


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

    dx, ds = direction(ends, system, x, s, r, kappa)
    clear = jnp.minimum(1, jnp.minimum(longest(x.lam, dx.lam, ends), longest(s, ds, ends)))
    left = mean(x.lam + clear * dx.lam, s + clear * ds) - kappa
    over = jnp.maximum(mu - kappa, 0)
    sigma = jnp.clip(left / jnp.where(over > 0, over, 1), 0, 1) ** 3
    t = jnp.maximum(kappa + sigma * over - ds * dx.lam, 0.0)
    # Beyond what a step can reach the correction is another problem's.
    t = jnp.minimum(t, 10 * jnp.maximum(mu, kappa))
    dx, ds = direction(ends, system, x, s, r, t)
    most = jnp.minimum(longest(x.lam, dx.lam, ends), longest(s, ds, ends))
    alpha = jnp.minimum(1, jnp.maximum(0.99, 1 - mu) * most)

    new, new_s = x.plus(dx, alpha), s + alpha * ds
    new = new._replace(lam=jnp.where(ends, new.lam, 1))
    new_r = method.residuals(new, new_s)
    sound = jnp.isfinite(sum(largest(v) for v in (*new, new_s, *new_r)))[:, 0]
    moved = state.going & sound
    # Of s and λ the one that goes to zero falls faster (El-Bakry, Tapia and Zhang 1994).
    falls = new_s * x.lam < new.lam * s
    proof = _proofs(method, state, new.plus(x, -1.0), moved)
    x, s, r, binding = select(
        moved, (new, new_s, new_r, falls & (new.lam > new_s)), (x, s, r, state.binding)
    )
    boost = jnp.where(sound[:, None], state.boost, state.boost * 100)
    return state._replace(x=x, s=s, residual=r, boost=boost, binding=binding, proof=proof)


def _proofs(method: Method, state: State, dx: Point, moved: jax.Array) -> jax.Array:
    """Certificates, of the direction in which a sample went that should have arrived by now."""
    late = moved & (state.steps >= PROMPT)

    def look():
        unbounded = late & certificates.unbounded(method, dx)
        proof = jnp.where(unbounded, int(Status.UNBOUNDED), state.proof)
        infeasible = late & certificates.infeasible(method, dx)
        return jnp.where(infeasible, int(Status.INFEASIBLE), proof).astype(jnp.int32)

    return lax.cond(jnp.any(late), look, lambda: vary_like(state.proof, late))


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
        going=going & ~arrived & ~lost & (state.proof == 0) & (steps < max_steps),
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
    x, s = start(method)
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
        binding=method.ends & (x.lam > s),
        proof=jnp.zeros(going.shape, jnp.int32),
        best=(x, s),
        best_merit=zero[:, 0] + jnp.inf,
        centre=None if kappa is None else (x, s),
        trace=None if trace is None else jnp.full((trace + 1, going.size), jnp.nan, s.dtype),
    )
