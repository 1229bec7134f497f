"""Basins of equations of which it is known where each start leads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax.diagnostics import basins

HIGH = 0.9575040240772688  # z = tanh(2 z)


def four(z):
    return jax.tree.map(lambda x: jnp.tanh(2 * x), z)


def test_every_quadrant_has_its_solution():
    found = basins(four, jnp.zeros(2), points=6, solver="picard", span=2.0)
    np.testing.assert_allclose(found.x, np.linspace(-2, 2, 6))
    reached = found.solutions[found.reached]
    x, y = np.meshgrid(found.x, found.y)
    want = HIGH * np.stack([np.sign(x), np.sign(y)], -1)
    np.testing.assert_allclose(reached, want, atol=1e-6)
    np.testing.assert_allclose(found.shares, 4 * [0.25])


def test_each_start_is_solved_as_it_is_alone():
    found = basins(four, {"a": jnp.zeros(1), "b": jnp.ones(())}, points=3, solver="anderson")
    np.testing.assert_allclose((found.x, found.y), ([-2, 0, 2], [-1, 1, 3]))
    alone = deqjax.fixed_point(four, jnp.array([2.0, -1.0]), solver="anderson")
    assert found.stats.steps[0, 2] == alone.stats.steps
    np.testing.assert_allclose(found.solutions[found.reached[0, 2]], alone.z, atol=1e-6)


def test_what_does_not_converge_is_said():
    """z -> −z turns for ever, but for the start at its only solution."""
    found = basins(lambda z: -z, jnp.zeros(2), points=5, solver="picard")
    want = np.full((5, 5), -1)
    want[2, 2] = 0
    np.testing.assert_array_equal(found.reached, want)
    assert str(found).startswith("25 starts: 1 solution, 96.0% did not converge")


def test_the_most_frequent_solution_comes_first():
    found = basins(four, jnp.array([0.9, 0.9]), points=6, solver="picard", span=1.5)
    assert np.all(np.diff(found.shares) <= 0) and found.shares[0] > found.shares[-1]
    np.testing.assert_allclose(found.solutions[0], [HIGH, HIGH], atol=1e-6)


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="two unknowns, and z0 has 3: path_independence"):
        basins(four, jnp.zeros(3))
    with pytest.raises(ValueError, match="span must be positive"):
        basins(four, jnp.zeros(2), span=0.0)
    with pytest.raises(ValueError, match="points must be"):
        basins(four, jnp.zeros(2), points=1)
    with pytest.raises(ValueError, match="they form a curve"):
        basins(lambda z: z, jnp.zeros(2), points=40, agree=1e-4)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda z: basins(four, z).x)(jnp.zeros(2))
