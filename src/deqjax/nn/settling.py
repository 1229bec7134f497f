"""Cells that settle: their state has one length, and the input is in sight of every step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx


class RecallConv(nnx.Module):
    """f(z, x) = norm(σ(γ) z + W relu(V z + U x)): a convolution that is iterated until it rests.

    U, V and W are convolutions over positions, so that a step carries information as far as a
    kernel reaches: the equilibrium is computed by as many steps as the problem is long, by the same
    weights for any length. Three parts make it settle:

    - *recall*: x is given to every step (Bansal et al. 2022, arXiv 2202.05826), so that the
      equilibrium depends on x and not on the start;
    - *outer norm*: each position's state has mean square one after the step and not only within it,
      so that it cannot grow;
    - *gate*: σ(γ) < 1, a number for each channel, in place of a residual connection of weight one,
      which would keep whatever there is. At the beginning it is 0.1 and V is small beside U: there
      the spectral radius is about a half.

    Plain iteration finds what these cells compute; Anderson and Newton average over steps in which
    information has not arrived yet.

    Args:
        n_x: channels of x.
        d: channels of the state.
        kernel: reach along each axis of positions, odd: (3,) for strings, (3, 3) for boards.
        rngs: for the parameters.

    Shapes: x `(batch, *positions, n_x)`, z `(batch, *positions, d)`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import DEQ, RecallConv
        >>> deq = DEQ(RecallConv(2, d=16, rngs=nnx.Rngs(0)), solver="picard")
        >>> deq(jnp.ones((4, 32, 2))).z.shape
        (4, 32, 16)
    """

    def __init__(self, n_x: int, d: int, *, kernel: Sequence[int] = (3,), rngs: nnx.Rngs):
        self.d, self.kernel = d, tuple(kernel)
        width = math.prod(self.kernel)
        small = nnx.initializers.variance_scaling(0.2, "fan_in", "truncated_normal")
        self.recall = nnx.Linear(width * n_x, d, rngs=rngs)
        self.into = nnx.Linear(width * d, d, use_bias=False, kernel_init=small, rngs=rngs)
        self.out = nnx.Linear(width * d, d, use_bias=False, rngs=rngs)
        self.gate = nnx.Param(jnp.full(d, -2.0))

    def inject(self, x: jax.Array) -> jax.Array:
        """U x, once for a solve."""
        return self.recall(self._seen(x))

    def initial_state(self, x: jax.Array) -> jax.Array:
        """Zeros: nothing is known."""
        return jnp.zeros((*x.shape[:-1], self.d), x.dtype)

    def random_state(self, key: jax.Array, x: jax.Array) -> jax.Array:
        """A start of the length that states have: to train from, and to try again from."""
        return unit(jax.random.normal(key, (*x.shape[:-1], self.d), x.dtype))

    def __call__(self, z: jax.Array, recalled: jax.Array) -> jax.Array:
        step = self.out(self._seen(nnx.relu(self.into(self._seen(z)) + recalled)))
        return unit(nnx.sigmoid(self.gate[...]) * z + step)

    def _seen(self, z: jax.Array) -> jax.Array:
        """What lies around each position, side by side, with zeros beyond the edges: a convolution
        is a product with it. (XLA's own are slow inside of loops on a CPU.)"""
        wide = jnp.pad(z, [(0, 0), *((k // 2, k // 2) for k in self.kernel), (0, 0)])
        parts = []
        for at in itertools.product(*map(range, self.kernel)):
            window = tuple(slice(i, i + n) for i, n in zip(at, z.shape[1:-1], strict=True))
            parts.append(wide[(slice(None), *window)])
        return jnp.concatenate(parts, axis=-1)


def unit(z: jax.Array) -> jax.Array:
    """Each position's vector with mean square one."""
    return z * jax.lax.rsqrt(jnp.mean(z * z, axis=-1, keepdims=True) + 1e-6)
