"""Weight normalisation: the length of every output's weights as a parameter of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from .axes import axes


class WeightNormLinear(nnx.Linear):
    """y = W x + b with W's columns w = g v / ‖v‖ (Salimans and Kingma 2016, arXiv 1602.07868).

    The direction v is `kernel`, (n_in, n_out); the length g is `scale`, (n_out,), and starts at
    ‖v‖, so that a new layer is the one without weight normalisation. Takes the arguments of
    `nnx.Linear`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import WeightNormLinear
        >>> layer = WeightNormLinear(3, 2, rngs=nnx.Rngs(0))
        >>> layer.kernel[...] *= 10.0  # the direction stays
        >>> layer(jnp.ones((5, 3))).shape
        (5, 2)
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        names = self.kernel.get_metadata().get("out_sharding")
        named = {} if names is None else axes(names[1])
        self.scale = nnx.Param(_lengths(self.kernel[...]), **named)

    @property
    def weight(self) -> jax.Array:
        """W, (n_in, n_out). Constant in a solve: compute it once."""
        v = self.kernel[...]
        return v * (self.scale[...] / _lengths(v)).astype(v.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return affine(self, self.weight, x)


def affine(linear: nnx.Linear, w: jax.Array, x: jax.Array) -> jax.Array:
    """What a layer returns for x, (..., n_in), where its matrix is w."""
    y = x @ w
    return y if linear.bias is None else y + linear.bias[...]


def weight(linear: nnx.Linear) -> jax.Array:
    """The matrix that a layer multiplies by, (n_in, n_out), normalised or not."""
    return linear.weight if isinstance(linear, WeightNormLinear) else linear.kernel[...]


def _lengths(v: jax.Array) -> jax.Array:
    return jnp.linalg.norm(v.astype(jnp.promote_types(v.dtype, jnp.float32)), axis=0)
