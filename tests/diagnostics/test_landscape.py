"""The path is that of the solver, the height that of the equation."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import deqjax
from deqjax.diagnostics import landscape
from deqjax.nn import DEQ

from .cells import matrix

C = jnp.array([3.0, -4.0])  # of length 5


def shrinking(z, c):
    """z* = c, and every iterate of Picard is half as far from it."""
    return c + 0.5 * (z - c)


def test_the_path_and_the_height_of_a_scaling():
    found = landscape(shrinking, jnp.zeros(2), C, solver="picard", rtol=1e-9, points=5)
    steps = np.linalg.norm(np.diff(found.path, axis=0), axis=1)
    np.testing.assert_allclose(steps, 2.5 * 0.5 ** np.arange(steps.size), rtol=1e-6)
    np.testing.assert_allclose(found.residuals, 0.5 ** np.arange(1, steps.size + 2), rtol=1e-6)
    x, y = np.meshgrid(found.along, found.across)
    far = np.hypot(x, y)  # from z*, and half of it is the residual
    np.testing.assert_allclose(found.height, 0.5 * far / 5, atol=1e-7)
    np.testing.assert_allclose(found.shares, (1, 0), atol=1e-9)
    assert found.stats.converged and len(found.path) == found.stats.steps + 1


@pytest.mark.parametrize("solver", ["anderson", "broyden", deqjax.Picard(damping=0.5)])
def test_recording_changes_nothing(solver):
    a, x = 0.8 * jnp.asarray(matrix("random", 6)), jnp.ones(6)
    f = lambda z, x: jnp.tanh(a @ z) + x
    plain = deqjax.fixed_point(f, jnp.zeros(6), x, solver=solver, trace=True)
    found = landscape(f, jnp.zeros(6), x, solver=solver, points=3)
    taken = int(plain.stats.steps) + 1
    size = np.linalg.norm(f(plain.z, x))
    np.testing.assert_allclose(found.residuals * size, plain.stats.trace[:taken], rtol=1e-6)
    assert found.stats.f_evals == plain.stats.f_evals
    np.testing.assert_allclose(found.path[-1], 0, atol=1e-12)
    far = np.linalg.norm(plain.z)
    assert 0.5 * far < np.linalg.norm(found.path[0]) <= far * (1 + 1e-9)


def test_one_of_a_batch_is_that_sample_alone():
    f = lambda z, c: jnp.tanh(0.7 * z) + c
    c = jnp.array([[0.1, 0.2, 0.0], [1.0, -2.0, 0.5]]).T  # the batch is the second axis
    options = dict(solver="anderson", points=4)
    alone = landscape(f, jnp.zeros(3), c[:, 1], **options)
    found = landscape(f, jnp.zeros((3, 2)), c, batch_axis=1, sample=1, **options)
    np.testing.assert_allclose(np.abs(found.path), np.abs(alone.path), atol=1e-9)
    np.testing.assert_allclose(found.residuals, alone.residuals, rtol=1e-6)
    np.testing.assert_allclose(np.sort(found.height.ravel()), np.sort(alone.height.ravel()), 1e-5)
    slowest = landscape(f, jnp.zeros((3, 2)), c, batch_axis=1, **options)
    steps = deqjax.fixed_point(f, jnp.zeros((3, 2)), c, batch_axis=1).stats.steps
    assert slowest.stats.steps == steps.max() > steps.min()


def test_of_a_module_and_a_failed_solve():
    class Cell(nnx.Module):
        def __call__(self, z, x):
            return -z + x

    found = landscape(DEQ(Cell(), solver="picard", max_steps=4), jnp.ones((2, 3)), points=3)
    assert not found.stats.converged and len(found.path) == 5
    assert str(found).startswith("picard: Stats(max_steps")


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="'warm_start' is several in turn"):
        landscape(shrinking, jnp.zeros(2), C, solver=deqjax.WarmStart("broyden"))
    with pytest.raises(ValueError, match="the state has one number"):
        landscape(lambda z: 0.5 * z, jnp.ones(1))
    with pytest.raises(ValueError, match="one of the 2 of the batch; got 2"):
        landscape(shrinking, jnp.zeros((2, 2)), jnp.ones((2, 2)), batch_axis=0, sample=2)
