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


@pytest.mark.parametrize(("positions", "kernel"), [((11,), (3,)), ((6, 7), (3, 5))])
def test_it_is_a_convolution_in_values_and_derivatives(positions, kernel):
    """The twin by XLA's own convolution."""
    cell = RecallConv(2, 5, kernel=kernel, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (3, *positions, 2))
    z = cell.random_state(jax.random.key(2), x)
    graph, params = nnx.split(cell)

    def convolved(v, linear):
        form = ("NHWC", "HWIO", "NHWC") if len(kernel) == 2 else ("NWC", "WIO", "NWC")
        w = linear.kernel[...].reshape(*kernel, v.shape[-1], -1)
        out = jax.lax.conv_general_dilated(v, w, (1,) * len(kernel), "SAME", dimension_numbers=form)
        return out if linear.bias is None else out + linear.bias[...]

    def twin(params, z, x):
        cell = nnx.merge(graph, params)
        hidden = nnx.relu(convolved(z, cell.into) + convolved(x, cell.recall))
        new = nnx.sigmoid(cell.gate[...]) * z + convolved(hidden, cell.out)
        return new / jnp.sqrt(jnp.mean(new**2, -1, keepdims=True) + 1e-6)

    def tuned(params, z, x):
        cell = nnx.merge(graph, params)
        return cell(z, cell.inject(x))

    np.testing.assert_allclose(tuned(params, z, x), twin(params, z, x), atol=1e-5)
    weights = jax.random.normal(jax.random.key(3), z.shape)
    got, want = (
        jax.grad(lambda *a, f=f: jnp.sum(weights * f(*a)), (0, 1, 2))(params, z, x)
        for f in (tuned, twin)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, want)
