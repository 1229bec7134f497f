"""`from_loop`: somebody's loop, with a status."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status


def step(z, a, x):
    return a * z + x


A, X = jnp.array([[0.5], [0.99]]), jnp.ones((2, 1))


def test_it_is_the_loop_and_says_what_rests():
    sol = deqjax.from_loop(step, steps=40, batch_axis=0, on_failure="ignore")(
        jnp.zeros((2, 1)), A, X
    )
    z = jnp.zeros((2, 1))
    for _ in range(40):
        z = step(z, A, X)
    np.testing.assert_allclose(sol.z[1], z[1], rtol=1e-6)
    np.testing.assert_allclose(sol.z[0], 2.0, rtol=1e-4)
    assert [Status(int(s)) for s in sol.stats.status] == [Status.CONVERGED, Status.MAX_STEPS]
    assert sol.stats.steps[0] < 40


def test_the_gradient_is_implicit_where_it_rests_and_of_a_tail_elsewhere():
    solve = deqjax.from_loop(step, steps=40, batch_axis=0, rtol=1e-8, on_failure="ignore")
    found = jax.jit(jax.grad(lambda x: solve(jnp.zeros((2, 1)), A, x).z.sum()))(X)
    np.testing.assert_allclose(found[:, 0], [2.0, sum(0.99**i for i in range(5))], rtol=1e-4)


def test_options_are_those_of_a_solve():
    sol = deqjax.from_loop(step, steps=9, solver="anderson", stability=4)(0.0, 0.5, 1.0)
    assert sol.stats.stable and sol.stats.converged
    with pytest.raises(TypeError, match="max_steps"):
        deqjax.from_loop(step, steps=9, max_steps=3)
    with pytest.raises(TypeError, match="batch_axis"):
        deqjax.from_loop(step, steps=9, batch_axes=0)
    with pytest.raises(ValueError, match="steps must be an integer >= 1"):
        deqjax.from_loop(step, steps=0)
    with pytest.raises(TypeError, match="step must be callable"):
        deqjax.from_loop(3, steps=1)
