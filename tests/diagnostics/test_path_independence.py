"""Starts that end in different places, and starts that do not end, are told apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqjax.diagnostics import path_independence


def test_a_contraction_has_one_solution():
    x = jnp.array([0.5, -1.0, 2.0])
    found = path_independence(lambda z, x: 0.5 * z + x, jnp.zeros(3), x, starts=4, rtol=1e-10)
    assert found.path_independent and found.all_converged and not found.several_solutions
    assert found.distance < 1e-9
    np.testing.assert_allclose(found.solutions, np.tile(2 * np.asarray(x), (4, 1)), rtol=1e-8)
    assert str(found).startswith("4 of 4 starts converged, to one solution")


def test_two_roots():
    """z = tanh(2z) is solved by ±0.9575 (and, not attracting, 0): relative distance 2."""
    f = lambda z: jnp.tanh(2 * z)
    # Picard cannot end at 0; the others could.
    found = path_independence(f, jnp.zeros(1), starts=8, solver="picard", rtol=1e-9)
    assert found.all_converged and found.several_solutions and not found.path_independent
    np.testing.assert_allclose(found.distance, 2.0, rtol=1e-6)
    assert "there are several fixed points" in str(found)


def test_failures_are_not_a_second_root():
    """Converges to 0 from |z| < 1, blows up from beyond: one solution, several failures."""
    found = path_independence(
        lambda z: z**3, jnp.zeros(1), starts=8, solver="picard", max_steps=30, atol=1e-6
    )
    assert 2 <= found.converged.sum() < 8
    assert found.converged[0], "the first start is z0"
    assert not found.several_solutions and not found.path_independent
    assert "the others failed to solve" in str(found)


def test_no_solution_at_all():
    found = path_independence(lambda z: z + 1, jnp.zeros(2), starts=2, max_steps=3, solver="picard")
    assert np.isnan(found.distance) and not found.path_independent and not found.several_solutions
    assert str(found) == "0 of 2 starts converged: too few to compare their solutions"


def test_each_sample_has_its_own_verdict():
    """Gain 0.5: one solution. Gain 2: two."""
    gain = jnp.array([0.5, 2.0])
    found = path_independence(
        lambda z, gain: jnp.tanh(gain * z + jnp.where(gain < 1, 0.3, 0.0)),
        jnp.full((1, 2), 0.1),
        gain,
        starts=6,
        solver="picard",
        batch_axis=1,
    )
    assert found.converged.shape == (6, 2) and found.solutions.shape == (6, 1, 2)
    assert found.distance[0] < 1e-6 < 1 < found.distance[1]
    assert found.several_solutions


def test_the_spread_of_the_starts():
    """One evaluation of a constant cell leaves z0 + scale · noise as the start: its residual."""
    near, far = (
        path_independence(
            *(lambda z: z, {"a": jnp.ones((50, 10))}),
            scale=scale,
            starts=3,
            max_steps=0,
        ).solutions["a"]
        for scale in (0.0, 2.0)
    )
    np.testing.assert_array_equal(near, 1.0)
    np.testing.assert_array_equal(far[0], 1.0)
    assert 1.8 < np.std(far[1:]) < 2.2 and not np.array_equal(far[1], far[2])


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="starts must be an integer >= 2"):
        path_independence(lambda z: z, jnp.zeros(2), starts=1)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda z: path_independence(lambda z: z, z).distance)(jnp.zeros(2))
