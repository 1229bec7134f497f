"""The parity experiment: its table of four boards stands for every link of every string."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import SATNet
from experiments.parity import GIVEN, Config, error, last_board, results, train


@pytest.mark.slow
def test_a_table_of_boards_is_the_chain_of_layers():
    key, strings = jax.random.key(1), np.random.default_rng(0).integers(0, 2, (6, 5))
    layer = SATNet(3, m=4, aux=4, k=8, rngs=nnx.Rngs(3))
    solve = nnx.jit(lambda layer, z: layer(z, jnp.broadcast_to(GIVEN, z.shape), key=key).z[:, 2])
    so_far = jnp.asarray(strings[:, 0], jnp.float32)
    for i in range(1, strings.shape[1]):
        bit = jnp.asarray(strings[:, i], jnp.float32)
        made = solve(layer, jnp.stack([so_far, bit, 0.5 * jnp.ones(6)], axis=1))
        so_far = jnp.round(made)
    table = results(layer, key)
    np.testing.assert_allclose(table[last_board(table, jnp.asarray(strings))], made, atol=1e-5)
    wrong = np.mean((np.asarray(made) > 0.5) != (strings.sum(axis=1) % 2 == 1))
    np.testing.assert_allclose(error(layer, jnp.asarray(strings), key), wrong)


@pytest.mark.slow
def test_a_recorded_row():
    """A seed that the table has at zero after one epoch."""
    assert train(Config(), seed=1) == [0.0]
