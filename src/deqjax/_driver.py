"""The loop that every solve runs in, forward and adjoint alike.

It evaluates f once at z0 and then lets the solver step, until every sample has met its own stop
test, has failed, or `max_steps` is reached. It keeps the best iterate and freezes each sample the
moment it ends, so that a solver holds nothing but its update rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._closure import vary_like
from ._solution import Stats, Status
from ._state import select
from .solvers.base import Cell, Point, Solver

PyTree = Any

# A residual this many times the size of the first value is not coming back.
DIVERGENCE = 1e6


class Result(NamedTuple):
    """z: best iterate; stats: per sample, (batch,); state: what `resume` takes."""

    z: PyTree
    stats: Stats
    state: Resume


class Resume(NamedTuple):
    """The solver's state and how many steps made it."""

    solver_state: PyTree
    age: jax.Array


class _Best(NamedTuple):
    z: PyTree
    residual: jax.Array
    f_norm: jax.Array


class _Carry(NamedTuple):
    k: jax.Array
    point: Point
    solver_state: PyTree
    best: _Best
    status: jax.Array
    steps: jax.Array
    f_evals: jax.Array
    trace: jax.Array | None


def run(
    f: Callable,
    z0: PyTree,
    solver: Solver,
    *,
    batched: bool,
    trace: bool = False,
    resume: Resume | None = None,
    loop: Callable | None = None,
    collectives: tuple = (),
) -> Result:
    """Solve z = f(z) from z0.

    Args:
        f: on states with the batch on axis 0.
        z0: leaves (batch, ...).
        solver: with its options final.
        batched: False if the batch is the one that `to_front` added; nothing is frozen then.
        trace: record the residual of every step.
        resume: the `state` of an earlier result on like states: keep its history.
        loop: `Adjoint.loop` of an adjoint that differentiates the loop; None is a while loop.
        collectives: named axes over which f communicates. All devices along them must then take
            the same number of steps, or they would wait for each other for ever: they go on until
            the last one is done, and those that are done stay frozen.
    """
    f = Cell(f, collectives)
    tol = solver.tolerances(z0)
    carry = _start(f, z0, solver, tol, trace, resume)
    age = jnp.zeros((), jnp.int32) if resume is None else resume.age

    def body(c: _Carry) -> _Carry:
        return _advance(f, c, solver, tol, age, freeze=batched or bool(collectives))

    def running(c: _Carry):
        return (c.k < tol.max_steps) & f.anywhere(c.status == Status.RUNNING)

    if tol.max_steps > 0:
        carry = vary_like(carry, jax.eval_shape(body, carry))
        if loop is None:
            carry = lax.while_loop(running, body, carry)
        else:
            carry = loop(running, body, carry, tol.max_steps)
    return _finish(carry, age)


def _start(f, z0, solver, tol, trace, resume) -> _Carry:
    point = Point(z0, f(z0))
    residual, f_norm = point.norms()
    shape = residual.shape
    history = None
    if trace:
        history = jnp.full((tol.max_steps + 1, *shape), jnp.nan, residual.dtype)
        history = history.at[0].set(residual)
    finite = jnp.isfinite(residual)
    done = solver.done(residual, f_norm, tol)
    status = jnp.where(
        finite, jnp.where(done, Status.CONVERGED, Status.RUNNING), Status.NONFINITE
    ).astype(jnp.int32)
    if resume is None:
        state = solver.init(point, tol.max_steps)
    else:
        mine = jax.eval_shape(lambda: solver.init(point, tol.max_steps))
        state = solver.resume(_like_mine(resume.solver_state, mine), point)
    zero = jnp.zeros_like(status)
    best = _Best(z0, residual, f_norm)
    return _Carry(jnp.zeros((), jnp.int32), point, state, best, status, zero, zero + 1, history)


def _like_mine(given: PyTree, mine: PyTree) -> PyTree:
    """The state to resume from, if it is one that this solver could have made itself."""

    def form(state):
        return jax.tree.structure(state), [(x.shape, x.dtype) for x in jax.tree.leaves(state)]

    if form(given) != form(mine):
        raise ValueError(
            "resume= holds the state of a solve unlike this one: it must come from the same solver "
            "with the same memory and max_steps, and from a z0 of the same shapes and batch_axis"
        )
    return given


def _advance(f, c: _Carry, solver: Solver, tol, age, freeze: bool) -> _Carry:
    active = c.status == Status.RUNNING
    step = solver.step(f, c.point, c.solver_state, age + c.k, active if freeze else None)
    residual, f_norm = step.point.norms()

    better = active & (residual <= c.best.residual)
    best = select(better, _Best(step.point.z, residual, f_norm), c.best)
    finite = jnp.isfinite(residual)
    # The first best f_norm is the scale of the problem; later ones are of the same size.
    diverged = residual > DIVERGENCE * (c.best.residual + c.best.f_norm)
    # Only the best iterate may end the solve, so that what is returned is what met the test: where
    # ‖f(z)‖ has grown, a worse one could meet it first.
    done = better & solver.done(residual, f_norm, tol)
    ended = jnp.where(done, Status.CONVERGED, jnp.where(diverged, Status.DIVERGED, Status.RUNNING))
    ended = jnp.where(finite, ended, Status.NONFINITE).astype(jnp.int32)

    point, solver_state = step.point, step.state
    if freeze:
        point = select(active, point, c.point)
        solver_state = select(active, solver_state, c.solver_state)
    trace = c.trace
    if trace is not None:
        trace = trace.at[c.k + 1].set(jnp.where(active, residual, jnp.nan))
    return _Carry(
        k=c.k + 1,
        point=point,
        solver_state=solver_state,
        best=best,
        status=jnp.where(active, ended, c.status),
        steps=c.steps + active,
        f_evals=c.f_evals + jnp.where(active, step.f_evals, 0).astype(jnp.int32),
        trace=trace,
    )


def _finish(c: _Carry, age) -> Result:
    unfinished = c.status == Status.RUNNING
    status = jnp.where(unfinished, int(Status.MAX_STEPS), c.status).astype(jnp.int32)
    best = c.best
    nonzero = best.residual / jnp.where(best.f_norm > 0, best.f_norm, 1)
    relative = jnp.where((best.f_norm > 0) | (best.residual == 0), nonzero, jnp.inf)
    stats = Stats(
        status=status,
        converged=status == Status.CONVERGED,
        steps=c.steps,
        f_evals=c.f_evals,
        residual=best.residual,
        rel_residual=relative,
        trace=c.trace,
    )
    return Result(best.z, stats, Resume(c.solver_state, age + c.k))
