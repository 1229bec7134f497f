"""What `adjoint_probe` reports of an adjoint solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status
from tests import cells


@pytest.mark.parametrize(
    "adjoint",
    ["implicit", deqjax.Phantom(steps=3, damping=0.6), "jfb"],
    ids=["implicit", "phantom", "jfb"],
)
def test_probe_reports_the_true_residual_of_the_adjoint(adjoint):
    """∂z'/∂x = I makes the gradient to x equal to u: recompute ‖Jᵀu + v − u‖ from it."""
    theta, x = cells.tanh_parameters(6, radius=0.9)
    options = dict(solver=deqjax.Picard(max_steps=200, rtol=1e-12, atol=0.0), adjoint=adjoint)
    if adjoint == "implicit":
        options["adjoint_solver"] = deqjax.Picard(max_steps=3)
    u, stats = cells.probed(theta, x, deqjax.adjoint_probe(dtype=jnp.float64), **options)
    z = cells.tanh_solution(theta, x)
    target = cells.tanh_jacobian(z, theta).T @ u + cells.cotangent_of(z)
    residual = np.linalg.norm(target - u)
    assert residual > 1e-3
    np.testing.assert_allclose(stats.residual, residual, rtol=1e-8)
    v = np.linalg.norm(cells.cotangent_of(z))
    np.testing.assert_allclose(stats.rel_residual, residual / v, rtol=1e-8)
    np.testing.assert_allclose(stats.gain, np.linalg.norm(u) / v, rtol=1e-8)
    assert float(stats.solves) == 1
    assert float(stats.status) == Status.MAX_STEPS and float(stats.converged) == 0.0
    assert float(stats.steps) == {"implicit": 3, "jfb": 0}.get(adjoint, 2)


def test_probe_of_a_batch():
    theta, x = cells.tanh_parameters(6, radius=0.9)
    x = x * np.array([0.01, 1.0, 20.0])[:, None]
    u, stats = cells.probed(
        theta,
        x,
        deqjax.adjoint_probe(3, dtype=jnp.float64),
        solver=cells.SMALL["anderson"],
        batch_axis=0,
        rtol=1e-12,
        atol=0.0,
        max_steps=200,
        adjoint_solver=deqjax.Anderson(memory=3, rtol=1e-3),
    )
    z = cells.tanh_solution(theta, x)
    assert stats.steps.shape == (3,) and np.unique(stats.steps).size > 1
    np.testing.assert_array_equal(stats.converged, 1.0)
    np.testing.assert_array_equal(stats.f_evals, stats.steps + 1)
    for i in range(3):
        target = cells.tanh_jacobian(z[i], theta).T @ u[i] + cells.cotangent_of(z[i])
        residual = np.linalg.norm(target - u[i])
        assert 1e-8 < residual <= 1e-3 * np.linalg.norm(target)
        np.testing.assert_allclose(stats.residual[i], residual, rtol=0.01)


def test_probe_says_when_the_adjoint_failed():
    """J = 3 I: Picard's adjoint diverges; u falls back to v, which is the Jacobian-free one."""
    x = np.ones(4)

    def loss(x, probe):
        f = lambda z, x: 3.0 * z + x
        z0 = -0.5 * jnp.ones(4)  # the solution
        sol = deqjax.fixed_point(f, z0, x, solver="picard", adjoint_probe=probe)
        return jnp.sum(sol.z)

    grad, stats = jax.jit(jax.grad(loss, (0, 1)))(x, deqjax.adjoint_probe())
    assert float(stats.status) == Status.DIVERGED and float(stats.converged) == 0
    np.testing.assert_array_equal(grad, 1.0)


def test_probe_changes_no_gradient():
    theta, x = cells.tanh_parameters(6)
    options = dict(solver=cells.SMALL["anderson"], rtol=1e-6)
    with_probe, _ = cells.probed(theta, x, deqjax.adjoint_probe(), **options)
    without, none = cells.probed(theta, x, None, **options)
    assert none is None
    np.testing.assert_array_equal(with_probe, without)
