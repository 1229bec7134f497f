"""The local Lipschitz constant is the largest singular value of the dense Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqjax.diagnostics import lipschitz

from .cells import linear, linear_pytree, matrix


def largest(a):
    return np.linalg.norm(a, 2, axis=(-2, -1))


@pytest.mark.parametrize("kind", ("symmetric", "non-normal"))
def test_dense(kind):
    a = matrix(kind, 10)
    found = lipschitz(linear, jnp.zeros(10), a, steps=400)
    np.testing.assert_allclose(found.constant, largest(a), rtol=1e-6)
    assert found.residual < 1e-3


def test_the_residual_bounds_the_error():
    """|s² − σ²| ≤ residual · σ² for some singular value s, and σ never exceeds the largest."""
    a = matrix("random", 40)
    s2 = np.linalg.svd(a, compute_uv=False) ** 2
    residuals = []
    for steps in (1, 60):
        found = lipschitz(linear, jnp.zeros(40), a, steps=steps)
        sigma2 = float(found.constant) ** 2
        assert np.abs(s2 - sigma2).min() <= float(found.residual) * sigma2 + 1e-12
        assert found.constant <= largest(a) * (1 + 1e-12)
        residuals.append(float(found.residual))
    assert residuals[0] > 0.2 > residuals[-1]


def test_batch_and_pytree_and_jit():
    a = np.stack([np.diag([0.1, s]) @ matrix("symmetric", 2) for s in (1.0, 2.0, 4.0)])
    run = jax.jit(lambda z, a: lipschitz(linear, z, a, batch_axis=0, steps=100))
    np.testing.assert_allclose(run(jnp.zeros((3, 2)), a).constant, largest(a), rtol=1e-8)
    b = matrix("complex pair", 8)
    z = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
    found = lipschitz(linear_pytree, z, b, steps=2000)
    np.testing.assert_allclose(found.constant, largest(b), rtol=1e-6)


def test_zero():
    found = lipschitz(lambda z: jnp.ones_like(z), jnp.zeros(3))
    assert found.constant == 0 and found.residual == 0
