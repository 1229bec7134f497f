"""A deep network and the same as one equilibrium: values, gradients, and after how many steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import deqjax
from deqjax.theory.universality import WeightTied, weight_tied

WIDTHS = (5, 3, 6, 4)
MIXED: tuple[Callable, ...] = (jnp.tanh, jax.nn.relu, jax.nn.sigmoid, jax.nn.gelu)
DEPTHS = (1, 2, 4, 8, 16, 32)
RTOL = 1e-15  # residuals here are zero in the end, and a step more or less is seen


def layers(depth: int) -> tuple[list, list, tuple[Callable, ...], jax.Array]:
    """Weights, biases and activations of mixed kinds and widths, and inputs (4, 3), in float64.

    The seed is one whose gradients do not vanish over 32 layers.
    """
    rng = np.random.default_rng(0)
    widths = [WIDTHS[i % 4] for i in range(depth)]
    sizes = [3, *widths]
    weights = [jnp.asarray(rng.normal(size=(b, a)) * (2 / a) ** 0.5)
               for a, b in zip(sizes, widths, strict=False)]  # fmt: skip
    biases = [jnp.asarray(0.5 + 0.1 * rng.normal(size=b)) for b in widths]
    return (
        weights,
        biases,
        tuple(MIXED[i % 4] for i in range(depth)),
        jnp.asarray(rng.normal(size=(4, 3))),
    )


def network(weights: Sequence, biases: Sequence, sigmas: Sequence[Callable], x: Any) -> jax.Array:
    """h_L, layer by layer."""
    h = x
    for w, b, sigma in zip(weights, biases, sigmas, strict=True):
        h = sigma(h @ w.T + b)
    return h


def _loss(output: jax.Array) -> jax.Array:
    return jnp.sum(jnp.sin(output) * jnp.arange(1.0, output.shape[-1] + 1))


def backpropagated(weights, biases, sigmas, x) -> tuple[jax.Array, Any]:
    """h_L, and the gradients of a loss of it to weights, biases and x."""

    def loss(weights, biases, x):
        output = network(weights, biases, sigmas, x)
        return _loss(output), output

    run = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))
    bar, output = run(weights, biases, x)
    return output, bar


def solved(
    weights, biases, sigmas, x, *, start: float = 0.0, adjoint: Any = "implicit",
    solver: Any = "picard", rtol: float = RTOL, max_steps: int | None = None,
) -> tuple[jax.Array, Any, deqjax.Stats, deqjax.Stats]:  # fmt: skip
    """The same from the equilibrium, and the statistics of both solves.

    start: the size of random entries that the solve starts from.
    """
    noise = np.random.default_rng(1).normal(size=(len(x), sum(len(b) for b in biases)))

    def loss(weights, biases, x, probe):
        f: WeightTied = weight_tied(weights, biases, sigmas)
        sol = deqjax.fixed_point(
            *(f, f.start(x) + start * noise, x),
            solver=solver,
            adjoint=adjoint,
            rtol=rtol,
            max_steps=max_steps,
            batch_axis=0,
            on_failure="ignore",  # the table says what came of it
            adjoint_probe=probe,
        )
        output = f.output(sol.z)
        return _loss(output), (output, sol.stats)

    probe = deqjax.adjoint_probe(len(x), jnp.float64)
    run = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))
    (*bar, report), (output, stats) = run(weights, biases, x, probe)
    return output, tuple(bar), stats, report


def _apart(a: Any, b: Any) -> float:
    largest = lambda tree: max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(tree))
    return largest(jax.tree.map(jnp.subtract, a, b)) / largest(b)


def exactness(depths: Sequence[int] = DEPTHS) -> list[dict[str, Any]]:
    """A row a depth L: relative errors against back-propagation."""
    rows = []
    for depth in depths:
        given = layers(depth)
        output, bar = backpropagated(*given)
        row: dict[str, Any] = dict(depth=depth)
        for name, start in (("zeros", 0.0), ("random", 1e3)):
            got, got_bar, *_ = solved(*given, start=start, max_steps=depth)
            row[f"output_{name}"], row[f"gradient_{name}"] = (
                _apart(got, output),
                _apart(got_bar, bar),
            )
        if depth > 1:
            got, *_ = solved(*given, start=1e3, max_steps=depth - 1)
            row["output_early"] = _apart(got, output)
        adjoints: dict[str, Any] = dict(
            phantom_enough=deqjax.Phantom(steps=depth, damping=1.0), jfb="jfb"
        )
        if depth > 1:
            adjoints["phantom_short"] = deqjax.Phantom(steps=depth - 1, damping=1.0)
        for steps, name in ((depth - 1, "adjoint_enough"), (depth - 2, "adjoint_short")):
            if steps >= 0:
                picard = deqjax.Picard(max_steps=steps, rtol=RTOL)
                adjoints[name] = deqjax.Implicit(solver=picard)
        for name, adjoint in adjoints.items():
            _, got_bar, *_ = solved(*given, adjoint=adjoint)
            row[name] = _apart(got_bar, bar)
        rows.append(row)
    return rows
