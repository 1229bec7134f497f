"""Small leaves travel as one vector, and nobody but the compiler can tell."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import deqjax
from deqjax import _layout
from deqjax._layout import INNER, Layout, Packed, by_leaf
from deqjax._state import dot
from tests import cells

SHAPES = [(), (3,), (2, 2), (0,), (5,)]
leaves = st.lists(
    st.tuples(st.sampled_from(SHAPES), st.sampled_from(["float32", "float64", "complex64"])),
    min_size=1,
    max_size=6,
)


def state(form, batch, axis, seed=0):
    """Leaves of those shapes and dtypes, the batch at `axis`."""
    rng = np.random.default_rng(seed)

    def leaf(shape, dtype):
        x = jnp.asarray(rng.normal(size=(batch, *shape)), dtype)
        return x[0] if axis is None else jnp.moveaxis(x, 0, axis)

    return {f"k{i}": leaf(*each) for i, each in enumerate(form)}


@settings(deadline=None, max_examples=8)
@given(leaves, st.integers(1, 3), st.sampled_from([None, 0, -1]))
def test_there_and_back(form, batch, axis):
    z = state(form, 1 if axis is None else batch, axis)
    layout = Layout.of(z, axis)
    inner = layout.inner(z)
    back = layout.outer(inner)
    assert jax.tree.structure(back) == jax.tree.structure(z)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(z), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
    dtypes = {x.dtype for x in jax.tree.leaves(z)}
    assert len(jax.tree.leaves(inner)) == len(dtypes)


@pytest.mark.slow
@settings(deadline=None, max_examples=6)
@given(leaves, st.integers(1, 3))
def test_the_squares_of_each_leaf(form, batch):
    z = state(form, batch, 0)
    inner = Layout.of(z, 0).inner(z)
    got = by_leaf(inner)
    if len(form) == 1:
        assert got is None
        return
    want = np.stack([dot(x, x) for x in jax.tree.leaves(z)], axis=1)
    np.testing.assert_allclose(np.asarray(got), want, rtol=1e-5)


def test_large_and_lonely_leaves_stay_as_they_are():
    large = jnp.zeros((1, _layout.SMALL + 1))
    z = {"a": large, "b": large, "c": jnp.zeros((1, 2)), "d": jnp.zeros((1, 2), jnp.float32)}
    assert Layout.of(z, 0) == INNER
    z["e"] = jnp.ones((1, 3))
    inner = Layout.of(z, 0).inner(z)
    assert isinstance(inner, Packed)
    assert [x.shape for x in jax.tree.leaves(inner)] == [large.shape, large.shape, (1, 5), (1, 2)]


def cell(z, theta):
    """Leaves of several shapes that depend on each other."""
    a, b, c = z["a"], z["b"], z["c"]
    return {
        "a": jnp.tanh(theta * a + b.sum(-1)),
        "b": 0.3 * jnp.sin(b) + a[..., None],
        "c": 0.5 * c * jnp.cos(a)[..., None, None] + theta,
    }


def start(batch):
    return {
        "a": jnp.zeros((batch,)),
        "b": jnp.linspace(0, 1, 3 * batch).reshape(batch, 3),
        "c": jnp.zeros((batch, 2, 2)),
    }


@pytest.mark.parametrize(
    ("solver", "adjoint", "axis"),
    [
        ("anderson", "implicit", None),
        pytest.param("broyden", "implicit", 0, marks=pytest.mark.slow),
        pytest.param("newton_krylov", "implicit", 0, marks=pytest.mark.slow),
        pytest.param("broyden", "shine", None, marks=pytest.mark.slow),
    ],
)
def test_equal_to_leaves_one_by_one(monkeypatch, solver, adjoint, axis):
    """The same solution, gradient, second derivative and statistics, but for rounding."""
    z0 = start(4) if axis == 0 else jax.tree.map(lambda x: x[0], start(1))

    def loss(theta):
        sol = deqjax.fixed_point(
            cell, z0, theta, solver=solver, adjoint=adjoint, batch_axis=axis, rtol=1e-12
        )
        return sum((x**2).sum() for x in jax.tree.leaves(sol.z)), sol

    def everything():
        (_, sol), g = jax.value_and_grad(loss, has_aux=True)(0.4)
        second = jax.grad(jax.grad(lambda t: loss(t)[0]))(0.4) if solver == "anderson" else 0.0
        return sol.z, g, second, sol.stats

    *got, stats = everything()
    monkeypatch.setattr(_layout, "SMALL", 0)
    *want, stats_ = everything()
    # SHINE's gradient is what a history, and its rounding, makes of it.
    assert cells.relative(got, want) < (1e-3 if adjoint == "shine" else 1e-10)
    assert stats.leaves.shape == stats_.leaves.shape == ((3,) if axis is None else (4, 3))
    np.testing.assert_array_equal(stats.status, stats_.status)
    np.testing.assert_array_equal(stats.steps, stats_.steps)
    # Which leaf is worst, where it is more than rounding.
    loose = [deqjax.fixed_point(cell, z0, 0.4, batch_axis=axis, max_steps=3).stats.leaves]
    monkeypatch.undo()
    loose += [deqjax.fixed_point(cell, z0, 0.4, batch_axis=axis, max_steps=3).stats.leaves]
    np.testing.assert_allclose(loose[1], loose[0], rtol=1e-6)


def test_a_solve_is_resumed():
    z0 = start(2)
    first = deqjax.fixed_point(cell, z0, 0.4, batch_axis=0, max_steps=4)
    rest = deqjax.fixed_point(cell, first.z, 0.4, batch_axis=0, resume=first.state, rtol=1e-10)
    whole = deqjax.fixed_point(cell, z0, 0.4, batch_axis=0, rtol=1e-10)
    assert bool(rest.stats.converged.all())
    assert int(rest.state.age) == 4 + int(rest.stats.steps.max())
    assert cells.relative(rest.z, whole.z) < 1e-8


@pytest.mark.slow
def test_samples_that_are_done_are_left_behind():
    z0 = start(8)
    theta = jnp.linspace(0.1, 0.9, 8)
    f = lambda z, t: jax.vmap(cell)(z, t)
    solve = lambda solver: deqjax.fixed_point(f, z0, theta, solver=solver, batch_axis=0, rtol=1e-10)
    sol = solve(deqjax.Compacted(deqjax.Anderson(), stages=2))
    assert bool(sol.stats.converged.all())
    assert cells.relative(sol.z, solve("anderson").z) < 1e-8


def test_the_program_does_not_grow_with_the_leaves():
    """Kernels of 40 leaves, beside those of the same f on one vector."""
    n = 40
    z0 = {f"k{i}": jnp.zeros(4) for i in range(n)}
    _, unravel = ravel_pytree(z0)

    def f(z, w):
        return {k: 0.5 * jnp.tanh(v * w[i]) + 1 for i, (k, v) in enumerate(z.items())}

    def on_a_vector(v, w):
        return ravel_pytree(f(unravel(v), w))[0]

    def kernels(loss):
        text = jax.jit(jax.grad(loss)).lower(jnp.linspace(0, 0.5, n)).compile().as_text()
        return text.count(" = ")

    tree = kernels(lambda w: sum(x.sum() for x in deqjax.fixed_point(f, z0, w).z.values()))
    vector = kernels(lambda w: deqjax.fixed_point(on_a_vector, jnp.zeros(4 * n), w).z.sum())
    assert tree < 1.5 * vector
