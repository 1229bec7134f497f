"""Modules in another precision."""

import jax
import jax.numpy as jnp
from flax import nnx


def cast(module, dtype=jnp.float64):
    """The same module with parameters in `dtype`."""
    params = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda w: w.astype(dtype), params))
    return module
