"""The history of a solve: its layouts and its products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax._state import History
from tests import cells

M = 3
SHAPES = {"vector": (), "rows": (5,), "grid": (4, 2), "complex": (2, 3)}


def vectors(batch, count, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(name, shape):
        x = rng.normal(size=(count, batch, *shape, 6))
        return x + 1j * rng.normal(size=x.shape) if name == "complex" else x

    return {name: leaf(name, shape) for name, shape in SHAPES.items()}


def flat(z):
    """(batch, n) reals: what the library calls one vector per sample."""
    leaves = [np.asarray(x).reshape(len(x), -1) for x in jax.tree.leaves(z)]
    return np.concatenate([y for x in leaves for y in (x.real, x.imag)], axis=1)


def pick(z, i):
    return jax.tree.map(lambda x: jnp.asarray(x[i]), z)


@pytest.mark.parametrize("batch", [1, 4])
def test_products_with_a_history(batch):
    """A ring that has gone round once, on leaves of every rank: pushes, products, combinations."""
    given = vectors(batch, M + 2)
    history = History.zeros(pick(given, 0), M)
    for i in range(M + 2):
        history = history.push(pick(given, i), jnp.int32(i % M), None)
    held = np.stack([flat(pick(given, i)) for i in (3, 4, 2)], axis=1)

    v = pick(vectors(batch, 1, seed=1), 0)
    want = np.einsum("bmn,bn->bm", held, flat(v))
    np.testing.assert_allclose(history.dots(v), want, rtol=1e-12)

    c = np.random.default_rng(2).normal(size=(batch, M))
    combined = history.combine(jnp.asarray(c))
    assert jax.tree.map(jnp.shape, combined) == jax.tree.map(jnp.shape, v)
    want = np.einsum("bm,bmn->bn", c, held)
    np.testing.assert_allclose(flat(combined), want, rtol=1e-12, atol=1e-12)


def test_one_equation_gives_its_products_rows_to_spread_over_threads():
    """XLA's CPU back end runs a product without a batch on one thread."""
    history = History.zeros(jnp.zeros((1, 8, 16, 4)), M)
    assert history.values.shape == (1, 8, M, 16, 4)
    product = jax.make_jaxpr(lambda h, v: h.dots(v))(history, jnp.zeros((1, 8, 16, 4)))
    ((_, (batch, _)),) = [
        e.params["dimension_numbers"] for e in product.eqns if e.primitive.name == "dot_general"
    ]
    assert batch == (0, 1)
    assert History.zeros(jnp.zeros((2, 8, 16, 4)), M).values.shape == (2, M, 8, 16, 4)
    assert History.zeros(jnp.zeros((1, 8)), M).values.shape == (1, M, 8)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_a_batch_compacted_to_one_keeps_the_layout_of_its_history(solver):
    """The last unfinished sample of four is solved alone, with the history it has."""
    rate = jnp.asarray([0.1, 0.1, 0.1, 0.9])
    bias = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)))
    f = lambda z, rate, x: rate[:, None, None] * jnp.sin(jnp.roll(z, 1, axis=-1)) + x
    options = dict(rtol=1e-10, batch_axis=0)
    plain = deqjax.fixed_point(f, jnp.zeros((4, 3, 5)), rate, bias, solver=solver, **options)
    packed = deqjax.Compacted(solver, stages=(1,))
    sol = deqjax.fixed_point(f, jnp.zeros((4, 3, 5)), rate, bias, solver=packed, **options)
    assert bool(sol.stats.converged.all())
    np.testing.assert_array_equal(sol.stats.steps, plain.stats.steps)
    assert cells.relative(sol.z, plain.z) < 1e-12
