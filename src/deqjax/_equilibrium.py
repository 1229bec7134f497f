"""The equilibrium as a differentiable function: the driver, and a rule for derivatives of z*.

Both `fixed_point` and the implicit adjoint call `equilibrium`, so that the adjoint of the adjoint,
and so on to any order, is the same code again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._closure import Hoisted, vary_like
from ._compaction import take
from ._driver import Result, Resume, run
from ._equation import Equation, Rows
from ._failure import Watch
from ._layout import INNER, Layout
from ._program import concrete, program, still
from ._root import Root, balanced
from ._solution import Stats
from ._stability import Stability
from ._stability import stability as products
from ._switches import with_own_arithmetic
from .adjoints.base import Adjoint, Ending
from .solvers.base import Solver, added

PyTree = Any


def equilibrium(
    f: Callable | Hoisted,
    z0: PyTree,
    solver: Solver,
    adjoint: Adjoint,
    watch: Watch,
    *,
    batched: bool,
    trace: bool = False,
    resume: Resume | None = None,
    probe: Stats | None = None,
    forward_mode: bool = False,
    rows: Rows | None = None,
    root: bool = False,
    yardstick: PyTree = None,
    layout: Layout = INNER,
    stability: int | None = None,
) -> Result:
    """Solve z = f(z) with the batch on axis 0, differentiable in everything f closes over.

    Args:
        f: traced already, where `is_plain`.
        watch: what is done if this solve fails, or one that differentiating it takes.
        rows: f on a part of the batch, for solvers that leave finished samples behind.
        root: f is g, and g(z) = 0 is solved.
        yardstick: v of a linear equation, see `run`.
        layout: that of the z that is returned.
        stability: how many products with J at z* are to say whether iteration keeps it.
    """
    if not adjoint.differentiates_loop:
        # Before z0 is typed like f(z0), whose transpose would be a sum over devices of zeros.
        z0 = still(z0)
    z0, equation = Equation.traced(f, z0)
    if rows is not None:
        batch = jax.tree.leaves(z0)[0].shape[0]
        # The adjoint solve may leave samples behind where this one does not.
        sizes = {*solver.batch_sizes(batch), *adjoint.batch_sizes(batch)}
        equation = equation.with_parts(rows, z0, sorted(sizes))
    slope = _slope(equation.values.still, z0, learns=solver.learns_slopes) if root else None
    call = _Call(solver, adjoint, watch, layout, dict(batched=batched, trace=trace), stability)
    if adjoint.differentiates_loop:
        return _through_the_steps(call, equation, z0, resume, slope)
    resume, slope = still((resume, slope))
    result = _solved(call, equation, z0, resume, slope, yardstick)
    if concrete((equation, probe)):
        z = layout.outer(watch.mark(result.z, result.stats, solver))
    elif forward_mode:
        z = _in_both_modes(call, equation, result, slope)
    else:
        z = _by_adjoint(call, equation, result, resume, slope, probe)
    return result._replace(z=z)


class _Call(NamedTuple):
    """What a call has chosen. rules: how it is run, as `run` takes it. stability: see above."""

    solver: Solver
    adjoint: Adjoint
    watch: Watch
    layout: Layout
    rules: dict[str, Any]
    stability: int | None

    def examined(self, equation: Equation, result: Result) -> Result:
        """With what is known of its stability, where that was asked for."""
        if self.stability is None:
            return result
        z = lax.stop_gradient(result.z)
        found = _stability(equation.values.still, z, count=self.stability)
        return result._replace(stats=replace(result.stats, stability=found))

    def marked(self, z: PyTree, stats: Stats) -> PyTree:
        """z as it is returned, from z as it is inside."""
        return self.layout.outer(self.watch.mark(z, stats, self.solver))


# ------------------------------------------------------------------- three ways to a derivative


def _through_the_steps(call: _Call, equation: Equation, z0, resume, root) -> Result:
    """The solver's own steps are differentiated."""
    solver, adjoint, watch, rules = call.solver, call.adjoint, call.watch, call.rules
    given = (z0, resume, lax.stop_gradient(root), None)
    result = _run(equation, *given, solver=solver, **rules, adjoint=adjoint)
    result = call.examined(equation, result)
    watch.hear(result.stats, solver)
    # Gradients flow through z alone.
    stats, state = lax.stop_gradient((result.stats, result.state))
    return Result(call.marked(result.z, stats), stats, state)


def _solved(call: _Call, equation: Equation, z0, resume, root, yardstick) -> Result:
    """z* outside of any derivative: a rule is then attached to it."""
    solver, watch, rules = call.solver, call.watch, call.rules
    values = equation if solver.differentiates else equation.values
    result = _run(values.still, z0, resume, root, yardstick, solver=solver, **rules)
    watch.hear(result.stats, solver)
    return call.examined(equation, result)


def _by_adjoint(call: _Call, equation: Equation, result: Result, resume, root, probe) -> PyTree:
    """z* with a rule for reverse mode: θ̄ = uᵀ ∂f/∂θ, with the adjoint's u."""
    solver, adjoint, watch, layout, rules, _ = call
    batched = rules["batched"]

    # Arrays are arguments: what the rule closed over, it would keep alive.
    @jax.custom_vjp
    def attached(theta, rest, end, probe, root):
        return layout.outer(end.z)

    def forward(theta, rest, end, probe, root):
        # Not the bare z: a second derivative differentiates this line.
        z = attached(theta, rest, end, probe, root)
        return z, (theta, rest, end._replace(z=layout.inner(z)), probe, root)

    @with_own_arithmetic
    def backward(saved, v):
        theta, rest, end, probe, root = saved
        arrays = (end, theta, layout.inner(v), root)
        options = dict(adjoint=adjoint, batched=batched, watch=watch.quiet())
        if concrete((rest, arrays)) and _pull_back.is_compiled(rest, options):
            theta_bar, stats, solved = _pull_back(rest, *arrays, **options)
            for each in solved:
                watch.of("adjoint solve").hear(each, solver)
        else:
            theta_bar, stats, _ = _pull_back.inline(rest, *arrays, **options | dict(watch=watch))
        if adjoint.can_fail:
            watch.of("way back of the adjoint").hear(stats, solver)
        return theta_bar, None, None, _report(stats, probe), None

    attached.defvjp(forward, backward)
    end = Ending(result.z, converged=result.stats.converged)
    if adjoint.keeps_state:
        before = 0 if resume is None else resume.age
        state = result.state
        end = Ending(result.z, state.solver_state, before + result.stats.steps, state.best_step)
    with _no_forward_mode():
        z = attached(*equation.parted(), end, probe, root)
    return watch.mark(z, result.stats, solver, layout.axis)


@contextmanager
def _no_forward_mode() -> Iterator[None]:
    """The library's sentence where JAX would refuse a derivative (under `jit` it still does)."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "jvp, jacfwd and hessian differentiate forward, and this solve has a rule for reverse "
            "mode alone: give fixed_point(..., forward_mode=True), or use grad, vjp and jacrev "
            "(which are right to any order)"
        ) from None


def _in_both_modes(call: _Call, equation: Equation, result: Result, root) -> PyTree:
    """z* with a rule that goes forward, ż = (I − J)⁻¹ ∂f/∂θ θ̇, and whose transpose is exact.

    The linear solve is a fixed-point solve like any other, ż = J ż + b; transposed, it is the
    implicit adjoint's.
    """
    solver = call.adjoint.linear_solver(call.solver)

    def linear_solve(watch, matvec, b):
        def f(u):
            return jax.tree.map(lambda u, au, b: u - au + b, u, matvec(u), b)

        # The loop of a linear map is differentiated by nobody: it may close over tracers.
        linear = replace(equation, code=_Closure(f), inputs=[], parts={})
        result = run(linear, b, solver, batched=call.rules["batched"], yardstick=b)
        watch.hear(result.stats, solver)
        return watch.mark(result.z, result.stats, solver)

    @jax.custom_jvp
    def solution(theta, rest, z):
        return z

    @solution.defjvp
    @with_own_arithmetic
    def tangent(primals, tangents):
        (theta, rest, _), (theta_dot, *_) = primals, tangents
        # Not the bare z: a second derivative differentiates this line.
        z = solution(*primals)
        cell = lambda z, theta: _Seen(rest.joined(theta), root)(z)
        _, b = jax.jvp(lambda theta: cell(z, theta), (theta,), (theta_dot,))
        _, jacobian = jax.linearize(lambda z: cell(z, theta), z)

        def matvec(u):
            return jax.tree.map(jnp.subtract, u, jacobian(u))

        forward, transposed = (
            partial(linear_solve, call.watch.settled(f"{kind} solve"))
            for kind in ("tangent", "adjoint")
        )
        return z, lax.custom_linear_solve(matvec, b, forward, transpose_solve=transposed)

    return call.marked(solution(*equation.parted(), result.z), result.stats)


# ------------------------------------------------------------------------------- its programs


@program("learns")
def _slope(equation, z0, *, learns) -> Root:
    """How a root is seen from z0."""
    return balanced(equation, z0, learns)


@program("solver", "batched", "trace", "adjoint")
def _run(equation, z0, resume, root, yardstick, *, solver, adjoint=None, **rules) -> Result:
    """The solve itself. adjoint: one that differentiates its loop."""
    loop = None if adjoint is None else adjoint.loop
    given = dict(loop=loop, resume=resume, root=root, yardstick=yardstick)
    return run(equation, z0, solver, **given, **rules)


@program("count")
def _stability(equation, z, *, count) -> Stability:
    """What products with J say of z*."""
    return products(equation, z, count)


@program("adjoint", "batched", "watch")
def _pull_back(
    rest: Equation, end, theta, v, root, *, adjoint, batched, watch
) -> tuple[list, Stats, list[Stats]]:
    """θ̄, what the adjoint reports, and what its solves do."""
    solved = []
    linear = _Seen(rest.joined(theta), root).linear(end.z, v)

    def solve(f, u0, solver):
        result = equilibrium(
            *(f, u0, solver, adjoint, watch.of("adjoint solve")),
            batched=batched,
            rows=linear if rest.parts else None,
            yardstick=still(v),
        )
        solved.append(result.stats)
        return result.z, result.stats

    cell = lambda z, theta: _Seen(rest.joined(theta), root)(z)
    theta_bar, stats = adjoint.pull_back(cell, theta, end, v, solve)
    return theta_bar, stats, solved


class _Seen(NamedTuple):
    """f, of a root z + slope·g(z): the equation as adjoints differentiate it."""

    equation: Equation
    root: Root | None

    def __call__(self, z: PyTree) -> PyTree:
        fz = self.equation(z)
        return fz if self.root is None else added(z, fz, self.root.slope)

    def rows(self, index: jax.Array) -> _Seen:
        root = None if self.root is None else take(self.root, index)
        return _Seen(self.equation.rows(index), root)

    def linear(self, z: PyTree, v: PyTree) -> Rows:
        """u = Jᵀu + v on a part of the batch: linearised once, when the part is formed."""

        def prepare(index):
            _, pull = jax.vjp(self.rows(index), take(z, index))
            return pull, take(v, index)

        def apply(u, context):
            pull, v = context
            return jax.tree.map(jnp.add, pull(u)[0], v)

        return Rows(prepare, apply)


@dataclass(frozen=True, eq=False)
class _Closure:
    """A function where code is asked for."""

    f: Callable

    def __call__(self, z: PyTree, inputs: list) -> PyTree:
        return self.f(z)


def _report(stats: Stats, probe: Stats | None) -> Stats | None:
    """The adjoint's statistics as the 'gradient' of the probe."""
    if probe is None:
        return None
    stats = replace(stats, solves=jnp.ones_like(stats.residual), trace=None, leaves=None)
    if stats.gain is None:
        stats = replace(stats, gain=jnp.ones_like(stats.residual))

    def field(value, like):
        return lax.stop_gradient(value.astype(like.dtype).reshape(jnp.shape(like)))

    # An adjoint that solves nothing reports constants, the same on every device of a `shard_map`.
    return vary_like(jax.tree.map(field, stats, probe), probe)
