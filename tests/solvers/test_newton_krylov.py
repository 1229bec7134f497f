"""Newton–Krylov and the line search against dense answers and counted evaluations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status
from tests import cells


def test_newton_converges_where_picard_cannot_and_quadratically():
    theta, x = cells.tanh_parameters(8, radius=4.0)
    solve = lambda solver: deqjax.fixed_point(
        cells.tanh_cell, jnp.zeros(8), theta, x, solver=solver, trace=True, rtol=1e-13, max_steps=60
    )
    assert not bool(solve("picard").stats.converged)
    sol = solve("newton_krylov")
    assert bool(sol.stats.converged)
    z = np.asarray(sol.z)
    assert np.linalg.norm(cells.tanh_cell(z, theta, x) - z) < 1e-11
    residuals = np.asarray(sol.stats.trace)[: int(sol.stats.steps) + 1]
    close = residuals[:-1] < 1e-2
    # Choice 2 of Eisenstat and Walker: between 1.5 and 2 in order.
    assert np.all(residuals[1:][close] < np.maximum(10 * residuals[:-1][close] ** 1.5, 1e-11))


def test_line_search_saves_a_newton_step_that_would_diverge():
    """arctan from far away is the textbook case: the full step overshoots more each time."""
    g = lambda z: -jnp.arctan(z)
    start = jnp.array([20.0])
    options = dict(rtol=0.0, atol=1e-12, trace=True)
    # Undamped, |z| grows without end.
    full = deqjax.root_find(g, start, solver="gmres", max_steps=3, **options)
    assert not bool(full.stats.converged)
    sol = deqjax.root_find(g, start, solver="newton_krylov", **options)
    assert bool(sol.stats.converged) and float(jnp.abs(sol.z).max()) < 1e-11
    residuals = np.asarray(sol.stats.trace)[: int(sol.stats.steps) + 1]
    assert np.all(np.diff(residuals) < 0)


@pytest.mark.parametrize(
    "solver", [deqjax.NewtonKrylov(), deqjax.Broyden(line_search=True)], ids=lambda s: s.name
)
def test_evaluations_of_the_line_search_are_counted(solver):
    """Against a counter in f itself."""
    calls = []

    @jax.custom_jvp
    def cube(z):
        jax.debug.callback(lambda: calls.append("f"))
        return z**3

    @cube.defjvp
    def _(primals, tangents):
        (z,), (dz,) = primals, tangents
        return cube(z), 3 * z**2 * dz

    # From 0.3 the full step goes to about 6 or 20, where the residual is far larger.
    f = lambda z: z + 2 - cube(z)
    sol = jax.jit(lambda z: deqjax.fixed_point(f, z, solver=solver, rtol=1e-9))(jnp.array([0.3]))
    jax.effects_barrier()
    assert bool(sol.stats.converged) and abs(float(sol.z[0]) - 2 ** (1 / 3)) < 1e-8
    if isinstance(solver, deqjax.Broyden):
        assert len(calls) == int(sol.stats.f_evals) > int(sol.stats.steps) + 1
    else:
        # The rest are Jacobian-vector products: one a step in one dimension.
        steps = int(sol.stats.steps)
        assert len(calls) == int(sol.stats.f_evals) - steps > 1 + 2 * steps


def test_a_root_at_infinity_is_not_a_root():
    """z + g(z) = z to rounding there, but g is what is looked at."""
    g = lambda z: -10 * jnp.arctan(z)
    for start in (20.0, 1e17):
        solver = deqjax.Broyden(line_search=True)
        sol = deqjax.root_find(g, jnp.array([start]), solver=solver, rtol=0.0, atol=1e-9)
        assert not bool(sol.stats.converged) and float(sol.stats.residual) > 10


def test_without_line_search_a_broyden_step_costs_one_evaluation():
    theta, x = cells.tanh_parameters(6)
    sol = deqjax.fixed_point(
        cells.tanh_cell, jnp.zeros(6), theta, x, solver="broyden", **cells.TIGHT
    )
    assert int(sol.stats.f_evals) == int(sol.stats.steps) + 1


def test_samples_are_independent_and_frozen():
    theta, _ = cells.tanh_parameters(6, radius=2.0)
    x = np.random.default_rng(1).normal(size=(5, 6)) * np.array([0.01, 0.1, 1, 3, 10])[:, None]

    @jax.jit
    def solve(x):
        return deqjax.fixed_point(
            cells.tanh_cell,
            jnp.zeros_like(x),
            theta,
            x,
            solver="newton_krylov",
            batch_axis=0,
            rtol=1e-9,
        )

    together = solve(x)
    assert bool(together.stats.converged.all())
    assert len(set(np.asarray(together.stats.f_evals).tolist())) > 1
    for i in range(5):
        alone = solve(x[i : i + 1])
        assert int(alone.stats.steps[0]) == int(together.stats.steps[i])
        assert int(alone.stats.f_evals[0]) == int(together.stats.f_evals[i])
        assert cells.relative(alone.z[0], together.z[i]) < 1e-9
    poisoned = solve(x.copy() + np.where(np.arange(5)[:, None] == 2, np.nan, 0.0))
    assert int(poisoned.stats.status[2]) == Status.NONFINITE
    others = np.array([0, 1, 3, 4])
    assert cells.relative(poisoned.z[others], together.z[others]) < 1e-12


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_does_not_matter(scale):
    theta, x = cells.tanh_parameters(8, radius=0.95)
    plain, scaled = (
        deqjax.fixed_point(
            lambda z, s=s: s * cells.tanh_cell(z / s, theta, x),
            jnp.zeros(8),
            solver="newton_krylov",
            rtol=1e-9,
            atol=0.0,
        ).stats
        for s in (1.0, scale)
    )
    assert int(plain.f_evals) == int(scaled.f_evals)


def test_a_pytree_is_one_vector():
    theta, x = cells.tanh_parameters(9)
    options = dict(solver="newton_krylov", rtol=1e-10)
    flat = deqjax.fixed_point(lambda z: cells.tanh_cell(z, theta, x), jnp.zeros(9), **options)
    f = cells.on_pytrees(lambda z: cells.tanh_cell(z, theta, x))
    tree = deqjax.fixed_point(f, cells.split(jnp.zeros(9)), **options)
    assert int(tree.stats.f_evals) == int(flat.stats.f_evals)
    assert cells.relative(tree.z, cells.split(flat.z)) < 1e-12


@pytest.mark.parametrize("solver", ["newton_krylov", "anderson"])
@pytest.mark.parametrize("adjoint_solver", [None, "gmres", "newton_krylov"])
def test_gradients_against_a_dense_solve(solver, adjoint_solver):
    theta, x = cells.tanh_parameters(6)
    z = cells.tanh_solution(theta, x)

    def loss(theta, x):
        sol = deqjax.fixed_point(
            cells.tanh_cell,
            jnp.zeros(6),
            theta,
            x,
            solver=solver,
            adjoint_solver=adjoint_solver,
            **cells.TIGHT,
        )
        return cells.loss_of(sol.z)

    got = jax.jit(jax.grad(loss, (0, 1)))(theta, x)
    assert cells.relative(got, cells.tanh_gradient(theta, z, cells.cotangent_of(z))) < 1e-9


def test_the_adjoint_of_a_newton_solve_is_gmres():
    theta, x = cells.tanh_parameters(6)

    def loss(theta, probe):
        sol = deqjax.fixed_point(
            cells.tanh_cell,
            jnp.zeros(6),
            theta,
            x,
            solver="newton_krylov",
            adjoint_probe=probe,
            rtol=1e-10,
        )
        return cells.loss_of(sol.z)

    probe = deqjax.adjoint_probe(dtype=jnp.float64)
    stats = jax.grad(loss, 1)(theta, probe)
    assert float(stats.converged) == 1 and float(stats.steps) == 1
    assert float(stats.rel_residual) <= 1e-10


def test_complex_states():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 5)) + 1j * rng.normal(size=(5, 5))
    b = rng.normal(size=5) + 1j * rng.normal(size=5)
    for solver in ("gmres", "newton_krylov"):
        sol = deqjax.fixed_point(
            lambda z: a @ z + b, jnp.zeros(5, complex), solver=solver, rtol=1e-10
        )
        assert bool(sol.stats.converged)
        assert cells.relative(sol.z, np.linalg.solve(np.eye(5) - a, b)) < 1e-8


@pytest.mark.parametrize("dtype,rtol", [(jnp.bfloat16, 2e-2), (jnp.float32, 1e-5)])
def test_narrow_dtypes(dtype, rtol):
    theta, x = cells.tanh_parameters(8)
    theta, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (theta, x))
    sol = deqjax.fixed_point(cells.tanh_cell, jnp.zeros(8, dtype), theta, x, solver="newton_krylov")
    assert sol.z.dtype == dtype and bool(sol.stats.converged)
    assert float(sol.stats.rel_residual) <= rtol


@pytest.mark.parametrize("solver", ["newton_krylov", "gmres", deqjax.Broyden(line_search=True)])
def test_unrolling_a_solver_with_inner_loops_is_refused(solver):
    with pytest.raises(ValueError, match="cannot differentiate the loops inside a step"):
        deqjax.fixed_point(jnp.cos, jnp.zeros(2), solver=solver, adjoint="unrolled")


@pytest.mark.parametrize("bad", [0.0, 1.5])
def test_wrong_forcing(bad):
    with pytest.raises(ValueError, match=r"forcing must be in \(0, 1\]"):
        deqjax.NewtonKrylov(forcing=bad)
