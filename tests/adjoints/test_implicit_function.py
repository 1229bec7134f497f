"""The implicit gradient of a solution that came from anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status
from tests import cells


def exact(theta, x):
    return jax.grad(lambda x: jnp.sum(jnp.sin(iterated(theta, x))))(x)


def iterated(theta, x):
    step = lambda z, _: (cells.tanh_cell(z, theta, x), None)
    return jax.lax.scan(step, jnp.zeros_like(x), length=400)[0]


@pytest.mark.parametrize("adjoint_solver", [None, "picard", "gmres"])
def test_the_gradient_of_a_solution_from_elsewhere(adjoint_solver):
    theta, x = cells.tanh_parameters(6, radius=0.8)
    z_star = cells.tanh_solution(theta, x)  # NumPy, of another program

    def loss(x, probe):
        sol = deqjax.implicit_function(
            *(cells.tanh_cell, z_star, theta, x),
            adjoint_solver=adjoint_solver,
            rtol=1e-10,
            adjoint_probe=probe,
        )
        return jnp.sum(jnp.sin(sol.z)), sol

    probe = deqjax.adjoint_probe(dtype=jnp.float64)
    (got, report), sol = jax.grad(loss, (0, 1), has_aux=True)(x, probe)
    np.testing.assert_allclose(got, exact(theta, x), rtol=1e-8)
    np.testing.assert_array_equal(sol.z, z_star)
    assert bool(sol.stats.converged)
    assert (int(sol.stats.steps), int(sol.stats.f_evals)) == (0, 1)
    assert float(report.converged) == 1 and float(report.steps) >= 1


@pytest.mark.slow
def test_forward_mode_and_hessians():
    theta, x = cells.tanh_parameters(4, radius=0.8)
    z_star = cells.tanh_solution(theta, x)
    solve = lambda x: (
        deqjax.implicit_function(cells.tanh_cell, z_star, theta, x, forward_mode=True, rtol=1e-10).z
    )
    want = jax.jacrev(lambda x: iterated(theta, x))(x)
    np.testing.assert_allclose(jax.jacfwd(solve)(x), want, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(jax.jacrev(solve)(x), want, rtol=1e-7, atol=1e-9)


def test_it_says_how_well_z_star_solves_the_equation():
    theta, x = cells.tanh_parameters(6)
    z_star = cells.tanh_solution(theta, x)
    off = z_star + 0.01
    sol = deqjax.implicit_function(cells.tanh_cell, off, theta, x)
    residual = np.linalg.norm(cells.tanh_cell(off, theta, x) - off)
    assert int(sol.stats.status) == Status.MAX_STEPS
    np.testing.assert_allclose(sol.stats.residual, residual, rtol=1e-6)
    np.testing.assert_array_equal(sol.z, off)


def test_no_gradient_reaches_z_star_itself():
    theta, x = cells.tanh_parameters(6)
    z_star = jnp.asarray(cells.tanh_solution(theta, x))
    of = lambda z: jnp.sum(deqjax.implicit_function(cells.tanh_cell, z, theta, x).z)
    np.testing.assert_array_equal(jax.grad(of)(z_star), 0.0)


def test_samples_and_closures():
    theta, x = cells.tanh_parameters(5, radius=0.8)
    xs = jnp.stack([x, 2 * x, -x])
    z_star = jnp.stack([iterated(theta, row) for row in xs])

    def loss(xs):
        f = lambda z: cells.tanh_cell(z, theta, xs)
        sol = deqjax.implicit_function(f, z_star, batch_axis=0, rtol=1e-10)
        return jnp.sum(jnp.sin(sol.z)), sol.stats

    got, stats = jax.jit(jax.grad(loss, has_aux=True))(xs)
    assert stats.converged.shape == (3,) and bool(stats.converged.all())
    np.testing.assert_allclose(got, jnp.stack([exact(theta, row) for row in xs]), rtol=1e-7)


@pytest.mark.parametrize("adjoint", ["unrolled", "reversible", "shine"])
def test_an_adjoint_that_needs_steps_is_refused(adjoint):
    with pytest.raises(ValueError, match=r"takes\s+none"):
        deqjax.implicit_function(jnp.cos, jnp.ones(2), adjoint=adjoint)
