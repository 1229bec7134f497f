"""The flow of a cell as a module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import NeuralODE


class Decay(nnx.Module):
    """dz/dt = −rate·z + push(context)."""

    def __init__(self):
        self.rate = nnx.Param(jnp.array([0.5, 1.0, 2.0]))

    def inject(self, x):
        return 2 * x

    def initial_state(self, x):
        return jnp.zeros_like(x)

    def __call__(self, t, z, context):
        return context - self.rate[...] * z


class Grow(nnx.Module):
    def __init__(self):
        self.rate = nnx.Param(jnp.array(0.5))

    def __call__(self, t, z, context):
        assert context is None
        return self.rate[...] * z


def test_a_module_and_its_gradient(double_precision):
    """z(1) = 2x (1 − e^{−r})/r for each sample by itself, and its derivative to r."""
    flow = NeuralODE(Decay(), adjoint="direct", max_steps=32)
    x = jnp.array([[1.0, 2.0, 3.0], [0.0, -1.0, 100.0]])

    @nnx.jit
    def both(flow, x):
        def loss(flow):
            sol = flow(x)
            return sol.z.sum(), sol

        return nnx.grad(loss, has_aux=True)(flow)

    grads, sol = both(flow, x)
    rate = jnp.asarray(flow.cell.rate[...])
    exact = lambda r: (2 * x * (1 - jnp.exp(-r)) / r).sum()
    np.testing.assert_allclose(sol.z, 2 * x * (1 - jnp.exp(-rate)) / rate, rtol=1e-5)
    np.testing.assert_allclose(grads["cell"]["rate"][...], jax.grad(exact)(rate), rtol=1e-5)
    assert sol.stats.steps.shape == (2,) and sol.stats.converged.all()


def test_without_options_the_input_is_the_start():
    flow = NeuralODE(Grow(), t1=2.0, solver="euler", steps=4, batch_axis=None)
    np.testing.assert_allclose(flow(jnp.ones((2, 3))).z, (1 + 0.25) ** 4, rtol=1e-6)
    np.testing.assert_allclose(flow(jnp.ones(3), z0=2 * jnp.ones(3), t1=4.0).z, 2 * 1.5**4)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [(dict(solver="rk"), "solver='rk'"), (dict(adjoint="back"), "adjoint='back'")],
)
def test_options_are_checked_when_it_is_made(wrong, says):
    with pytest.raises(ValueError, match=says):
        NeuralODE(Grow(), **wrong)
