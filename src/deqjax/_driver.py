"""The loop that every solve runs in, forward and adjoint alike.

It evaluates f once at z0 and then lets the solver step, until every sample has met its own stop
test, has failed, or `max_steps` is reached. It keeps the best iterate and freezes each sample the
moment it ends, so that a solver holds nothing but its update rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._closure import loop_carry
from ._compaction import put_back, take
from ._equation import Equation
from ._layout import by_leaf
from ._measure import Measure, Tolerances, power_of_two, unit_of
from ._root import BALANCED, MEASURED, Root, measured
from ._solution import Stats, Status
from ._state import largest, norm, select, times
from .solvers.base import Cell, Point, Solver, Step

PyTree = Any

# A residual this many times the size of the first value is not coming back.
DIVERGENCE = 1e6


class Result(NamedTuple):
    """z: best iterate; stats: per sample, (batch,); state: what `resume` takes."""

    z: PyTree
    stats: Stats
    state: Resume


class Resume(NamedTuple):
    """The solver's state, how many steps made it, in which unit, and which one led to the best
    iterate of the last solve (both (batch,))."""

    solver_state: PyTree
    age: jax.Array
    unit: jax.Array
    best_step: jax.Array


class _Best(NamedTuple):
    z: PyTree
    residual: jax.Array
    f_norm: jax.Array | None  # None where the problem has a yardstick of its own
    step: jax.Array
    leaves: jax.Array | None


class _Carry(NamedTuple):
    k: jax.Array
    point: Point
    solver_state: PyTree
    best: _Best
    measure: Measure
    status: jax.Array
    steps: jax.Array
    f_evals: jax.Array
    trace: jax.Array | None


def run(
    equation: Equation,
    z0: PyTree,
    solver: Solver,
    *,
    batched: bool,
    trace: bool = False,
    resume: Resume | None = None,
    loop: Callable | None = None,
    root: Root | None = None,
    yardstick: PyTree = None,
) -> Result:
    """Solve z = f(z) from z0.

    Args:
        equation: with the parts that the solver wants. Where f communicates, all devices along
            those axes must take the same number of steps, or they would wait for each other for
            ever: they go on until the last one is done, and those that are done stay frozen.
        z0: leaves (batch, ...).
        solver: with its options final.
        batched: False if the batch is the one that `to_front` added: no sample then goes on without
            another, and histories need no mask.
        trace: record the residual of every step.
        resume: the `state` of an earlier result on like states: keep its history.
        loop: `Adjoint.loop` of an adjoint that differentiates the loop; None is a while loop.
        root: f is g, and g(z) = 0 is solved. See `deqjax._root`.
        yardstick: v of a linear equation, leaves (batch, ...): residuals are compared with ‖v‖.
    """
    tol = solver.tolerances(z0)
    phases = solver.phases()
    cell = Cell(equation, equation.collectives, tol=tol)
    sizes = solver.batch_sizes(jax.tree.leaves(z0)[0].shape[0]) if equation.parts else ()
    carry, age = _start(cell, z0, solver, phases[-1][0], trace, resume, root, yardstick)
    freeze, linear = batched or bool(equation.collectives), yardstick is not None
    checks = batched and not sizes
    rules = _Rules(solver, tol, age, freeze, loop, linear, checks)
    *first, (last, _) = phases
    for phase, steps in first:
        carry = _phase(cell, carry, phase, rules, steps or tol.max_steps)
    if root is not None and not sizes and loop is None:
        carry = _until_it_holds(cell, carry, last, rules)
    else:
        carry = _stages(cell, carry, last, rules, sizes)
        if root is not None:
            carry = _remeasured(cell, carry, rules, Status.INCONSISTENT)
    if checks:
        # The last evaluation was of all rows, the finished ones too.
        carry = _held(carry, carry.point.norms, rules)
    elif batched:
        carry = _checked(replace(cell, measure=carry.measure), carry, rules)
    return _finish(carry, rules)


class _Rules(NamedTuple):
    """What holds for a whole solve."""

    solver: Solver
    tol: Tolerances
    age: jax.Array
    freeze: bool
    loop: Callable | None
    linear: bool
    checks: bool


def _phase(f: Cell, carry: _Carry, solver: Solver, rules: _Rules, steps: int) -> _Carry:
    """At most `steps` steps of a solver that goes first. Its state is dropped."""
    limit = min(steps, rules.tol.max_steps)
    mine = carry._replace(solver_state=solver.init(carry.point, limit))
    mine = _loop(f, mine, solver, rules, steps=limit)
    last = carry.solver_state
    last_solver = rules.solver.phases()[-1][0]
    last = last_solver.resume(last, mine.point, rules.age + mine.k)
    return mine._replace(solver_state=last)


def _stages(f: Cell, carry, solver, rules, sizes: tuple[int, ...], whole=None) -> _Carry:
    """The loop on this batch until the unfinished samples fit into the next one; then on that.

    whole: the equation of the whole batch, and which samples of it are in hand.
    """
    if not sizes:
        return _loop(f, carry, solver, rules)
    size, *rest = sizes
    equation, samples = whole or (f.call, None)
    carry = _loop(f, carry, solver, rules, until=size)
    # Unfinished samples first.
    index = jnp.argsort(carry.status != Status.RUNNING, stable=True)[:size].astype(jnp.int32)
    samples = index if samples is None else samples[index]
    part = Cell(equation.rows(samples), f.collectives)
    part = _stages(part, _take(carry, index), solver, rules, tuple(rest), (equation, samples))
    return _put(carry, index, part)


def _loop(f: Cell, carry: _Carry, solver: Solver, rules: _Rules, steps=None, until=0) -> _Carry:
    """At most `steps` steps of one solver, until at most `until` samples are unfinished."""
    most = rules.tol.max_steps
    limit = most if steps is None else jnp.minimum(carry.k + steps, most)
    checks = rules.checks and steps is None

    def body(c: _Carry) -> _Carry:
        return _advance(f, c, solver, rules)

    def running(c: _Carry):
        unfinished = c.status == Status.RUNNING
        if checks:
            # After a failure one turn more, in which no one moves: f of what is returned.
            return f.anywhere((unfinished & (c.k <= limit)) | (c.status < 0))
        return (c.k < limit) & f.anywhere(jnp.sum(unfinished) > until if until else unfinished)

    if most == 0:
        return carry
    carry = loop_carry(body, carry)
    if rules.loop is None:
        return lax.while_loop(running, body, carry)
    return rules.loop(running, body, carry, (steps or most) + checks)


def _take(c: _Carry, index) -> _Carry:
    trace = None if c.trace is None else take(c.trace, index, axis=1)
    return take(c._replace(k=(), trace=None), index)._replace(k=c.k, trace=trace)


def _put(c: _Carry, index, part: _Carry) -> _Carry:
    trace = None if c.trace is None else put_back(c.trace, index, part.trace, axis=1)
    bare = [x._replace(k=(), trace=None) for x in (c, part)]
    return put_back(bare[0], index, bare[1])._replace(k=part.k, trace=trace)


def _until_it_holds(cell: Cell, carry: _Carry, solver: Solver, rules: _Rules) -> _Carry:
    """Solve, measure the yardstick of the root where the solve has ended, and go on if that is
    smaller than the one that it was ended by."""

    def body(c):
        return _remeasured(cell, _loop(cell, c, solver, rules), rules, Status.RUNNING)

    def running(c):
        return (c.k < rules.tol.max_steps) & cell.anywhere(c.status == Status.RUNNING)

    if rules.tol.max_steps == 0:
        return carry
    return lax.while_loop(running, body, loop_carry(body, carry))


def _remeasured(cell: Cell, c: _Carry, rules: _Rules, otherwise: Status) -> _Carry:
    """Roots by the yardstick of where they are; what does not meet it is `otherwise`."""
    found = (c.status == Status.CONVERGED) & (c.steps > 0)
    given = measured(cell.call, c.best.z, c.measure)
    given = jnp.where(found, jnp.minimum(c.measure.given, given), c.measure.given)  # type: ignore[arg-type]
    measure = c.measure._replace(given=given)
    holds = _meets(measure, c.best.residual, given, rules)
    status = jnp.where(found & ~holds, int(otherwise), c.status).astype(jnp.int32)
    f_evals = c.f_evals + MEASURED * found
    return c._replace(measure=measure, status=status, f_evals=f_evals)


def _checked(f: Cell, c: _Carry, rules: _Rules) -> _Carry:
    """What was solved in parts must hold on the whole batch."""
    c = _held(c, f.point(c.best.z, f.call(c.best.z)).norms, rules)
    return c._replace(f_evals=c.f_evals + 1)


def _held(c: _Carry, norms: tuple[jax.Array, jax.Array], rules: _Rules) -> _Carry:
    """Finished samples by the norms that the whole batch has given at their solutions: what is
    reported holds for what is returned."""
    residual, f_norm = norms
    ended = c.status == Status.CONVERGED
    # Other matrix shapes round differently: within twice the tolerance is the same answer.
    holds = _meets(c.measure, 0.5 * residual, f_norm, rules)
    status = jnp.where(ended & ~holds, int(Status.INCONSISTENT), c.status).astype(jnp.int32)
    best = c.best._replace(residual=jnp.where(ended, residual, c.best.residual))
    if best.f_norm is not None:
        best = best._replace(f_norm=jnp.where(ended, f_norm, best.f_norm))
    return c._replace(best=best, status=status)


def _meets(measure: Measure, residual: jax.Array, f_norm: jax.Array, rules: _Rules) -> jax.Array:
    yardstick, tol = measure.limit(f_norm, rules.tol)
    return rules.solver.done(residual, yardstick, tol)


def _start(
    f: Cell, z0, solver, last: Solver, trace, resume, root: Root | None, yardstick
) -> tuple[_Carry, jax.Array]:
    tol, value = f.tol, f.call(z0) if root is None else root.value
    if resume is not None:
        plain = Point.of(z0, z0)
        mine = jax.eval_shape(lambda: last.init(plain, tol.max_steps))
        earlier = _like_mine(resume.solver_state, mine)
    point, measure = _measured(f, z0, value, root, yardstick, resume)
    residual, f_norm = point.norms
    history = None
    if trace:
        history = jnp.full_like(residual, jnp.nan)
        history = jnp.broadcast_to(history, (tol.max_steps + 1, *residual.shape))
        history = history.at[0].set(residual)
    finite = jnp.isfinite(residual + f_norm)
    done = solver.done(residual, *measure.limit(f_norm, tol))
    status = jnp.where(
        finite, jnp.where(done, Status.CONVERGED, Status.RUNNING), Status.NONFINITE
    ).astype(jnp.int32)
    k = jnp.zeros((), jnp.int32)
    if resume is None:
        age, state = k, last.init(point, tol.max_steps)
    else:
        age, state = resume.age, last.resume(earlier, point, resume.age)
    zero = jnp.zeros_like(status)
    length = f_norm if measure.given is None else None
    best = _Best(z0, residual, length, zero + age, _by_leaf(point, measure.unit))
    evals = zero + (1 if root is None else BALANCED)
    carry = _Carry(k, point, state, best, measure, status, zero, evals, history)
    return carry, age


def _measured(f: Cell, z0, value, root: Root | None, yardstick, resume) -> tuple[Point, Measure]:
    """The first point, and what residuals are measured by."""
    if resume is not None:
        unit = resume.unit  # that of the history
    elif root is not None:
        unit = power_of_two(jnp.maximum(root.size, root.slope * largest(value)))
    elif yardstick is not None:
        unit = unit_of(yardstick, value, linear=True)
    else:
        unit = unit_of(z0, value)
    measure = Measure(unit, jnp.ones_like(unit))
    if root is not None:
        size = jnp.where(root.size < jnp.inf, root.size, 0) / unit
        measure = Measure(unit, size, size, root.slope)
    elif yardstick is not None:
        size = norm(times(yardstick, 1 / unit))
        measure = Measure(unit, size, size)
    point = replace(f, measure=measure).point(z0, value)
    residual, f_norm = point.norms
    if yardstick is None:
        measure = measure._replace(shown=jnp.maximum(f_norm, residual))
    if root is not None:  # a start far from the root has a g larger than that of its terms
        measure = measure._replace(given=measure.size)
        point = point._replace(norms=(residual, measure.size))
    return point, measure


def _by_leaf(point: Point, unit: jax.Array) -> jax.Array | None:
    """The relative residual of each leaf, (batch, leaves)."""
    squares, of_values = (by_leaf(lax.stop_gradient(x)) for x in (point.r, point.fz))
    if squares is None or of_values is None:
        return None
    residual, size = jnp.sqrt(squares) * unit[:, None], jnp.sqrt(of_values)
    return residual / jnp.where(size > 0, size, 1)


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
    if rules.checks:
        active &= c.k < rules.tol.max_steps
    freeze = rules.freeze
    # Samples that have ended wait at what is returned of them: those that f couples with see that.
    f = replace(f, frozen=(c.best.z if freeze else c.point.z, active), measure=c.measure)
    step = solver.step(f, c.point, c.solver_state, rules.age + c.k, active if freeze else None)
    _check_step(solver, step, c)
    residual, f_norm = step.point.norms

    # Of both: every residual is small beside a length that has overflowed.
    finite = jnp.isfinite(residual + f_norm)
    going = active & finite
    measure, tol = c.measure, rules.tol
    resolved = measure.resolved(residual, f_norm, tol)
    done = going & _meets(measure, resolved, f_norm, rules)
    # What meets the test ends the solve, even where z0 was near an unstable equilibrium and had a
    # smaller residual beside its smaller f(z).
    improved = resolved <= c.best.residual
    if measure.given is None:
        inflated = measure.inflated(f_norm, tol)
        improved = jnp.where(inflated, resolved < c.best.residual, improved)
    better = done | (going & improved)
    taken = jnp.zeros_like(c.steps) + rules.age + c.k + 1
    length = None if c.best.f_norm is None else f_norm
    seen = _Best(step.point.z, resolved, length, taken, _by_leaf(step.point, measure.unit))
    best = select(better, seen, c.best)
    # The first best f_norm is the scale of the problem; later ones are of the same size.
    scale = measure.given if c.best.f_norm is None else c.best.f_norm
    assert scale is not None
    diverged = residual > DIVERGENCE * (c.best.residual + scale)
    ended = jnp.where(measure.lost(f_norm, tol), Status.UNBOUNDED, Status.RUNNING)
    ended = jnp.where(diverged, Status.DIVERGED, ended)  # its residual grew too
    ended = jnp.where(done, Status.CONVERGED, ended)
    ended = jnp.where(finite, ended, Status.NONFINITE).astype(jnp.int32)

    otherwise = c.status
    if rules.checks:  # what has just failed is negative until its place has been seen by the others
        ended = jnp.where((ended == Status.CONVERGED) | (ended == Status.RUNNING), ended, -ended)
        otherwise = jnp.abs(otherwise)

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
        measure=measure.seen(c.point.norms[0], residual, f_norm, active, tol),
        status=jnp.where(active, ended, otherwise),
        steps=c.steps + active,
        f_evals=c.f_evals + jnp.where(active, step.f_evals, 0).astype(jnp.int32),
        trace=trace,
    )


def _check_step(solver: Solver, step: Any, c: _Carry) -> None:
    """One sentence for a solver of somebody's own that breaks its contract."""
    name = f"{type(solver).__name__}.step"
    if not isinstance(step, Step) or not isinstance(step.point, Point):
        raise TypeError(f"{name} must return Step(point, state), with a point from f.at or f.moved")
    given = (("the point", c.point.z, step.point.z), ("its state", c.solver_state, step.state))
    for what, old, new in given:
        want, got = (jax.tree.map(lambda x: jax.typeof(x).str_short(), t) for t in (old, new))
        if want != got:
            raise TypeError(f"{name} must leave {what} in the form that it got, {want}, not {got}")


def _finish(c: _Carry, rules: _Rules) -> Result:
    best, tol, unit = c.best, rules.tol, c.measure.unit
    residual, f_norm = c.point.norms
    # Small beside a z that the solver has made large, and nothing else.
    ran_away = c.measure.inflated(f_norm, tol) & (residual <= tol.rtol * f_norm)
    unfinished = jnp.where(ran_away, Status.UNBOUNDED, Status.MAX_STEPS)
    status = jnp.where(c.status == Status.RUNNING, unfinished, c.status).astype(jnp.int32)
    gain = None
    if rules.linear:
        given = c.measure.given
        assert given is not None
        length = norm(times(best.z, 1 / unit))
        gain = length / jnp.where(given > 0, given, 1)
        # The residual of a linear equation may be nothing but the rounding of a solution so long.
        rounding = 0.1 * tol.roundoff * length
        holds = _meets(c.measure, rounding, f_norm, rules._replace(tol=tol.attainable))
        lost = (status == Status.CONVERGED) & ~holds
        status = jnp.where(lost, int(Status.UNBOUNDED), status)
    size = c.measure.given if best.f_norm is None else best.f_norm
    assert size is not None
    known = (size > 0) & (size < jnp.inf)
    nonzero = best.residual / jnp.where(known, size, 1)
    relative = jnp.where(known | (best.residual == 0), nonzero, jnp.inf)
    to_user = unit if c.measure.slope is None else unit / c.measure.slope
    stats = Stats(
        status=status,
        converged=status == Status.CONVERGED,
        steps=c.steps,
        f_evals=c.f_evals,
        residual=best.residual * to_user,
        rel_residual=relative,
        trace=None if c.trace is None else c.trace * to_user,
        leaves=best.leaves,
        gain=gain,
    )
    taken = jnp.minimum(c.k, tol.max_steps)
    return Result(best.z, stats, Resume(c.solver_state, rules.age + taken, unit, best.step))
