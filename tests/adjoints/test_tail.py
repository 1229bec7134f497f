"""Tail: back-propagation through a few applications of f from a constant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status
from tests import cells


def by_hand(theta, x, z, steps):
    """z is a constant."""

    def loss(theta, x):
        y = z
        for _ in range(steps):
            y = cells.tanh_cell(y, theta, x)
        # The cotangent is that of the loss at z, not at y.
        return jnp.vdot(y, cells.cotangent_of(np.asarray(z)))

    return jax.grad(loss, (0, 1))(theta, x)


def gradient(theta, x, **options):
    return jax.jit(jax.grad(lambda t, x: cells.tanh_loss(t, x, **options), (0, 1)))(theta, x)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("max_steps", [2, 300])
def test_it_is_the_gradient_of_what_is_computed(steps, max_steps):
    """Converged or not."""
    theta, x = cells.tanh_parameters(6)
    options = cells.TIGHT | dict(solver="picard", max_steps=max_steps, on_failure="ignore")
    z = deqjax.fixed_point(cells.tanh_cell, jnp.zeros(6), theta, x, **options).z
    got = gradient(theta, x, adjoint=deqjax.Tail(steps=steps), **options)
    assert cells.relative(got, by_hand(theta, x, z, steps)) < 1e-12


def test_at_a_solution_it_is_the_series_and_tends_to_the_exact_gradient():
    theta, x = cells.tanh_parameters(6)
    options = cells.TIGHT | dict(solver="picard")
    tail = gradient(theta, x, adjoint=deqjax.Tail(steps=3), **options)
    phantom = gradient(theta, x, adjoint=deqjax.Phantom(steps=3, damping=1.0), **options)
    assert cells.relative(tail, phantom) < 1e-10
    errors = [
        cells.relative(
            gradient(theta, x, adjoint=deqjax.Tail(steps=k), **options),
            cells.dense_gradient(theta, x),
        )
        for k in (1, 5, 60)
    ]
    assert errors[0] > 0.05 > errors[1] > 1e-6 > 1e-9 > errors[2]


def test_each_sample_has_its_own_and_a_report():
    theta, x = cells.tanh_batch()
    probe = deqjax.adjoint_probe(batch=3, dtype=jnp.float64)
    options = cells.TIGHT | dict(solver="picard", adjoint=deqjax.Tail(steps=4), batch_axis=0)
    u, report = cells.probed(theta, x, probe, **options)
    z = cells.tanh_solution(theta, x)
    for row in range(3):
        J = cells.tanh_jacobian(z[row], theta)
        v = cells.cotangent_of(z[row])
        terms = [np.linalg.matrix_power(J.T, i) @ v for i in range(5)]
        np.testing.assert_allclose(u[row], sum(terms[:4]), rtol=1e-8)
        left = np.linalg.norm(terms[4]) / np.linalg.norm(v)
        np.testing.assert_allclose(report.rel_residual[row], left, rtol=1e-8)
    assert (report.status == Status.MAX_STEPS).all() and (report.steps == 4).all()


def test_wrong_options():
    with pytest.raises(ValueError, match="steps must be"):
        deqjax.Tail(steps=0)
    with pytest.raises(ValueError, match="forward_mode=True gives exact derivatives"):
        deqjax.fixed_point(jnp.cos, jnp.zeros(2), forward_mode=True, adjoint="tail")


def test_a_sample_without_numbers_leaves_the_gradient_that_all_share():
    theta, x = cells.tanh_batch()
    options = dict(solver="picard", adjoint=deqjax.Tail(steps=4), batch_axis=0, on_failure="ignore")

    def loss(theta, x):
        sol = deqjax.fixed_point(cells.tanh_cell, jnp.zeros_like(x), theta, x, **options)
        return jnp.sum(jnp.where(sol.stats.converged[:, None], sol.z, 0) ** 2)

    poisoned = x.copy()
    poisoned[1] = np.nan
    got = jax.jit(jax.grad(loss))(theta, poisoned)
    assert cells.relative(got, jax.jit(jax.grad(loss))(theta, x[[0, 2]])) < 1e-8
