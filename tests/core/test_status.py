"""How a solve ended, what it cost, and that it returns the best iterate it saw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status
from tests import cells


def solve(f, z0, *args, **options):
    return jax.jit(lambda z0, args: deqjax.fixed_point(f, z0, *args, **options))(z0, args)


def residual_of(f, z):
    return float(np.linalg.norm(np.asarray(f(z)) - np.asarray(z)))


# ------------------------------------------------------------------------------- stop test


@pytest.mark.parametrize(
    ("rtol", "atol", "stops"),
    [
        (0.0, 5.0, True),  # ‖f(z) − z‖ = 5 ≤ 5
        (0.0, 4.999, False),
        (0.5, 0.0, True),  # ‖f(z)‖ = 10: f(z), not z, and 2-norms, not maxima
        (0.499, 0.0, False),
        (0.3, 2.0, True),  # the two add up
        (0.3, 1.99, False),
    ],
)
def test_the_stop_test_to_the_digit(rtol, atol, stops):
    z0 = np.array([3.0, 4.0])
    sol = deqjax.fixed_point(
        lambda z: z + np.array([3.0, 4.0]), z0, solver="picard", rtol=rtol, atol=atol, max_steps=0
    )
    assert bool(sol.stats.converged) == stops
    assert int(sol.stats.status) == (Status.CONVERGED if stops else Status.MAX_STEPS)
    assert float(sol.stats.residual) == 5.0 and float(sol.stats.rel_residual) == 0.5
    np.testing.assert_array_equal(sol.z, z0)


@pytest.mark.parametrize("tolerances", [(1e-6, 0.0), (0.0, 1e-6), (1e-3, 1e-3)])
def test_stops_at_the_first_step_that_meets_the_test(tolerances):
    rtol, atol = tolerances
    theta, x = cells.tanh_parameters(6, radius=0.8)
    f = lambda z: np.tanh(theta["w"] @ z + theta["b"]) + x
    sol = solve(cells.tanh_cell, np.zeros(6), theta, x, solver="picard", rtol=rtol, atol=atol)
    z, steps = np.zeros(6), 0
    while np.linalg.norm(f(z) - z) > atol + rtol * np.linalg.norm(f(z)):
        z, steps = f(z), steps + 1
    assert int(sol.stats.steps) == steps > 3
    np.testing.assert_allclose(sol.z, z, rtol=1e-13)


def test_default_tolerances_follow_the_dtype():
    for dtype, rtol in [
        (jnp.float64, 1e-8),
        (jnp.float32, 1e-5),
        (jnp.float16, 4e-3),
        (jnp.bfloat16, 2e-2),
    ]:
        z0 = jnp.ones(4, dtype)

        @jax.jit
        def ends(gap, z0=z0):
            # ‖f(z) − z‖ / ‖f(z)‖ = gap, to the precision of the dtype.
            cell = lambda z: (z + gap * z / (1 - gap)).astype(z0.dtype)
            return deqjax.fixed_point(cell, z0, solver="picard", max_steps=0).stats.converged

        assert ends(0.5 * rtol) and not ends(2.0 * rtol)


def test_norms_of_half_precision_do_not_overflow():
    sol = deqjax.fixed_point(
        lambda z: jnp.full_like(z, 3e4), jnp.zeros(16, jnp.float16), solver="picard"
    )
    assert bool(sol.stats.converged) and sol.z.dtype == jnp.float16
    before = deqjax.fixed_point(
        lambda z: jnp.full_like(z, 3e4), jnp.zeros(16, jnp.float16), solver="picard", max_steps=0
    )
    assert before.stats.residual.dtype == jnp.float32
    np.testing.assert_allclose(before.stats.residual, 4 * 3e4, rtol=1e-3)


def test_z0_at_the_solution_takes_no_step():
    for solver in cells.SMALL.values():
        sol = solve(lambda z: 0.5 * z, np.zeros(3), solver=solver)
        assert bool(sol.stats.converged)
        assert (int(sol.stats.steps), int(sol.stats.f_evals)) == (0, 1)
        assert float(sol.stats.residual) == float(sol.stats.rel_residual) == 0.0


# ------------------------------------------------------------------------------- best iterate


@pytest.mark.parametrize("solver", cells.SOLVERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_never_returns_a_worse_iterate_than_one_it_saw(solver, seed):
    """A cell that no solver converges on: residuals rise and fall."""
    rng = np.random.default_rng(seed)
    w = 2.0 * rng.normal(size=(5, 5))
    f = lambda z: jnp.sin(3.0 * w @ z) + 0.3 + jnp.cos(z) ** 2
    z0 = rng.normal(size=5)

    def stopped_after(steps):
        sol = solve(
            f, z0, solver=cells.SMALL[solver], rtol=1e-14, atol=0.0, max_steps=steps, trace=True
        )
        return sol, np.asarray(sol.stats.trace)

    rises = np.diff(stopped_after(25)[1]) > 0
    sol, trace = stopped_after(int(np.argmax(rises)) + 1)
    assert trace[-1] > trace.min()  # the last is not the best
    assert float(sol.stats.residual) == trace.min()
    np.testing.assert_allclose(residual_of(f, sol.z), trace.min(), rtol=1e-6)
    np.testing.assert_allclose(
        sol.stats.rel_residual, trace.min() / np.linalg.norm(f(sol.z)), rtol=1e-6
    )


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_short_budgets(solver):
    """max_steps of 1 to 3: progress at once, and true statistics."""
    a, b, _ = cells.linear([0.9, 0.5, -0.7, 0.3])
    f = lambda z: cells.linear_cell(z, a, b)
    for budget in (1, 2, 3) if solver == "anderson" else (1, 2):
        sol = solve(
            f,
            np.zeros(4),
            solver=cells.SMALL[solver],
            rtol=1e-14,
            atol=0.0,
            max_steps=budget,
            trace=True,
        )
        assert int(sol.stats.status) == Status.MAX_STEPS and not bool(sol.stats.converged)
        assert int(sol.stats.steps) == budget and int(sol.stats.f_evals) == budget + 1
        assert sol.stats.trace.shape == (budget + 1,)
        np.testing.assert_allclose(sol.stats.residual, residual_of(f, sol.z), rtol=1e-10)
        assert float(sol.stats.residual) == float(jnp.min(sol.stats.trace))
        assert float(sol.stats.residual) < 0.95 * np.linalg.norm(b)  # not z0
        if budget == 1:
            np.testing.assert_allclose(sol.z, b, rtol=1e-14)


# ------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_f_that_turns_nan_midway(solver):
    """z' = z/2 + 1 from 0 goes 0, 1, ... towards 2, and f is NaN (or ∞) beyond 1.2."""
    f = lambda z, bad: jnp.where(z > 1.2, bad, 0.5 * z + 1.0)
    run = jax.jit(
        lambda bad: deqjax.fixed_point(f, jnp.zeros(3), bad, solver=cells.SMALL[solver], trace=True)
    )
    for bad in (np.nan, np.inf):
        sol = run(bad)
        assert int(sol.stats.status) == Status.NONFINITE and not bool(sol.stats.converged)
        # 0 → 1 → (1.5 by Picard, 2 by the others) is the first bad one: two steps, three calls.
        assert int(sol.stats.steps) == 2 and int(sol.stats.f_evals) == 3
        np.testing.assert_array_equal(sol.z, 1.0)
        np.testing.assert_allclose(sol.stats.residual, 0.5 * np.sqrt(3))
        assert not np.isfinite(sol.stats.trace[2]) and np.all(np.isnan(sol.stats.trace[3:]))


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_nonfinite_from_the_start(solver):
    @jax.jit
    def run(z0, x):
        return deqjax.fixed_point(lambda z: 0.5 * z + x, z0, solver=cells.SMALL[solver])

    for sol in (run(np.array([0.0, np.nan]), 1.0), run(np.array([0.0, np.inf]), 1.0)):
        assert int(sol.stats.status) == Status.NONFINITE
        assert (int(sol.stats.steps), int(sol.stats.f_evals)) == (0, 1)
    sol = run(np.array([3.0, 4.0]), np.nan)
    assert int(sol.stats.status) == Status.NONFINITE
    np.testing.assert_array_equal(sol.z, [3.0, 4.0])


def test_divergence_is_called_by_its_name():
    sol = solve(lambda z: 3.0 * z + 1.0, np.ones(2), solver="picard", trace=True)
    assert int(sol.stats.status) == Status.DIVERGED
    np.testing.assert_array_equal(sol.z, 1.0)  # every later iterate is worse
    steps = int(sol.stats.steps)
    assert steps < 20  # 3¹³ > 1e6: it does not wait for an overflow
    assert np.isfinite(sol.stats.trace[steps]) and np.all(np.isnan(sol.stats.trace[steps + 1 :]))


def test_a_large_start_is_not_a_divergence():
    """The residual may rise by orders of magnitude on the way to a solution of that size."""
    a, b, z_star = cells.linear([0.99, 0.98, 0.5])
    sol = solve(cells.linear_cell, np.zeros(3), a, 1e8 * b, solver="anderson", rtol=1e-9)
    assert bool(sol.stats.converged) and cells.relative(sol.z, 1e8 * z_star) < 1e-6


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_a_solve_may_pass_through_worse_iterates(solver):
    """An expansive linear map: Picard diverges, the others converge."""
    a, b, z_star = cells.linear([3.0, -2.0, 0.5])
    sol = solve(
        cells.linear_cell, np.zeros(3), a, b, solver=cells.SMALL[solver], rtol=1e-9, trace=True
    )
    assert bool(sol.stats.converged) and cells.relative(sol.z, z_star) < 1e-7
    assert np.nanmax(sol.stats.trace) > 1.5 * float(sol.stats.trace[0])


# ------------------------------------------------------------------------------- costs


@pytest.mark.parametrize("solver", cells.SOLVERS)
@pytest.mark.parametrize("max_steps", [3, 100])
def test_f_evals_are_counted_truly(solver, max_steps):
    theta, x = cells.tanh_parameters(5)
    calls = []

    def f(z):
        jax.debug.callback(lambda: calls.append(1))
        return cells.tanh_cell(z, theta, x)

    sol = solve(f, np.zeros(5), solver=cells.SMALL[solver], rtol=1e-6, max_steps=max_steps)
    jax.block_until_ready(sol)
    jax.effects_barrier()
    assert len(calls) == int(sol.stats.f_evals) >= 1
    assert int(sol.stats.steps) <= int(sol.stats.f_evals)


def test_a_gradient_costs_one_linearisation():
    """Beyond the forward solve f runs at most twice: linearised in z, and in the parameters."""
    theta, x = cells.tanh_parameters(5)
    calls = []

    def f(z, x):
        jax.debug.callback(lambda: calls.append(1))
        return cells.tanh_cell(z, theta, x)

    def loss(x):
        sol = deqjax.fixed_point(f, jnp.zeros(5), x, solver=cells.SMALL["anderson"], rtol=1e-8)
        return jnp.sum(sol.z), sol.stats

    grad, stats = jax.jit(jax.grad(loss, has_aux=True))(x)
    jax.block_until_ready(grad)
    jax.effects_barrier()
    assert int(stats.f_evals) < len(calls) <= int(stats.f_evals) + 2


def test_trace_is_off_by_default_and_max_steps_0_only_evaluates():
    sol = deqjax.fixed_point(jnp.cos, jnp.zeros(2), max_steps=0)
    assert sol.stats.trace is None
    assert int(sol.stats.status) == Status.MAX_STEPS
    assert (int(sol.stats.steps), int(sol.stats.f_evals)) == (0, 1)
    np.testing.assert_allclose(sol.stats.residual, np.sqrt(2))


def test_trace_of_a_picard_solve():
    sol = solve(lambda z: 0.5 * z + 1.0, np.zeros(1), solver="picard", rtol=0.01, trace=True)
    # r = 1 − z/2 and ‖f‖ = 1 + z/2 with z = 2 − 2^{1−k}: the first r/‖f‖ ≤ 0.01 is at k = 6.
    assert int(sol.stats.steps) == 6 and sol.stats.trace.shape == (101,)
    np.testing.assert_array_equal(sol.stats.trace[:7], 0.5 ** np.arange(7))
    assert np.all(np.isnan(sol.stats.trace[7:]))


# ------------------------------------------------------------------------------- reporting


def test_raise_unless_converged():
    good = deqjax.fixed_point(jnp.cos, jnp.zeros(2))
    assert good.raise_unless_converged() is good

    short = deqjax.fixed_point(jnp.cos, jnp.zeros(2), max_steps=1)
    with pytest.raises(deqjax.SolveError, match=r"the solve failed.*raise max_steps"):
        short.raise_unless_converged()

    mixed = deqjax.fixed_point(
        lambda z, a: a * z + 1.0,
        jnp.ones((4, 1)),
        np.array([[0.1], [0.999], [3.0], [0.2]]),
        solver="picard",
        batch_axis=0,
    )
    statuses = [Status.CONVERGED, Status.MAX_STEPS, Status.DIVERGED, Status.CONVERGED]
    assert np.asarray(mixed.stats.status).tolist() == statuses
    with pytest.raises(deqjax.SolveError, match=r"2 of 4 solves failed.*diverged.*damping"):
        mixed.raise_unless_converged()
    assert issubclass(deqjax.SolveError, RuntimeError)


def test_raise_unless_converged_under_jit_says_where_it_works():
    with pytest.raises(TypeError, match=r"concrete values.*sol\.stats"):
        jax.jit(
            lambda z: deqjax.fixed_point(jnp.cos, z, solver="picard").raise_unless_converged().z
        )(jnp.zeros(2))


def test_every_status_carries_advice():
    advice = {
        Status.NO_REPORT: "does not depend on z*",
        Status.SEVERAL: "counts",
        Status.CONVERGED: "atol",
        Status.MAX_STEPS: "max_steps",
        Status.NONFINITE: "NaN",
        Status.DIVERGED: "damping",
        Status.RUNNING: "not finished",
        Status.INCONSISTENT: "batch_axis=None",
        Status.UNBOUNDED: "no solution",
        Status.LIMITED: "max_gain",
        Status.INFEASIBLE: "relax",
        Status.NOT_CONVEX: "symmetrise",
    }
    assert set(advice) == set(Status)
    for status, word in advice.items():
        assert word in status.message
    assert len({s.message for s in Status}) == len(Status)


def test_stats_are_typed():
    stats = deqjax.fixed_point(jnp.cos, jnp.zeros(2), solver="picard").stats
    assert stats.status.dtype == stats.steps.dtype == stats.f_evals.dtype == jnp.int32
    assert stats.converged.dtype == bool and stats.residual.dtype == jnp.float64
    assert all(x.shape == () for x in jax.tree.leaves(stats))
