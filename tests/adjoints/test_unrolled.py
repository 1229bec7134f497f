"""Back-propagation through the steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells


@pytest.mark.parametrize("checkpoint", ["none", "all", "sqrt"])
def test_unrolled_is_back_propagation_through_the_steps(checkpoint):
    theta, x = cells.tanh_parameters(5, radius=0.95)
    budget = 7  # not a square: the last block of "sqrt" is longer than the budget

    def by_hand(theta, x):
        z = jnp.zeros(5)
        for _ in range(budget):
            z = 0.7 * cells.tanh_cell(z, theta, x) + 0.3 * z
        return cells.loss_of(z)

    got = jax.jit(
        jax.value_and_grad(
            functools.partial(
                cells.tanh_loss,
                solver=deqjax.Picard(damping=0.7),
                adjoint=deqjax.Unrolled(checkpoint=checkpoint),
                rtol=0.0,
                atol=0.0,
                max_steps=budget,
            ),
            (0, 1),
        )
    )(theta, x)
    want = jax.jit(jax.value_and_grad(by_hand, (0, 1)))(theta, x)
    assert cells.relative(got, want) < 1e-12
    assert (
        cells.relative(got[1], cells.dense_gradient(theta, x)) > 1e-3
    )  # exact for this iterate, not for z*


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_unrolled_through_accelerated_steps(solver):
    """Against finite differences of the same early-stopped solve."""
    theta, x = cells.tanh_parameters(5, radius=0.9)
    make = type(cells.SMALL[solver])
    options = dict(solver=make(memory=2), adjoint="unrolled", rtol=0.0, atol=0.0, max_steps=3)
    both = jax.jit(jax.value_and_grad(functools.partial(cells.tanh_loss, **options), 1))
    direction, h = np.linspace(-1, 1, 5), 1e-6
    up, down = (both(theta, x + step * direction)[0] for step in (h, -h))
    grad = both(theta, x)[1]
    np.testing.assert_allclose(grad @ direction, (up - down) / (2 * h), rtol=1e-6)
    assert cells.relative(grad, cells.dense_gradient(theta, x)[1]) > 1e-6


def test_unrolled_of_a_batch_stops_each_sample_where_the_solve_did():
    theta, x = cells.tanh_parameters(5, radius=0.9)
    x = x * np.array([0.1, 10.0])[:, None]

    def loss(x, axis, adjoint="unrolled"):
        options = dict(solver="picard", adjoint=adjoint, rtol=1e-3, atol=0.0, max_steps=20)
        sol = deqjax.fixed_point(
            cells.tanh_cell, jnp.zeros_like(x), theta, x, batch_axis=axis, **options
        )
        return cells.loss_of(sol.z), sol.stats.steps

    batch, steps = jax.jit(jax.grad(lambda x: loss(x, 0), has_aux=True))(x)
    alone = jax.jit(jax.grad(lambda x: loss(x, None), has_aux=True))
    rows = [alone(row) for row in x]
    assert int(steps[0]) != int(steps[1])
    assert [int(k) for _, k in rows] == np.asarray(steps).tolist()
    assert cells.relative(batch, np.stack([g for g, _ in rows])) < 1e-10
