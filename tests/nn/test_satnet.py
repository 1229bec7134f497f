"""The SATNet module: the layer with clauses of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import deqjax
from deqjax.implicit import maxsat
from deqjax.nn import SATNet

Z = jnp.array([[0.0, 0.0, 0.5], [0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [1.0, 1.0, 0.5]])
GIVEN = jnp.broadcast_to(jnp.array([True, True, False]), Z.shape)


def test_it_is_maxsat_with_its_clauses():
    layer = SATNet(3, m=5, aux=2, k=8, max_sweeps=30, seed=4, rngs=nnx.Rngs(0))
    assert layer.S[...].shape == (6, 5)
    want = maxsat(layer.S[...], Z, GIVEN, key=jax.random.key(4), aux=2, k=8, max_sweeps=30)
    got = layer(Z, GIVEN)
    np.testing.assert_array_equal(got.z, want.z)
    np.testing.assert_array_equal(got.z, layer(Z, GIVEN).z)  # no hidden state
    other = layer(Z, GIVEN, key=jax.random.key(9))
    assert np.abs(other.state - got.state).max() > 0.1


def test_its_only_state_is_the_clauses():
    layer = SATNet(3, m=4000, aux=96, rngs=nnx.Rngs(0))
    (S,) = jax.tree.leaves(nnx.state(layer))
    np.testing.assert_allclose(np.std(S), np.sqrt(2 / (100 + 4000)), rtol=0.01)


def test_it_learns_exclusive_or():
    layer = SATNet(3, m=4, aux=4, k=8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(layer, optax.adam(0.1), wrt=nnx.Param)
    want = jnp.array([0.0, 1.0, 1.0, 0.0])

    @nnx.jit
    def update(layer, optimizer, probe):
        def loss(layer, probe):
            sol = layer(Z, GIVEN, adjoint_probe=probe)
            return jnp.mean((sol.z[:, 2] - want) ** 2)

        bars, report = nnx.grad(loss, argnums=(0, 1))(layer, probe)
        optimizer.update(layer, bars)
        return report

    for _ in range(60):
        report = update(layer, optimizer, deqjax.adjoint_probe(len(Z)))
    np.testing.assert_array_equal(layer(Z, GIVEN).z[:, 2] > 0.5, want > 0.5)
    assert (report.solves == 1).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(n=0), "n must be"),
        (dict(m=0), "m must be"),
        (dict(aux=-1), "aux must be"),
        (dict(k=1), "k must be"),
        (dict(rtol=-1.0), "rtol must be"),
        (dict(on_failure="shout"), "shout"),
    ],
)
def test_wrong_options_fail_where_it_is_made(options, says):
    options = dict(n=3, m=4) | options
    with pytest.raises(ValueError, match=says):
        SATNet(options.pop("n"), **options, rngs=nnx.Rngs(0))
