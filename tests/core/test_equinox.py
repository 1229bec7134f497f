"""A module of Equinox as f: closed over, and among the arguments."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax

eqx = pytest.importorskip("equinox")


class Cell(eqx.Module):
    linear: eqx.nn.Linear
    act: Callable = jnp.tanh  # a leaf that is no array

    def __call__(self, z, x):
        return self.act(0.3 * self.linear(z) + x)


@pytest.fixture
def cell():
    return Cell(eqx.nn.Linear(4, 4, key=jax.random.key(0)))


def closed_over(cell, x, **options):
    return deqjax.fixed_point(lambda z: cell(z, x), jnp.zeros(4), rtol=1e-6, **options)


def argument(cell, x, **options):
    f = lambda z, cell, x: cell(z, x)
    return deqjax.fixed_point(f, jnp.zeros(4), cell, x, rtol=1e-6, **options)


@pytest.mark.parametrize("solve", [closed_over, argument])
def test_solution_and_gradient(cell, solve):
    x = jnp.linspace(-1.0, 1.0, 4)
    sol = solve(cell, x)
    assert bool(sol.stats.converged)
    np.testing.assert_allclose(cell(sol.z, x), sol.z, atol=1e-5)
    grads = eqx.filter_grad(lambda cell: solve(cell, x).z.sum())(cell)
    w, b = cell.linear.weight, cell.linear.bias
    z = np.asarray(sol.z)
    slope = 1 - z**2
    u = np.linalg.solve(np.eye(4) - (slope[:, None] * 0.3 * np.asarray(w)).T, np.ones(4))
    np.testing.assert_allclose(grads.linear.bias, 0.3 * slope * u, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        grads.linear.weight, np.outer(0.3 * slope * u, z), rtol=1e-3, atol=1e-5
    )
    assert grads.act is None and b.shape == (4,)
    jitted = eqx.filter_jit(eqx.filter_grad(lambda cell: solve(cell, x).z.sum()))(cell)
    np.testing.assert_allclose(jitted.linear.weight, grads.linear.weight, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_batch_by_compaction(cell):
    """Functions among the arguments carry no batch."""
    x = jnp.linspace(-1.0, 1.0, 32).reshape(8, 4)
    f = lambda z, cell, x: jax.vmap(cell)(z, x)
    solver = deqjax.Compacted("anderson", stages=2)
    sol = deqjax.fixed_point(f, jnp.zeros((8, 4)), cell, x, solver=solver, batch_axis=0)
    assert bool(sol.stats.converged.all())
    np.testing.assert_allclose(jax.vmap(cell)(sol.z, x), sol.z, atol=1e-4)
