"""A cell that settles: at the beginning it does, whatever its size, and from any start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import DEQ, RecallConv


@pytest.mark.parametrize(
    ("positions", "kernel", "d"), [((32,), (3,), 16), ((9, 9), (3, 3), 32), ((20,), (5,), 64)]
)
def test_it_contracts_at_the_beginning(positions, kernel, d):
    """The spectral radius is below one, and all starts lead to the same state."""
    cell = RecallConv(2, d, kernel=kernel, rngs=nnx.Rngs(0))
    x = jnp.sign(jax.random.normal(jax.random.key(1), (3, *positions, 2)))
    deq = DEQ(cell, solver="picard", rtol=1e-5)
    one, other = (
        deq(x, z0=z0, stability=16) for z0 in (None, cell.random_state(jax.random.key(2), x))
    )
    assert one.stats.converged.all() and one.stats.stable.all()
    assert (one.stats.stability.radius < 0.8).all()
    np.testing.assert_allclose(one.z, other.z, atol=1e-3)
    np.testing.assert_allclose(jnp.mean(one.z**2, -1), 1.0, rtol=1e-3)


def test_the_equilibrium_depends_on_what_is_recalled():
    cell = RecallConv(1, 8, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 12, 1))
    deq = DEQ(cell, solver="picard")
    far = jnp.abs(deq(x).z - deq(-x).z).max()
    assert far > 0.1


def test_a_step_reaches_as_far_as_its_kernels():
    cell = RecallConv(1, 8, rngs=nnx.Rngs(0))
    x = jnp.ones((1, 12, 1))
    z = cell.random_state(jax.random.key(0), x)
    changed = cell(z.at[0, 5].add(1.0), cell.inject(x)) - cell(z, cell.inject(x))
    assert set(np.flatnonzero(np.abs(changed[0]).max(-1) > 0)) == {3, 4, 5, 6, 7}
