"""Numbers whose squares vanish or overflow, in float32: 1e-15 and 1e20 are numbers like others."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax._solution import Stats
from deqjax._state import norm
from deqjax.solvers.base import Cell, Point
from tests import cells

ADJOINTS = {
    **{name: deqjax.Implicit(solver=solver) for name, solver in cells.SMALL.items()},
    "gmres": deqjax.Implicit(solver="gmres"),
    "shine": deqjax.Shine(refine=1),
    "phantom": deqjax.Phantom(),
}
# Powers of two, so that the arithmetic is the same.
SIZES = (2.0**-80, 2.0**-50, 2.0**70)


def gradient(scale, theta, x, adjoint, solver="broyden", **options):
    """Of scale · Σ sin(z), with the adjoint's report."""

    def loss(theta, x, probe):
        z0, batch_axis = jnp.zeros_like(x), 0 if x.ndim == 2 else None
        sol = deqjax.fixed_point(
            lambda z, theta, x: cells.tanh_cell(z, theta, x),
            *(z0, theta, x),
            **dict(solver=solver, adjoint=adjoint, batch_axis=batch_axis, rtol=1e-6) | options,
            adjoint_probe=probe,
        )
        return scale * jnp.sum(jnp.sin(sol.z))

    probe = deqjax.adjoint_probe(x.shape[0] if x.ndim == 2 else None)
    return jax.grad(loss, (0, 1, 2))(theta, x, probe)


def single(n=6, rows=None):
    theta, x = cells.tanh_parameters(n)
    x = x if rows is None else np.stack([(i + 1) * x for i in range(rows)])
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (theta, x))


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_gradient_is_as_good_for_a_loss_of_any_size(adjoint):
    theta, x = single(rows=2)
    run = jax.jit(lambda scale: gradient(scale, theta, x, ADJOINTS[adjoint]))
    *want, report = run(1.0)
    for scale in SIZES:
        *got, found = run(scale)
        scaled = jax.tree.map(lambda g, s=scale: np.asarray(g, np.float64) / s, got)
        assert cells.relative(scaled, want) < 1e-6
        np.testing.assert_array_equal(found.status, report.status)
        np.testing.assert_array_equal(found.steps, report.steps)
        np.testing.assert_allclose(found.rel_residual, report.rel_residual, rtol=1e-5)
        np.testing.assert_allclose(
            np.asarray(found.residual, np.float64), scale * report.residual, rtol=1e-5
        )


def test_no_cotangent_is_no_gradient():
    theta, x = single()
    *got, report = gradient(0.0, theta, x, "implicit")
    assert all(np.all(g == 0) for g in jax.tree.leaves(got)) and bool(report.converged)


def test_an_absolute_tolerance_of_the_adjoint_stays_absolute():
    theta, x = single()
    loose = deqjax.Implicit(solver=deqjax.Picard(atol=1e-3, rtol=0.0))
    taken = [gradient(scale, theta, x, loose)[2] for scale in (1e-4, 1.0, 10.0)]
    assert int(taken[0].steps) == 0 < int(taken[1].steps) < int(taken[2].steps)
    assert all(float(report.residual) <= 1e-3 for report in taken)


def test_a_cotangent_that_is_not_finite_spoils_its_own_sample_only():
    theta, x = single(rows=3)

    def u(v):
        solve = lambda x: (
            deqjax.fixed_point(cells.tanh_cell, jnp.zeros_like(x), theta, x, batch_axis=0).z
        )
        return jax.vjp(solve, x)[1](v)[0]

    v = jnp.ones_like(x)
    for bad in (np.nan, np.inf):
        np.testing.assert_allclose(u(v.at[1, 2].set(bad))[::2], u(v)[::2], rtol=1e-5)


def test_a_tangent_of_any_size():
    theta, x = single()
    solve = lambda x: (
        deqjax.fixed_point(
            cells.tanh_cell, jnp.zeros_like(x), theta, x, forward_mode=True, rtol=1e-6
        ).z
    )
    push = jax.jit(lambda size: jax.jvp(solve, (x,), (size * jnp.ones_like(x),))[1])
    for size in SIZES:
        assert cells.relative(np.asarray(push(size), np.float64) / size, push(1.0)) < 1e-6


def test_second_derivatives_of_a_loss_of_any_size():
    theta, x = single()
    solve = lambda x: deqjax.fixed_point(cells.tanh_cell, jnp.zeros_like(x), theta, x, rtol=1e-6).z
    loss = lambda x, size: size * jnp.sum(jnp.sin(solve(x)))
    hessian = jax.jit(lambda size: jax.jacrev(jax.grad(loss))(x, size))
    for size in (1e-15, 1e15):
        assert cells.relative(np.asarray(hessian(size), np.float64) / size, hessian(1.0)) < 1e-5


@pytest.mark.parametrize("solver", cells.SMALL)
def test_a_length_that_overflows_is_no_solution(solver):
    """‖f(z) − z‖ is finite, ‖f(z)‖ is not: every residual would meet a relative tolerance."""
    z0 = jnp.full((2, 4), 1.0, jnp.float32).at[0].set(1e20)
    sol = deqjax.fixed_point(
        lambda z: 1.001 * z, z0, solver=cells.SMALL[solver], batch_axis=0, max_steps=3
    )
    assert sol.stats.status[0] == deqjax.Status.NONFINITE
    assert sol.stats.status[1] != deqjax.Status.NONFINITE
    assert sol.stats.rel_residual[0] == np.inf


def test_a_solve_that_runs_into_an_overflow_keeps_what_it_had():
    start = jnp.full(4, 1e17, jnp.float32)
    f = lambda z: jnp.where(z > 5e17, 1.5 * z, 2.0 * z)  # the residual shrinks once, beside ‖f‖
    sol = deqjax.fixed_point(f, start, solver="picard", rtol=1e-3, max_steps=400)
    assert sol.stats.status in (deqjax.Status.DIVERGED, deqjax.Status.NONFINITE)
    assert np.isfinite(sol.z).all() and 0 < float(sol.stats.rel_residual) < np.inf


def test_a_pair_whose_length_overflows_is_not_kept():
    solver = deqjax.Broyden(memory=3)
    f, z = Cell(lambda z: z + 1), jnp.zeros((2, 4), jnp.float32)
    point = Point.of(z, f(z))
    state = solver.init(point, 10)
    # A history and coefficients that make the first sample's next step 1e20 long.
    before = state._replace(
        y=state.y.push(jnp.ones_like(z), jnp.int32(0), None),
        gamma=state.gamma.at[0, 0].set(1e20),
    )
    after = solver.step(f, point, before, jnp.int32(1), None).state
    np.testing.assert_array_equal(after.w.values[0], before.w.values[0])
    np.testing.assert_array_equal(after.y.values[0], before.y.values[0])
    np.testing.assert_array_equal(after.system[0], before.system[0])
    assert np.all(after.w.values[1, 1] == 1) and after.system[1, 1, -1] == 4


@dataclass(frozen=True, kw_only=True)
class Doubled(deqjax.Adjoint):
    """u = 2 v, by the shared way to θ."""

    def cotangent(self, pull, v, solve, end):
        u = jax.tree.map(lambda x: 2 * x, v)
        return u, Stats.unsolved(0, norm(v), norm(u))


@dataclass(frozen=True, kw_only=True)
class DoubledElsewhere(Doubled):
    """The same by a way of its own, which knows nothing of sizes."""

    def pull_back(self, cell, theta, end, v, solve):
        u, stats = self.cotangent(None, v, solve, end)
        return jax.vjp(lambda theta: cell(end.z, theta), theta)[1](u)[0], stats


@pytest.mark.parametrize("adjoint", [Doubled(), DoubledElsewhere()])
def test_an_adjoint_of_ones_own_sees_any_size_or_the_real_one(adjoint):
    theta, x = single()
    *want, _ = gradient(1.0, theta, x, "jfb")
    for scale in (1.0, SIZES[0]):
        *got, report = gradient(scale, theta, x, adjoint)
        scaled = jax.tree.map(lambda g, s=scale: np.asarray(g, np.float64) / s / 2, got)
        assert cells.relative(scaled, want) < 1e-6
    assert float(report.residual) < 1e-20
