"""Every implicit layer under jit, vmap and grad at once, against one call after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .layers import LAYERS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("double_precision")]


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_of_gradients_is_a_loop(name):
    layer = LAYERS[name]()
    several = [jnp.stack([x, x[::-1]]) for x in layer.rows]
    axes = (None, *(0 for _ in several))
    mapped = jax.jit(jax.vmap(layer.value_and_gradients, axes))(layer.weights, *several)
    one = jax.jit(layer.value_and_gradients)
    for i in range(2):
        want = one(layer.weights, *(x[i] for x in several))
        for got, wanted in zip(jax.tree.leaves(mapped), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(got[i], wanted, rtol=1e-6, atol=1e-6)
    eager = layer.solve(layer.weights, *layer.rows)
    np.testing.assert_allclose(eager.z, mapped[0][1][0][0], atol=1e-8)
    assert bool(eager.stats.converged.all())
