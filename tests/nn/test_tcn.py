"""The TCN against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import TCN


def test_reach_is_what_an_output_sees():
    tcn = TCN(10, channels=4, levels=2, kernel_size=3, rngs=nnx.Rngs(0))
    assert tcn.reach == 13
    x = jax.random.normal(jax.random.key(0), (1, 30, 4))

    def last(x):
        for block in tcn.blocks:
            x = block(x)
        return jnp.sum(jnp.abs(x[0, 20]))

    seen = np.flatnonzero(np.abs(jax.grad(last)(x)[0]).sum(-1))
    assert seen.max() == 20, "causal"
    assert seen.min() == 20 - tcn.reach + 1


def test_a_block_against_sums_written_out():
    tcn = TCN(10, channels=2, levels=1, kernel_size=2, rngs=nnx.Rngs(1))
    block = tcn.blocks[0]

    def convolve(layer, x):
        v, scale, bias = (
            np.asarray(p[...], np.float64) for p in (layer.v, layer.scale, layer.bias)
        )
        kernel = v / np.sqrt((v**2).sum((0, 1))) * scale
        before = np.concatenate([np.zeros((1, 2)), x[:-1]])
        return np.maximum(before @ kernel[0] + x @ kernel[1] + bias, 0)

    x = np.random.default_rng(0).normal(size=(5, 2))
    want = np.maximum(x + convolve(block.second, convolve(block.first, x)), 0)
    np.testing.assert_allclose(block(jnp.asarray(x)[None])[0], want, rtol=1e-4, atol=1e-5)


def test_impossible_sizes_get_a_sentence():
    with pytest.raises(ValueError, match="kernel_size must be an integer >= 1"):
        TCN(10, channels=2, levels=1, kernel_size=0, rngs=nnx.Rngs(0))
