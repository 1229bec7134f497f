"""The equilibrium as a differentiable function: the driver inside a `custom_vjp`.

Both `fixed_point` and the implicit adjoint call `equilibrium`, so that the adjoint of the adjoint,
and so on to any order, is the same code again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ._closure import hoist, is_differentiable, varies_less, vary_like
from ._driver import Result, Resume, run
from ._solution import Stats
from .adjoints.base import Adjoint
from .solvers.base import Solver

PyTree = Any


def equilibrium(
    f: Callable,
    z0: PyTree,
    solver: Solver,
    adjoint: Adjoint,
    *,
    batched: bool,
    trace: bool = False,
    resume: Resume | None = None,
    probe: Stats | None = None,
) -> Result:
    """Solve z = f(z) with the batch on axis 0, differentiable in everything f closes over."""
    if not adjoint.differentiates_loop:
        # Before the cast below, whose transpose would be a sum over devices of zeros.
        z0 = lax.stop_gradient(z0)
    pure, inputs, out, collectives = hoist(f, z0)
    if varies_less(z0, out):
        z0 = vary_like(z0, out)
        pure, inputs, out, collectives = hoist(f, z0)
    options: dict[str, Any] = dict(
        batched=batched, trace=trace, resume=resume, collectives=collectives
    )

    if adjoint.differentiates_loop:
        return _detach(run(lambda z: pure(z, inputs), z0, solver, loop=adjoint.loop, **options))

    theta = [x for x in inputs if is_differentiable(x)]
    other = [x for x in inputs if not is_differentiable(x)]
    is_theta = [is_differentiable(x) for x in inputs]

    def cell(z, theta, other):
        a, b = iter(theta), iter(other)
        return pure(z, [next(a) if t else next(b) for t in is_theta])

    @jax.custom_vjp
    def solve(theta, other, z0, resume, probe):
        del probe
        return run(lambda z: cell(z, theta, other), z0, solver, **(options | {"resume": resume}))

    def forward(*args):
        # `solve` and not `run`: a second derivative differentiates this line.
        result = solve(*args)
        theta, other, *_, probe = args
        return result, (result.z, theta, other, probe)

    def solve_adjoint(f, u0, solver):
        result = equilibrium(f, u0, solver, adjoint, batched=batched)
        return result.z, result.stats

    def backward(saved, cotangents):
        z, theta, other, probe = saved
        v = cotangents.z
        _, pull = jax.vjp(lambda z: cell(z, theta, other), z)
        u, stats = adjoint.cotangent(lambda u: pull(u)[0], v, solve_adjoint)
        _, pull_theta = jax.vjp(lambda theta: cell(z, theta, other), theta)
        return *pull_theta(u), None, None, None, _report(stats, probe)

    solve.defvjp(forward, backward)
    return _detach(solve(theta, other, z0, resume, probe))


def _detach(result: Result) -> Result:
    """Gradients flow through z alone."""
    return Result(result.z, *lax.stop_gradient((result.stats, result.state)))


def _report(stats: Stats, probe: Stats | None) -> Stats | None:
    """The adjoint's statistics as the 'gradient' of the probe."""
    if probe is None:
        return None
    fields = {}
    for name in ("status", "converged", "steps", "f_evals", "residual", "rel_residual"):
        value, like = getattr(stats, name), getattr(probe, name)
        fields[name] = lax.stop_gradient(value.astype(like.dtype).reshape(jnp.shape(like)))
    return Stats(**fields)
