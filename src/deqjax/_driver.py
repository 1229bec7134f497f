"""The loop that every solve runs in, forward and adjoint alike.

It evaluates f once at z0 and then lets the solver step, until every sample has met its own stop
test, has failed, or `max_steps` is reached. It keeps the best iterate and freezes each sample the
moment it ends, so that a solver holds nothing but its update rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._closure import loop_carry
from ._compaction import put, take
from ._solution import Stats, Status
from ._state import select
from .solvers.base import Cell, Point, Solver, Tolerances

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
    stages: Sequence[Stage] = (),
) -> Result:
    """Solve z = f(z) from z0.

    Args:
        f: on states with the batch on axis 0.
        z0: leaves (batch, ...).
        solver: with its options final.
        batched: False if the batch is the one that `to_front` added: no sample then goes on without
            another, and histories need no mask.
        trace: record the residual of every step.
        resume: the `state` of an earlier result on like states: keep its history.
        loop: `Adjoint.loop` of an adjoint that differentiates the loop; None is a while loop.
        collectives: named axes over which f communicates. All devices along them must then take
            the same number of steps, or they would wait for each other for ever: they go on until
            the last one is done, and those that are done stay frozen.
        stages: smaller batches for the unfinished samples, one after the other.
    """
    tol = solver.tolerances(z0)
    phases = solver.phases()
    carry, age = _start(f, z0, solver, phases[-1][0], tol, trace, resume)
    rules = _Rules(solver, tol, age, freeze=batched or bool(collectives), loop=loop)
    cell = Cell(f, collectives)
    *first, (last, _) = phases
    for phase, steps in first:
        carry = _phase(cell, carry, phase, rules, steps or tol.max_steps)
    carry = _stages(cell, carry, last, rules, stages)
    if stages:
        carry = _checked(f, carry, rules)
    return _finish(carry, age)


class Stage(NamedTuple):
    """A batch of `size` samples. restrict(index) -> f on the samples in index, (size,)."""

    size: int
    restrict: Callable


class _Rules(NamedTuple):
    """What holds for a whole solve."""

    solver: Solver
    tol: Tolerances
    age: jax.Array
    freeze: bool
    loop: Callable | None


def _phase(f: Cell, carry: _Carry, solver: Solver, rules: _Rules, steps: int) -> _Carry:
    """At most `steps` steps of a solver that goes first. Its state is dropped."""
    limit = min(steps, rules.tol.max_steps)
    mine = carry._replace(solver_state=solver.init(carry.point, limit))
    mine = _loop(f, mine, solver, rules, steps=limit)
    last = carry.solver_state
    last_solver = rules.solver.phases()[-1][0]
    last = last_solver.resume(last, mine.point, rules.age + mine.k)
    return mine._replace(solver_state=last)


def _stages(f: Cell, carry, solver, rules, stages: Sequence[Stage], samples=None) -> _Carry:
    """The loop on this batch until the unfinished samples fit into the next one; then on that."""
    if not stages:
        return _loop(f, carry, solver, rules)
    (size, restrict), *rest = stages
    carry = _loop(f, carry, solver, rules, until=size)
    # Unfinished samples first.
    index = jnp.argsort(carry.status != Status.RUNNING, stable=True)[:size].astype(jnp.int32)
    samples = index if samples is None else samples[index]
    part = _stages(
        Cell(restrict(samples), f.collectives), _take(carry, index), solver, rules, rest, samples
    )
    return _put(carry, index, part)


def _loop(f: Cell, carry: _Carry, solver: Solver, rules: _Rules, steps=None, until=0) -> _Carry:
    """At most `steps` steps of one solver, until at most `until` samples are unfinished."""
    most = rules.tol.max_steps
    limit = most if steps is None else jnp.minimum(carry.k + steps, most)

    def body(c: _Carry) -> _Carry:
        return _advance(f, c, solver, rules)

    def running(c: _Carry):
        unfinished = c.status == Status.RUNNING
        return (c.k < limit) & f.anywhere(jnp.sum(unfinished) > until if until else unfinished)

    if most == 0:
        return carry
    carry = loop_carry(body, carry)
    if rules.loop is None:
        return lax.while_loop(running, body, carry)
    return rules.loop(running, body, carry, steps or most)


def _take(c: _Carry, index) -> _Carry:
    trace = None if c.trace is None else take(c.trace, index, axis=1)
    return take(c._replace(k=(), trace=None), index)._replace(k=c.k, trace=trace)


def _put(c: _Carry, index, part: _Carry) -> _Carry:
    trace = None if c.trace is None else put(c.trace, index, part.trace, axis=1)
    bare = [x._replace(k=(), trace=None) for x in (c, part)]
    return put(bare[0], index, bare[1])._replace(k=part.k, trace=trace)


def _checked(f, c: _Carry, rules: _Rules) -> _Carry:
    """What was solved in parts must hold on the whole batch."""
    best = _Best(c.best.z, *Point.of(c.best.z, f(c.best.z)).norms)
    # Other matrix shapes round differently: within twice the tolerance is the same answer.
    same = rules.solver.done(0.5 * best.residual, best.f_norm, rules.tol)
    wrong = (c.status == Status.CONVERGED) & ~same
    status = jnp.where(wrong, int(Status.INCONSISTENT), c.status).astype(jnp.int32)
    return c._replace(best=best, status=status, f_evals=c.f_evals + 1)


def _start(f, z0, solver, last: Solver, tol, trace, resume) -> tuple[_Carry, jax.Array]:
    point = Point.of(z0, f(z0))
    residual, f_norm = point.norms
    shape = residual.shape
    history = None
    if trace:
        history = jnp.broadcast_to(jnp.full_like(residual, jnp.nan), (tol.max_steps + 1, *shape))
        history = history.at[0].set(residual)
    finite = jnp.isfinite(residual + f_norm)
    done = solver.done(residual, f_norm, tol)
    status = jnp.where(
        finite, jnp.where(done, Status.CONVERGED, Status.RUNNING), Status.NONFINITE
    ).astype(jnp.int32)
    if resume is None:
        state = last.init(point, tol.max_steps)
    else:
        mine = jax.eval_shape(lambda: last.init(point, tol.max_steps))
        state = last.resume(_like_mine(resume.solver_state, mine), point, resume.age)
    zero = jnp.zeros_like(status)
    best = _Best(z0, residual, f_norm)
    k = jnp.zeros((), jnp.int32)
    carry = _Carry(k, point, state, best, status, zero, zero + 1, history)
    return carry, k if resume is None else resume.age


def _like_mine(given: PyTree, mine: PyTree) -> PyTree:
    """The state to resume from, if it is one that this solver could have made itself."""

    def form(state):
        return jax.tree.structure(state), [(x.shape, x.dtype) for x in jax.tree.leaves(state)]

    if form(given) != form(mine):
        raise ValueError(
            "resume= holds the state of a solve unlike this one: it must come from the same solver "
            "with the same memory, and from a z0 of the same shapes and batch_axis"
        )
    return given


def _advance(f: Cell, c: _Carry, solver: Solver, rules: _Rules) -> _Carry:
    active = c.status == Status.RUNNING
    freeze = rules.freeze
    f = replace(f, frozen=(c.point.z, active))
    step = solver.step(f, c.point, c.solver_state, rules.age + c.k, active if freeze else None)
    residual, f_norm = step.point.norms

    # Of both: every residual is small beside a length that has overflowed.
    finite = jnp.isfinite(residual + f_norm)
    better = active & finite & (residual <= c.best.residual)
    best = select(better, _Best(step.point.z, residual, f_norm), c.best)
    # The first best f_norm is the scale of the problem; later ones are of the same size.
    diverged = residual > DIVERGENCE * (c.best.residual + c.best.f_norm)
    # Only the best iterate may end the solve, so that what is returned is what met the test: where
    # ‖f(z)‖ has grown, a worse one could meet it first.
    done = better & rules.solver.done(residual, f_norm, rules.tol)
    ended = jnp.where(done, Status.CONVERGED, jnp.where(diverged, Status.DIVERGED, Status.RUNNING))
    ended = jnp.where(finite, ended, Status.NONFINITE).astype(jnp.int32)

    point, solver_state = step.point, step.state
    if freeze:
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
    known = (best.f_norm > 0) & (best.f_norm < jnp.inf)
    nonzero = best.residual / jnp.where(known, best.f_norm, 1)
    relative = jnp.where(known | (best.residual == 0), nonzero, jnp.inf)
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
