"""The solve of a batch of quadratic programs, and what its gradient is made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._closure import loop_carry
from .._solution import Status
from .._state import select
from . import _certificates as certificates
from ._active_set import Polished, polished, solved
from ._interior_point import State, begin, run
from ._kkt import factor, ridge
from ._least_norm import least_norm
from ._optimality import Errors, Method
from ._products import outer
from ._program_units import ready
from ._quadratic import Layout, Point, Program, Units, largest, residuals

# Errors at which the constraints that bind are usually known, and a polish is worth trying.
LOOSE = {"float32": 1e-3, "float64": 1e-4}


@dataclass(frozen=True)
class Options:
    """What is compiled in."""

    rtol: float
    atol: float
    max_steps: int
    smoothed: bool
    smoothing: float | None
    trace: bool


class Answer(NamedTuple):
    """In the units of the program, but for `system`.

    Attributes:
        x: the solution.
        report: status, steps and residuals per sample, as `qp` gives them out.
        degenerate: bool (batch,).
        system: what the gradient is the solution of.
    """

    x: Point
    report: dict[str, Any]
    degenerate: jax.Array
    system: System


class System(NamedTuple):
    """The linear system of the gradient, at a point.

    Attributes:
        method: the program in its units.
        units: these.
        x: the point, in the program's own units: the solution, or that of the central path.
        w: s/λ, zero for the exact gradient.
        on: bool (batch, r), the rows of C that take part.
        good: bool (batch,), the others have a gradient of zero.
    """

    method: Method
    units: Units
    x: Point
    w: jax.Array
    on: jax.Array
    good: jax.Array


class _Rounds(NamedTuple):
    state: State
    polished: Polished
    tight: jax.Array  # bool (batch,): now held to the tolerance that was asked for
    done: jax.Array


@partial(jax.jit, static_argnames=("layout", "options"))
def solve(program: Program, layout: Layout, options: Options) -> Answer:
    made = ready(program, layout)
    method, units = made.method, made.units
    dtype = method.theta.dtype
    tol = _tolerances(options, units, method)
    possible = made.sound & made.convex & ~made.crossing
    kappa = _kappa(options, units) if options.smoothed else None
    trace = options.max_steps if options.trace else None
    state = begin(method, possible, kappa, trace)
    inf = jnp.full(possible.shape, jnp.inf, dtype) + 0 * method.theta[:, 0]
    on = method.ends & (state.x.lam > state.s)
    if options.smoothed:
        state = run(method, state, tol, options.max_steps)
        found = Polished(state.x, on, inf, inf)
        converged = state.arrived
    else:
        loose = Errors(*(jnp.maximum(t, LOOSE[dtype.name]) for t in tol))
        ask = lambda tight: Errors(
            *(jnp.where(tight[:, None], t, u) for t, u in zip(tol, loose, strict=True))
        )
        same = jnp.all(jnp.concatenate(tol, 1) >= jnp.concatenate(loose, 1), axis=1)

        def body(c: _Rounds) -> _Rounds:
            state = run(method, c.state, ask(c.tight), options.max_steps)
            new = polished(method, state.x, state.binding, state.arrived & ~c.done)
            limit = jnp.max(jnp.concatenate(tol, 1), axis=1)
            accepted = state.arrived & (new.merit <= jnp.minimum(limit, state.merit))
            take = accepted & ~c.done
            kept = select(take, new, c.polished)
            done = c.done | take | (state.arrived & c.tight)
            again = state.arrived & ~done & (state.steps < options.max_steps)
            state = state._replace(going=again, arrived=state.arrived & ~again)
            return _Rounds(state, kept, c.tight | again, done)

        first = _Rounds(state, Polished(state.x, on, inf, inf), same, ~possible)
        going = lambda c: jnp.any(c.state.going)
        last = lax.while_loop(going, body, loop_carry(body, first))
        state, found = last.state, last.polished
        converged = last.done & possible

    taken = found.merit < jnp.inf
    own = select(converged, (state.x, state.s), state.best)
    x = select(taken, found.x, own[0])
    x = x._replace(lam=jnp.where(method.ends, x.lam, 0))
    nowhere = ~possible
    x = Point(*(jnp.where(nowhere[:, None], 0, v) for v in x))
    z, box = x.z, method.program
    if box.lower is not None:
        z = jnp.where(nowhere[:, None] & made.sound[:, None], jnp.maximum(z, box.lower), z)
    if box.upper is not None:
        z = jnp.where(nowhere[:, None] & made.sound[:, None], jnp.minimum(z, box.upper), z)
    x = x._replace(z=z)
    on = jnp.where(taken[:, None], found.on, method.ends & (x.lam > own[1]))
    slack = jnp.where(method.ends, -method.residuals(x, jnp.zeros_like(x.lam)).inequality, jnp.inf)
    weak = jnp.any(jnp.maximum(jnp.abs(slack), x.lam) <= LOOSE[dtype.name] ** 2, axis=1)
    dependent = taken & (found.pivots <= 10 * ridge(layout, dtype))
    out = units.out_of(layout, x)

    status = _status(made, converged, state, method)
    merit = jnp.where(taken, found.merit, jnp.where(converged, state.merit, state.best_merit))
    report = dict(
        status=status,
        converged=status == Status.CONVERGED,
        steps=state.steps,
        rel_residual=merit,
        trace=state.trace,
        **_residuals(program, layout, out),
    )
    degenerate = converged & (weak | dependent | ~(taken | options.smoothed))
    if options.smoothed:
        assert state.centre is not None
        point, s = state.centre
        w = jnp.where(method.ends, s / point.lam, 0)
        point = units.out_of(layout, point._replace(lam=jnp.where(method.ends, point.lam, 0)))
        system = System(method, units, point, w, method.ends, converged)
    else:
        system = System(method, units, out, jnp.zeros_like(x.lam), on, converged)
    return Answer(out, report, degenerate, system)


def _tolerances(options: Options, units: Units, method: Method) -> Errors:
    """Errors are relative to sizes that are 1 at least in the program's units."""
    each = (units.value / units.length, units.length, units.value)
    return Errors(*(options.rtol + options.atol / unit for unit in each))


def _kappa(options: Options, units: Units) -> jax.Array:
    if options.smoothing is None:
        return jnp.full_like(units.value, 1e-3)
    return options.smoothing / units.value


def _status(made, converged, state: State, method: Method) -> jax.Array:
    x = state.x
    blown = state.boost[:, 0] > 1e9
    status = jnp.where(blown, int(Status.NONFINITE), int(Status.MAX_STEPS))
    status = jnp.where(certificates.unbounded(method, x), int(Status.UNBOUNDED), status)
    status = jnp.where(certificates.infeasible(method, x), int(Status.INFEASIBLE), status)
    status = jnp.where(state.proof > 0, state.proof, status)
    status = jnp.where(converged, int(Status.CONVERGED), status)
    status = jnp.where(made.crossing, int(Status.INFEASIBLE), status)
    status = jnp.where(made.convex, status, int(Status.NOT_CONVEX))
    return jnp.where(made.sound, status, int(Status.NONFINITE)).astype(jnp.int32)


def _residuals(program: Program, layout: Layout, x: Point) -> dict[str, jax.Array]:
    """Of the four conditions, in the program's own units, (batch,) each."""
    r = residuals(program, layout, program.curved(x.z), x)
    ends = jnp.isfinite(r.inequality)
    inequality = jnp.where(ends, r.inequality, 0)
    parts = dict(
        stationarity=largest(r.stationarity),
        primal=jnp.maximum(largest(r.equality), largest(jnp.maximum(inequality, 0))),
        dual=largest(jnp.minimum(x.lam, 0)),
        complementarity=largest(x.lam * inequality),
    )
    return {k: v[:, 0] for k, v in parts.items()}


@partial(jax.jit, static_argnames="layout")
def pulled_back(
    system: System, program: Program, layout: Layout, bar: Point
) -> tuple[Program, jax.Array]:
    """Cotangents of the operands for that of the solution, and which samples had one.

    J is the matrix of the linear system (symmetric); J [u; w] = −x̄, and for each operand
    θ̄ = uᵀ ∂(Qz + q + Mᵀy)/∂θ + wᵀ ∂(Mz − e)/∂θ.
    """
    method, units, x, on = system.method, system.units, system.x, system.on
    finite = jnp.isfinite(jnp.concatenate(bar, axis=1)).all(axis=1)
    good = (system.good & finite)[:, None]
    bar = Point(*(jnp.where(good, v, 0) for v in bar))
    bar = bar._replace(lam=jnp.where(on, bar.lam, 0))
    # A cotangent is in units of 1/x, and the solution of the system in units of 1/residual.
    right = units.out_of(layout, bar)
    right = Point(*(-v for v in right))
    size = jnp.max(jnp.stack([largest(v) for v in right]), axis=0)
    size = jnp.where(size > 0, size, 1)
    right = Point(*(v / size for v in right))
    boost = jnp.ones_like(method.theta)
    linear = factor(layout, method.eq, system.w, on, boost)
    start = Point(*(jnp.zeros_like(v) for v in right))
    solution = solved(method, linear, system.w, on, right, start)
    left = right.plus(method.apply(system.w, on, solution), -1.0)
    left, long = (jnp.max(jnp.abs(jnp.concatenate(v, axis=1)), axis=1) for v in (left, solution))
    # A residual of the size of the right-hand side says that there is no solution, and one as long
    # as the inverse of a ridge was made by it.
    lost = ~(left <= 1e-3) | ~(long <= 0.1 / ridge(layout, left.dtype) ** 0.75)
    solution = least_norm(method, system.w, on, right, solution, good[:, 0] & lost)
    solution = Point(*(v * size for v in solution))
    sound = jnp.isfinite(jnp.concatenate(solution, axis=1)).all(axis=1, keepdims=True)
    solution = Point(*(jnp.where(good & sound, v, 0) for v in solution))
    u = solution.z * (units.length / units.value)
    scale = 1 / (units.row * units.length)
    w_e = solution.nu * scale[:, : layout.p]
    w_g, w_low, w_high = layout.split(solution.lam)
    w_g = w_g * scale[:, layout.p :]
    over = lambda v: None if v is None else v / units.length
    w_low, w_high = over(w_low), over(w_high)
    y = jnp.concatenate([x.nu, x.lam[:, : layout.m]], axis=1)
    w = jnp.concatenate([w_e, w_g], axis=1)
    if layout.diagonal:
        Q_bar = u * x.z
        if program.Q.shape[0] == 1:
            Q_bar = Q_bar.sum(axis=0, keepdims=True)
    else:
        Q_bar = outer(u, x.z, program.Q)
    M_bar = outer(y, u, program.M) + outer(w, x.z, program.M)
    high = None if w_high is None else -w_high
    return Program(Q_bar, M_bar, u, -w, w_low, high), (good & sound)[:, 0]
