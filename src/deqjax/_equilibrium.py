"""The equilibrium as a differentiable function: the driver inside a `custom_vjp`.

Both `fixed_point` and the implicit adjoint call `equilibrium`, so that the adjoint of the adjoint,
and so on to any order, is the same code again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._closure import (
    Hoisted,
    hoist,
    is_differentiable,
    laid_out_like,
    spread_otherwise,
    vary_like,
    vary_with,
)
from ._compaction import Restriction, take
from ._driver import Result, Resume, Stage, run
from ._failure import Watch
from ._layout import INNER, Layout
from ._program import concrete, program, still
from ._root import Root, balanced
from ._solution import Stats
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
    restriction: Restriction | None = None,
    root: bool = False,
    yardstick: PyTree = None,
    layout: Layout = INNER,
) -> Result:
    """Solve z = f(z) with the batch on axis 0, differentiable in everything f closes over.

    Args:
        f: traced already, where `is_plain`.
        watch: what is done if this solve fails, or one that differentiating it takes.
        restriction: f on a part of the batch, for solvers that leave finished samples behind.
        root: f is g, and g(z) = 0 is solved.
        yardstick: v of a linear equation, see `run`.
        layout: that of the z that is returned.
    """
    marked = lambda z, stats: layout.outer(watch.mark(z, stats, solver))
    if not adjoint.differentiates_loop:
        # Before the cast below, whose transpose would be a sum over devices of zeros.
        z0 = still(z0)
    if isinstance(f, Hoisted):
        pure, inputs, _, collectives = f
    else:
        z0, (pure, inputs, _, collectives) = _typed(f, z0)
    slope = (
        _slope(pure.values, lax.stop_gradient(inputs), z0, learns=solver.learns_slopes)
        if root
        else None
    )
    rules: dict[str, Any] = dict(
        solver=solver, batched=batched, trace=trace, collectives=collectives
    )

    batch = jax.tree.leaves(z0)[0].shape[0]
    sizes = solver.batch_sizes(batch) if restriction else ()
    # The adjoint solve may leave samples behind where this one does not.
    every = sorted({*sizes, *adjoint.batch_sizes(batch)}) if restriction else []
    parts, part_inputs = {}, {}
    for size in every:
        assert restriction is not None
        # Apart: the rule for derivatives keeps the first, and must not keep arrays alive.
        parts[size], part_inputs[size] = restriction.pure(z0, size)
    part_inputs = lax.stop_gradient(part_inputs)

    def stages(sizes, part_inputs):
        return [Stage(n, partial(parts[n], inputs=part_inputs[n])) for n in sizes]

    if adjoint.differentiates_loop:
        given = (inputs, z0, resume, lax.stop_gradient(slope), None)
        result = watch.hear(_run(pure, *given, **rules, adjoint=adjoint), solver)
        # Gradients flow through z alone.
        stats, state = lax.stop_gradient((result.stats, result.state))
        return Result(marked(result.z, stats), stats, state)

    # z* is solved for outside of any derivative; a rule for derivatives is then attached to it.
    values = pure if solver.differentiates else pure.values
    resume, slope = still((resume, slope))
    given = (values, still(inputs), z0, resume, slope, yardstick)
    if sizes:
        result = _run.inline(*given, **rules, stages=stages(sizes, part_inputs))
    else:
        result = _run(*given, **rules)
    watch.hear(result, solver)

    if concrete((inputs, probe)):
        return result._replace(z=marked(result.z, result.stats))
    is_theta = tuple(is_differentiable(x) for x in inputs)
    theta = [x for x, t in zip(inputs, is_theta, strict=True) if t]
    other = [x for x, t in zip(inputs, is_theta, strict=True) if not t]
    if forward_mode:
        cell = partial(_cell, pure, is_theta)
        z = _both_modes(cell, theta, other, result.z, adjoint, watch, slope, rules)
        return result._replace(z=marked(z, result.stats))

    @jax.custom_vjp
    def attached(theta, other, end, probe, part_inputs, root):
        return layout.outer(end.z)

    def forward(theta, other, end, probe, part_inputs, root):
        # Not the bare z: a second derivative differentiates this line.
        z = attached(theta, other, end, probe, part_inputs, root)
        end = end._replace(z=layout.inner(z))
        return z, (theta, other, end, probe, part_inputs, root)

    @with_own_arithmetic
    def backward(saved, v):
        theta, other, end, probe, part_inputs, root = saved
        v = layout.inner(v)
        arrays = (end, theta, other, v, root)
        options = dict(is_theta=is_theta, adjoint=adjoint, batched=batched, watch=watch.quiet())
        if not every and concrete(arrays) and _pull_back.is_compiled(pure, options):
            theta_bar, stats, solved = _pull_back(pure, *arrays, **options)
            for each in solved:
                watch.of("adjoint solve").hear(Result(end.z, each, None), solver)  # type: ignore[arg-type]
        else:
            options |= dict(
                watch=watch, parts=_transposed(stages(every, part_inputs), end.z, v, root)
            )
            theta_bar, stats, _ = _pull_back.inline(pure, *arrays, **options)
        if adjoint.can_fail:
            watch.of("way back of the adjoint").hear(Result(end.z, stats, None), solver)  # type: ignore[arg-type]
        return theta_bar, None, None, _report(stats, probe), None, None

    attached.defvjp(forward, backward)
    end = Ending(result.z, converged=result.stats.converged)
    if adjoint.keeps_state:
        before = 0 if resume is None else resume.age
        state = result.state
        end = Ending(result.z, state.solver_state, before + result.stats.steps, state.best_step)
    z = attached(theta, other, end, probe, part_inputs, slope)
    return result._replace(z=watch.mark(z, result.stats, solver, layout.axis))


def _typed(f: Callable, z0: PyTree) -> tuple[PyTree, Hoisted]:
    """z0 and f, traced, of one type: a loop's carry has one.

    Inside `shard_map`, what steps a solve takes depends on all leaves: they vary together.
    """
    traced = hoist(f, z0)
    typed = vary_with(laid_out_like(z0, traced.out), (z0, traced.out))
    if not (spread_otherwise(z0, typed) or spread_otherwise(traced.out, typed)):
        return z0, traced
    return typed, hoist(lambda z: laid_out_like(vary_with(f(z), z), z), typed)


# ------------------------------------------------------------------------------- its programs


@program("learns")
def _slope(pure, inputs, z0, *, learns) -> Root:
    """How a root is seen from z0."""
    return balanced(lambda z: pure(z, inputs), z0, learns)


@program("solver", "batched", "trace", "collectives", "adjoint")
def _run(pure, inputs, z0, resume, root, yardstick, *, adjoint=None, **rules) -> Result:
    """The solve itself. adjoint: one that differentiates its loop."""
    loop = None if adjoint is None else adjoint.loop
    f = lambda z: pure(z, inputs)
    return run(f, z0, loop=loop, resume=resume, root=root, yardstick=yardstick, **rules)


@program("is_theta", "adjoint", "batched", "watch")
def _pull_back(
    pure, end, theta, other, v, root, *, is_theta, adjoint, batched, watch, parts=None
) -> tuple[list, Stats, list[Stats]]:
    """θ̄, what the adjoint reports, and what its solves do."""
    solved = []

    def solve(f, u0, solver):
        result = equilibrium(
            *(f, u0, solver, adjoint, watch.of("adjoint solve")),
            batched=batched,
            restriction=parts,
            yardstick=still(v),
        )
        solved.append(result.stats)
        return result.z, result.stats

    cell = lambda z, theta: _cell(pure, is_theta, z, theta, other, root)
    theta_bar, stats = adjoint.pull_back(cell, theta, end, v, solve)
    return theta_bar, stats, solved


def _merged(is_theta, theta: list, other: list) -> list:
    a, b = iter(theta), iter(other)
    return [next(a) if t else next(b) for t in is_theta]


def _cell(pure, is_theta, z, theta, other, root: Root | None):
    """f(z), of a root z + slope·g(z): what adjoints differentiate."""
    fz = pure(z, _merged(is_theta, theta, other))
    return fz if root is None else added(z, fz, root.slope)


def _transposed(stages: list[Stage], z: PyTree, v: PyTree, root: Root | None) -> Restriction | None:
    """u = Jᵀu + v on a part of the batch: linearised once, when the part is formed."""
    restrict = {stage.size: stage.restrict for stage in stages}

    def prepare(index):
        part, z_part = restrict[index.shape[0]](index), take(z, index)
        slope = None if root is None else take(root.slope, index)
        f = part if slope is None else lambda z: added(z, part(z), slope)
        _, pull = jax.vjp(f, z_part)
        return pull, take(v, index)

    def apply(u, context):
        pull, v = context
        return jax.tree.map(jnp.add, pull(u)[0], v)

    return Restriction(prepare, apply) if stages else None


def _both_modes(cell, theta, other, z, adjoint, watch, root, rules) -> PyTree:
    """The solution z with a rule that goes forward, ż = (I − J)⁻¹ ∂f/∂θ θ̇, and whose transpose is
    exact.

    The linear solve is a fixed-point solve like any other, ż = J ż + b; transposed, it is the
    implicit adjoint's.
    """

    solver = adjoint.linear_solver(rules["solver"])

    @jax.custom_jvp
    def solution(theta, other, z):
        return z

    @solution.defjvp
    @with_own_arithmetic
    def tangent(primals, tangents):
        (theta, other, _), (theta_dot, *_) = primals, tangents
        # Not the bare z: a second derivative differentiates this line.
        z = solution(*primals)
        _, b = jax.jvp(lambda theta: cell(z, theta, other, root), (theta,), (theta_dot,))
        _, jacobian = jax.linearize(lambda z: cell(z, theta, other, root), z)

        def linear_solve(watch, matvec, b):
            def f(u):
                return jax.tree.map(lambda u, au, b: u - au + b, u, matvec(u), b)

            same = {k: rules[k] for k in ("batched", "collectives")}
            result = run(f, b, solver, **same, yardstick=b)
            watch.hear(result, solver)
            return watch.mark(result.z, result.stats, solver)

        def matvec(u):
            return jax.tree.map(jnp.subtract, u, jacobian(u))

        forward, transposed = (
            partial(linear_solve, watch.settled(f"{kind} solve")) for kind in ("tangent", "adjoint")
        )
        return z, lax.custom_linear_solve(matvec, b, forward, transpose_solve=transposed)

    return solution(theta, other, z)


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
