"""Time of the backward pass over as many bare VJPs of f, one linearisation shared."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import deqjax

from .cells import Cell, cells
from .report import Row, Settings, at_most
from .timing import interleaved, spread

TITLE = "Backward pass over (adjoint steps + 2) bare VJPs (reference cell, rtol 1e-5)"
LIMIT = 1.15
SOLVERS = ("picard", "anderson", "broyden")


def run(settings: Settings) -> list[Row]:
    cell = cells(settings.quick)[0]
    rows = []
    for solver in SOLVERS:
        for axis in (None, 0):
            forward, backward = passes(cell, solver, axis)
            steps = adjoint_steps(cell, solver, axis)
            times = interleaved(
                {
                    "pull_back": partial(backward, forward()[1]),
                    "vjps": bare_vjps(cell, forward()[0], steps + 2),
                },
                **settings.timing,
            )
            over = spread(times.seconds["pull_back"] / times.seconds["vjps"])
            detail = f"{steps} adjoint steps, {over.quartiles}"
            rows.append(at_most(f"{solver}, batch_axis={axis}", over.median, LIMIT, detail))
    return rows


def solution(cell: Cell, solver, axis, theta, x, probe=None):
    return deqjax.fixed_point(
        cell.f,
        jnp.asarray(cell.z0),
        theta,
        x,
        solver=solver,
        rtol=1e-5,
        batch_axis=axis,
        adjoint_probe=probe,
    ).z


def passes(cell: Cell, solver, axis):
    """forward() -> (z*, what the backward pass needs); backward(that) -> (θ̄, x̄).

    Two compiled functions, so that the backward pass is timed alone.
    """
    given = jax.tree.map(jnp.asarray, (cell.theta, cell.x))
    v = jnp.asarray(cell.v)

    @jax.jit
    def forward(theta, x):
        return jax.vjp(lambda theta, x: solution(cell, solver, axis, theta, x), theta, x)

    @jax.jit
    def backward(pull):
        return pull(v)

    return partial(forward, *given), backward


def adjoint_steps(cell: Cell, solver, axis) -> int:
    """Steps of the adjoint solve, as its own probe reports them: the slowest sample's."""
    given = jax.tree.map(jnp.asarray, (cell.theta, cell.x))
    batch = None if axis is None else cell.x.shape[axis]

    def loss(probe, theta, x):
        return jnp.vdot(cell.v, solution(cell, solver, axis, theta, x, probe))

    stats = jax.jit(jax.grad(loss))(deqjax.adjoint_probe(batch), *given)
    if not np.asarray(stats.converged).all():
        raise RuntimeError(f"the adjoint of {solver} did not converge on {cell.name}")
    return int(np.max(np.asarray(stats.steps)))


def bare_vjps(cell: Cell, z, count: int):
    """`count` VJPs of f at z: all but the last to z, in a loop on one linearisation; that to θ."""
    given = jax.tree.map(jnp.asarray, (cell.theta, cell.x))

    @jax.jit
    def loop(z, theta, x):
        _, pull = jax.vjp(lambda z: cell.f(z, theta, x), z)
        v = jnp.asarray(cell.v)
        u = lax.fori_loop(0, count - 1, lambda _, u: pull(u)[0], v)
        _, pull_theta = jax.vjp(lambda theta, x: cell.f(z, theta, x), theta, x)
        return pull_theta(u)

    return partial(loop, z, *given)
