"""What is trained: an equilibrium on the 64 pixels of a digit, and two explicit networks."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from deqjax import Solution
from deqjax.nn import DEQ

PIXELS, CLASSES = 64, 10
NORM = 0.95


class Context(NamedTuple):
    """W, (d, d), and U x + b, (batch, d)."""

    w: jax.Array
    x: jax.Array


class Cell(nnx.Module):
    """f(z, x) = tanh(W z + U x + b), with z starting at 0.

    Args:
        d: width of z.
        contractive: scale W down to a spectral norm of 0.95 where it is above. As tanh′ ≤ 1, f is
            then a contraction: every x has one equilibrium, and ‖u‖ ≤ 20 ‖v‖.
        rngs: for the parameters.
    """

    def __init__(self, d: int, *, contractive: bool = False, rngs: nnx.Rngs):
        self.d, self.contractive = d, contractive
        self.w = nnx.Param(nnx.initializers.normal(0.5 / d**0.5)(rngs.params(), (d, d)))
        self.u = nnx.Linear(PIXELS, d, rngs=rngs)

    def inject(self, x: jax.Array) -> Context:
        w = self.w[...]
        if self.contractive:
            w = w * jnp.minimum(1, NORM / jnp.linalg.norm(w, 2))
        return Context(w, self.u(x))

    def initial_state(self, x: jax.Array) -> jax.Array:
        return jnp.zeros((len(x), self.d), x.dtype)

    def __call__(self, z: jax.Array, context: Context) -> jax.Array:
        return jnp.tanh(z @ context.w + context.x)


class Classifier(nnx.Module):
    """Logits, (batch, 10), linear in the equilibrium; and the solution.

    Args:
        d: width of z.
        depth: None solves; an int stacks the cell that many times instead.
        contractive: as in `Cell`.
        finished_only: no gradient through a z that has not converged: its loss trains the
            readout alone.
        rngs: for the parameters.
        **solving: options of `DEQ`.
    """

    def __init__(
        self,
        d: int,
        *,
        depth: int | None = None,
        contractive: bool = False,
        finished_only: bool = False,
        rngs: nnx.Rngs,
        **solving: Any,
    ):
        self.depth, self.finished_only = depth, finished_only
        self.deq = DEQ(Cell(d, contractive=contractive, rngs=rngs), **solving)
        self.readout = nnx.Linear(d, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, Solution]:
        sol = self.deq(x, depth=self.depth)
        z = sol.z
        if self.finished_only:
            z = jnp.where(sol.stats.converged[:, None], z, jax.lax.stop_gradient(z))
        return self.readout(z), sol


class MLP(nnx.Module):
    """Two hidden layers of width d; None where a classifier has its solution."""

    def __init__(self, d: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(PIXELS, d, rngs=rngs)
        self.second = nnx.Linear(d, d, rngs=rngs)
        self.readout = nnx.Linear(d, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        return self.readout(jax.nn.relu(self.second(jax.nn.relu(self.first(x))))), None
