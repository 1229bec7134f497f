"""Flax's coming default, modules as plain trees: `NNX_GRAPH_MODE=0`, `NNX_GRAPH_UPDATES=0`."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import DEQ


@pytest.fixture(params=[True, False], ids=["graphs", "trees"])
def mode(request):
    names = ("nnx_graph_mode", "nnx_graph_updates")
    before = [getattr(flax.config, name) for name in names]
    for name in names:
        flax.config.update(name, request.param)
    yield
    for name, value in zip(names, before, strict=True):
        flax.config.update(name, value)


class Cell(nnx.Module):
    def __init__(self, d, rngs):
        small = nnx.initializers.normal(0.1)
        self.linear = nnx.Linear(d, d, kernel_init=small, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.norm = nnx.BatchNorm(d, rngs=rngs)

    def __call__(self, z, x):
        return self.norm(jnp.tanh(self.dropout(self.linear(z)) + x))


def test_solves_gradients_and_updates(mode):
    x = jnp.linspace(-1.0, 1.0, 20).reshape(5, 4)
    deq = DEQ(Cell(4, nnx.Rngs(0)), batch_axis=None)
    z = nnx.jit(lambda deq, x: deq(x).z)(deq, x)
    np.testing.assert_allclose(z, DEQ(Cell(4, nnx.Rngs(0)), batch_axis=None)(x).z, rtol=1e-4)

    graph, params, rest = nnx.split(deq, nnx.Param, ...)

    def loss(params):
        solved = nnx.merge(graph, params, rest, copy=True)
        value = jnp.sum(solved(x).z ** 3)
        return value, nnx.state(solved, nnx.BatchStat)

    gradient, running = jax.jit(jax.grad(loss, has_aux=True))(params)
    steepest = gradient["cell"]["linear"]["kernel"][...]
    kernel = params["cell"]["linear"]["kernel"][...]
    step = 1e-2 * steepest / jnp.linalg.norm(steepest)

    def at(kernel):
        changed = jax.tree.map(lambda p: p, params)
        changed["cell"]["linear"]["kernel"][...] = kernel
        return loss(changed)[0]

    slope = (at(kernel + step) - at(kernel - step)) / (2 * jnp.linalg.norm(step))
    np.testing.assert_allclose(slope, jnp.linalg.norm(steepest), rtol=2e-2)
    assert not np.allclose(running["cell"]["norm"]["mean"][...], 0)  # updated by one call at z*
