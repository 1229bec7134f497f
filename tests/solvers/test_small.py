"""The small systems of the quasi-Newton solvers against a dense solve on the unknowns that are
kept, in values and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqjax._small import joined, solve_small
from tests import cells

from . import reference

M = 4
OPTIONS = [dict(), dict(first=2), dict(ridge=0.1), dict(ridge=0.1, first=3)]


def history(kind, rng):
    """K (symmetric positive where it is Anderson's), b, ‖s‖², of m vectors of sizes far apart."""
    s = rng.normal(size=(9, M)) * [1.0, 1e-3, 30.0, 1e-2]
    if kind == "dependent":
        s[:, 2] = 3 * s[:, 0] - 200 * s[:, 1]
    if kind == "zero":
        s[:, 1] = 0
    if kind == "empty":
        s[:] = 0
    return s.T @ s, s.T @ rng.normal(size=9), np.sum(s**2, axis=0)


def tuned(k, b, squares, *, ridge=0.0, first=None, drop=1e-12):
    first = None if first is None else jnp.int32(first)
    return solve_small(joined(k, b, squares)[None], drop, ridge, first)[0]


def plain(kept, k, b, squares, *, ridge=0.0, first=0):
    return reference.small_system(k + ridge * jnp.diag(squares), b, kept)


def kept(k, b, squares, *, ridge=0.0, first=0):
    pivots = k + ridge * np.diag(squares)
    return reference.kept_pivots(pivots, squares, drop=1e-12, first=first)


@pytest.mark.parametrize("kind", ["independent", "dependent", "zero", "empty"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_and_derivatives_are_those_of_a_dense_solve(kind, options):
    rng = np.random.default_rng(0)
    system = history(kind, rng)
    which = kept(*system, **options)
    lost = {"independent": 0, "zero": 1, "empty": M}.get(kind, 0 if "ridge" in options else 1)
    assert len(which) == M - lost
    weights = rng.normal(size=M)
    loss = lambda solve: lambda *system: jnp.sum(jnp.sin(solve(*system, **options)) * weights)
    want = jax.value_and_grad(loss(lambda *a, **o: plain(which, *a, **o)), (0, 1, 2))(*system)
    got = jax.value_and_grad(loss(tuned), (0, 1, 2))(*system)
    # Parts by themselves: they are of very different size.
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert cells.relative(x, y) < 1e-7 or np.linalg.norm(x) == np.linalg.norm(y) == 0


def test_second_derivatives_too():
    system = history("independent", np.random.default_rng(1))
    which = np.arange(M)
    options = dict(ridge=0.1)

    def second(solve):
        k, b, squares = system
        gamma = lambda t: solve(k * (1 + t**2) + t * jnp.eye(M), b * (1 + t), squares, **options)
        return jax.grad(jax.grad(lambda t: jnp.sum(jnp.cos(gamma(t)))))(0.3)

    assert cells.relative(second(tuned), second(lambda *a, **o: plain(which, *a, **o))) < 1e-7


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("power", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_no_size_of_a_history_makes_a_gradient_that_is_not_finite(dtype, power):
    """A converged solve that goes on has differences that vanish; 1/pivot² would overflow long
    before 1/pivot does."""
    own = float(jnp.finfo(dtype).tiny) ** power
    for part in (1.0, 1e3):  # of s in r
        k = jnp.diag(jnp.asarray([1.0, own, own], dtype))
        b = jnp.asarray([1.0, own, own * part], dtype)
        values, gradients = jax.value_and_grad(
            lambda k, b: jnp.sum(tuned(k, b, jnp.diag(k), ridge=1e-6, drop=1e-7)), (0, 1)
        )(k, b)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((values, gradients)))
