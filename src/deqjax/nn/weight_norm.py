"""Weight normalisation: the length of every output's weights as a parameter of its own."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from .axes import axes


class WeightNormLinear(nnx.Linear):
    """y = W x + b with W's columns w = g v / ‖v‖ (Salimans and Kingma 2016, arXiv 1602.07868).

    The direction v is `kernel`, (n_in, n_out); the length g is `scale`, (n_out,), and starts at
    ‖v‖, so that a new layer is the one without weight normalisation. Takes the arguments of
    `nnx.Linear`.

    Examples:
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
        return self.kernel[...] * self.column_scale

    @property
    def column_scale(self) -> jax.Array:
        """g / ‖v‖, (n_out,): what v's columns are multiplied by."""
        v = self.kernel[...]
        return (self.scale[...] / _lengths(v)).astype(v.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return Matrix.of(self)._replace(kernel=self.weight)(x)


class Matrix(NamedTuple):
    """y = (x V) s + b. Without s, W = V; with it W = V diag(s), of which no copy is made."""

    kernel: jax.Array  # (n_in, n_out)
    scale: jax.Array | None  # (n_out,)
    bias: jax.Array | None  # (n_out,)

    @classmethod
    def of(cls, linear: nnx.Linear, scale: jax.Array | None = None) -> Matrix:
        """That of a layer; scale: its `column_scale`, if it is a `WeightNormLinear`."""
        return cls(linear.kernel[...], scale, None if linear.bias is None else linear.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x @ self.kernel
        if self.scale is not None:
            y = y * self.scale
        return y if self.bias is None else y + self.bias


def weight(linear: nnx.Linear) -> jax.Array:
    """The matrix that a layer multiplies by, (n_in, n_out), normalised or not."""
    return linear.weight if isinstance(linear, WeightNormLinear) else linear.kernel[...]


def column_scale(linear: nnx.Linear) -> jax.Array | None:
    """g / ‖v‖ of a layer's columns, None where they are not normalised."""
    return linear.column_scale if isinstance(linear, WeightNormLinear) else None


def _lengths(v: jax.Array) -> jax.Array:
    return jnp.linalg.norm(v.astype(jnp.promote_types(v.dtype, jnp.float32)), axis=0)
