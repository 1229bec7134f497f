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
from ._root import Root, balanced
from ._solution import Stats
from .adjoints.base import Adjoint, Ending
from .solvers.base import Solver, added

PyTree = Any


def equilibrium(
    f: Callable,
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
) -> Result:
    """Solve z = f(z) with the batch on axis 0, differentiable in everything f closes over.

    Args:
        watch: what is done if this solve fails, or one that differentiating it takes.
        restriction: f on a part of the batch, for solvers that leave finished samples behind.
        root: f is g, and g(z) = 0 is solved.
        yardstick: v of a linear equation, see `run`.
    """
    if not adjoint.differentiates_loop:
        # Before the cast below, whose transpose would be a sum over devices of zeros.
        z0 = lax.stop_gradient(z0)
    pure, inputs, out, collectives = hoist(f, z0)
    # A loop's carry has one type. Inside `shard_map`, what steps a solve takes depends on all
    # leaves: they vary together.
    typed = vary_with(laid_out_like(z0, out), (z0, out))
    if spread_otherwise(z0, typed) or spread_otherwise(out, typed):
        z0, given = typed, f
        pure, inputs, _, collectives = hoist(lambda z: laid_out_like(vary_with(given(z), z), z), z0)
    still = lax.stop_gradient(inputs)
    slope = balanced(lambda z: pure(z, still), z0, solver.learns_slopes) if root else None
    options: dict[str, Any] = dict(batched=batched, trace=trace, collectives=collectives)

    batch = jax.tree.leaves(z0)[0].shape[0]
    sizes = solver.batch_sizes(batch) if restriction else ()
    # The adjoint solve may leave samples behind where this one does not.
    every = sorted({*sizes, *adjoint.batch_sizes(batch)}) if restriction else []
    parts = {size: restriction.pure(z0, size) for size in every} if restriction else {}
    part_inputs = lax.stop_gradient({size: inputs for size, (_, inputs) in parts.items()})

    def stages(sizes, part_inputs):
        return [Stage(n, partial(parts[n][0], inputs=part_inputs[n])) for n in sizes]

    if adjoint.differentiates_loop:
        options |= dict(resume=resume, loop=adjoint.loop, root=lax.stop_gradient(slope))
        result = watch.hear(run(lambda z: pure(z, inputs), z0, solver, **options), solver)
        return _detach(result, watch, solver)

    theta = [x for x in inputs if is_differentiable(x)]
    other = [x for x in inputs if not is_differentiable(x)]
    is_theta = [is_differentiable(x) for x in inputs]

    def value(z, theta, other):
        a, b = iter(theta), iter(other)
        return pure(z, [next(a) if t else next(b) for t in is_theta])

    def cell(z, theta, other, root):
        """f(z), of a root z + slope·g(z): what adjoints differentiate."""
        fz = value(z, theta, other)
        return fz if root is None else added(z, fz, root.slope)

    if forward_mode:
        options |= dict(resume=lax.stop_gradient(resume), root=lax.stop_gradient(slope))
        result = _both_modes(value, cell, theta, other, z0, solver, adjoint, watch, options)
        return _detach(result, watch, solver)

    @jax.custom_vjp
    def solve(theta, other, z0, resume, probe, part_inputs, root, yardstick):
        del probe
        final: dict[str, Any] = dict(resume=resume, root=root, yardstick=yardstick)
        final |= options | {"stages": stages(sizes, part_inputs)}
        return watch.hear(run(lambda z: value(z, theta, other), z0, solver, **final), solver)

    def forward(*args):
        # `solve` and not `run`: a second derivative differentiates this line.
        result = solve(*args)
        theta, other, _, resume, probe, part_inputs, root, _ = args
        end = Ending(result.z, converged=result.stats.converged)
        if adjoint.keeps_state:
            before = 0 if resume is None else resume.age
            state = result.state
            end = Ending(
                *(result.z, state.solver_state, before + result.stats.steps, state.best_step)
            )
        return result, (end, theta, other, probe, part_inputs, root)

    def backward(saved, cotangents):
        end, theta, other, probe, part_inputs, root = saved
        v = cotangents.z
        transposed = _transposed(stages(every, part_inputs), end.z, v, root)

        def solve_adjoint(f, u0, solver):
            result = equilibrium(
                *(f, u0, solver, adjoint, watch.of("adjoint solve")),
                batched=batched,
                restriction=transposed,
                yardstick=lax.stop_gradient(v),
            )
            return result.z, result.stats

        theta_bar, stats = adjoint.pull_back(
            lambda z, theta: cell(z, theta, other, root), theta, end, v, solve_adjoint
        )
        if adjoint.can_fail:
            watch.of("way back of the adjoint").hear(Result(end.z, stats, None), solver)  # type: ignore[arg-type]
        return theta_bar, None, None, None, _report(stats, probe), None, None, None

    solve.defvjp(forward, backward)
    result = solve(theta, other, z0, resume, probe, part_inputs, slope, yardstick)
    return _detach(result, watch, solver)


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


def _both_modes(value, cell, theta, other, z0, solver, adjoint, watch, options) -> Result:
    """The same with a rule that goes forward, ż = (I − J)⁻¹ ∂f/∂θ θ̇, and whose transpose is exact.

    z* is solved for outside of any derivative; an identity then carries the rule. The linear solve
    is a fixed-point solve like any other, ż = J ż + b; transposed, it is the
    implicit adjoint's.
    """

    still = lax.stop_gradient(theta)
    result = watch.hear(run(lambda z: value(z, still, other), z0, solver, **options), solver)
    root = options["root"]

    @jax.custom_jvp
    def solution(theta, other, z):
        return z

    @solution.defjvp
    def tangent(primals, tangents):
        (theta, other, _), (theta_dot, *_) = primals, tangents
        # Not the bare z: a second derivative differentiates this line.
        z = solution(*primals)
        _, b = jax.jvp(lambda theta: cell(z, theta, other, root), (theta,), (theta_dot,))
        _, jacobian = jax.linearize(lambda z: cell(z, theta, other, root), z)

        def linear_solve(watch, matvec, b):
            def f(u):
                return jax.tree.map(lambda u, au, b: u - au + b, u, matvec(u), b)

            rules = {k: options[k] for k in ("batched", "collectives")}
            result = run(f, b, adjoint.solver, **rules, yardstick=b)
            watch.hear(result, adjoint.solver)
            return watch.mark(result.z, result.stats, adjoint.solver)

        def matvec(u):
            return jax.tree.map(jnp.subtract, u, jacobian(u))

        forward, transposed = (
            partial(linear_solve, watch.settled(f"{kind} solve")) for kind in ("tangent", "adjoint")
        )
        return z, lax.custom_linear_solve(matvec, b, forward, transpose_solve=transposed)

    return result._replace(z=solution(theta, other, lax.stop_gradient(result.z)))


def _detach(result: Result, watch: Watch, solver: Solver) -> Result:
    """Gradients flow through z alone."""
    stats, state = lax.stop_gradient((result.stats, result.state))
    return Result(watch.mark(result.z, stats, solver), stats, state)


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
