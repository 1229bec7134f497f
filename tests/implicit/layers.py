"""Every implicit layer as a function of weights that all samples share, and of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deqjax import nn
from deqjax.implicit import maxsat, ode, qp

BATCH = 8


class Layer(NamedTuple):
    """solve(weights, *rows) → a solution with a batch; gradients to the first `floating` rows."""

    solve: Callable
    weights: Any
    rows: tuple[jax.Array, ...]
    floating: int

    def value_and_gradients(self, weights, *rows):
        """((a sum over samples, (z, steps)), gradients to weights and rows)."""
        arguments = tuple(range(1 + self.floating))
        return jax.value_and_grad(self.loss, arguments, has_aux=True)(weights, *rows)

    def loss(self, weights, *rows):
        sol = self.solve(weights, *rows)
        tilt = jnp.arange(1.0, 1 + sol.z.shape[-1])
        return jnp.sum(jnp.sin(sol.z * tilt)), (sol.z, sol.stats.steps)


def _draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s)) for s in shapes]


def program() -> Layer:
    F, A, G, q, b, h = _draw((5, 5), (2, 5), (4, 5), (BATCH, 5), (BATCH, 2), (BATCH, 4))
    weights = dict(Q=F @ F.T / 5 + jnp.eye(5), A=A, G=G)

    def solve(w, q, b, h):
        return qp(w["Q"], q, w["A"], b, w["G"], h, lower=-9.0, rtol=1e-10)

    return Layer(solve, weights, (q, b, abs(h) + abs(b).sum(axis=1, keepdims=True)), 3)


BOARDS = dict(rtol=1e-9, max_sweeps=2000, adjoint_rtol=1e-9)


def _boards(n):
    z, keep = _draw((BATCH, n), (BATCH, n))
    return jax.nn.sigmoid(z), keep < 0


def clauses() -> Layer:
    (S,) = _draw((8, 12))
    solve = lambda S, z, given: maxsat(S, z, given, key=jax.random.key(0), aux=2, k=4, **BOARDS)
    return Layer(solve, S, _boards(5), 1)


def flow() -> Layer:
    w, z0, x = _draw((2, 2), (BATCH, 2), (BATCH, 2))
    f = lambda t, z, w, x: jnp.tanh(z @ w) - t * x

    def solve(w, z0, x):
        return ode(f, z0, w, x, batch_axis=0, args_axes=(None, 0), rtol=1e-8, max_steps=64)

    return Layer(solve, w, (z0, x), 2)


def _module(layer, rows, floating=1) -> Layer:
    graph, weights = nnx.split(layer)
    weights = jax.tree.map(lambda w: w.astype(jnp.float64), weights)
    return Layer(lambda w, *rows: nnx.merge(graph, w)(*rows), weights, rows, floating)


class Field(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 2, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, t, z, context):
        return jnp.tanh(self.linear(z)) - t * z


def module_of_equalities() -> Layer:
    options = dict(equalities=2, quadratic=1.0, gradient="exact", rtol=1e-10)
    return _module(nn.OptNet(5, **options, rngs=nnx.Rngs(0)), tuple(_draw((BATCH, 5))))


def module_of_clauses() -> Layer:
    return _module(nn.SATNet(5, m=12, aux=2, k=4, **BOARDS, rngs=nnx.Rngs(0)), _boards(5))


def module_of_a_flow() -> Layer:
    layer = nn.NeuralODE(Field(nnx.Rngs(0)), rtol=1e-8, max_steps=64)
    return _module(layer, tuple(_draw((BATCH, 2))))


def module_of_an_equilibrium() -> Layer:
    layer = nn.ImplicitDense(3, 4, activation="tanh", rtol=1e-11, max_steps=200, rngs=nnx.Rngs(0))
    return _module(layer, tuple(_draw((BATCH, 3))))


LAYERS = {
    "qp": program,
    "maxsat": clauses,
    "ode": flow,
    "OptNet": module_of_equalities,
    "SATNet": module_of_clauses,
    "NeuralODE": module_of_a_flow,
    "ImplicitDense": module_of_an_equilibrium,
}
