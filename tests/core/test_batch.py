"""Independent equations along a batch axis: each stops on its own and is then left alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status
from tests import cells

# Cells of very different difficulty: the smaller the injection, the less tanh saturates.
SPREAD = np.array([0.01, 0.3, 1.0, 3.0, 30.0])


def elementwise(z, x):
    """A cell whose arithmetic on one sample is the same wherever the sample stands in a batch."""
    return 0.45 * jnp.sin(z + jnp.roll(z, 1, axis=-1) + x) + x


def injections(batch=5, n=6, seed=1):
    return np.random.default_rng(seed).normal(size=(batch, n)) * SPREAD[:batch, None]


@functools.cache
def solver_of(name, rtol=1e-7, trace=False):
    """One compiled batched solve of the elementwise cell for each solver."""
    return jax.jit(
        lambda x: deqjax.fixed_point(
            elementwise,
            jnp.zeros_like(x),
            x,
            solver=cells.SMALL[name],
            batch_axis=0,
            rtol=rtol,
            atol=0.0,
            max_steps=300,
            trace=trace,
        )
    )


def assert_same(a, b):
    """Bit for bit, statistics included."""
    for got, want in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_each_sample_stops_on_its_own_test(solver):
    x = injections()
    sol = solver_of(solver, trace=True)(x)
    steps = np.asarray(sol.stats.steps)
    assert steps.shape == (5,) and len(set(steps.tolist())) >= 3
    assert np.all(sol.stats.converged)
    np.testing.assert_array_equal(sol.stats.f_evals, steps + 1)
    trace = np.asarray(sol.stats.trace)
    assert trace.shape == (301, 5)
    for i, k in enumerate(steps):
        assert np.all(np.isfinite(trace[: k + 1, i])) and np.all(np.isnan(trace[k + 1 :, i]))
        fz = np.asarray(elementwise(sol.z[i], x[i]))
        assert np.linalg.norm(fz - sol.z[i]) <= 1e-7 * np.linalg.norm(fz) * (1 + 1e-6)
        # Frozen at the stop: its residual is that of its own last step, not of a later one.
        assert float(sol.stats.residual[i]) == trace[k, i]


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_batch_mates_do_not_matter_to_the_last_bit(solver):
    x = injections()
    run = solver_of(solver)
    together = run(x)
    for i in (0, 2, 4):
        mates = injections(seed=7 + i)[::-1].copy()
        mates[i] = x[i]
        other = run(mates)
        assert_same(
            [s[i] for s in jax.tree.leaves((together.z, together.stats))],
            [s[i] for s in jax.tree.leaves((other.z, other.stats))],
        )
    order = np.array([3, 0, 4, 1, 2])
    permuted = run(x[order])
    assert_same(
        jax.tree.map(lambda s: s[order], (together.z, together.stats)), (permuted.z, permuted.stats)
    )


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_a_sample_alone_gives_the_same_answer(solver):
    x = injections()
    run = solver_of(solver)
    together, alone = run(x), run(x[1:2])
    assert int(alone.stats.steps[0]) == int(together.stats.steps[1])
    assert cells.relative(alone.z[0], together.z[1]) < 1e-12


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_a_poisoned_sample_poisons_no_other(solver):
    x = injections()
    run = solver_of(solver)
    clean, keep = run(x), np.array([0, 1, 3, 4])
    for bad in (np.nan, np.inf):
        dirty_x = x.copy()
        dirty_x[2, 3] = bad
        dirty = run(dirty_x)
        assert_same(
            jax.tree.map(lambda s: s[keep], (dirty.z, dirty.stats)),
            jax.tree.map(lambda s: s[keep], (clean.z, clean.stats)),
        )
        assert int(dirty.stats.status[2]) == Status.NONFINITE
        np.testing.assert_array_equal(dirty.z[2], 0.0)


def test_a_poisoned_sample_leaves_the_gradients_of_the_others():
    x = injections()

    @jax.jit
    def grad(x, probe):
        def loss(x, probe):
            sol = deqjax.fixed_point(
                elementwise,
                jnp.zeros_like(x),
                x,
                solver=cells.SMALL["anderson"],
                batch_axis=0,
                rtol=1e-8,
                max_steps=300,
                adjoint_probe=probe,
            )
            return jnp.sum(sol.z**2)

        return jax.grad(loss, (0, 1))(x, probe)

    clean, _ = grad(x, deqjax.adjoint_probe(5))
    dirty_x = x.copy()
    dirty_x[2, 3] = np.nan
    dirty, stats = grad(dirty_x, deqjax.adjoint_probe(5))
    keep = np.array([0, 1, 3, 4])
    np.testing.assert_array_equal(dirty[keep], clean[keep])
    np.testing.assert_array_equal(stats.converged, [1, 1, 0, 1, 1])
    assert int(stats.status[2]) == Status.NONFINITE


def test_divergence_of_one_sample_is_its_own():
    sol = deqjax.fixed_point(
        lambda z, a: a * z + 1.0,
        jnp.ones((3, 2)),
        np.array([[0.5], [5.0], [0.9]]),
        solver="picard",
        batch_axis=0,
        rtol=1e-6,
        max_steps=400,
    )
    good = Status.CONVERGED
    assert np.asarray(sol.stats.status).tolist() == [good, Status.DIVERGED, good]
    np.testing.assert_allclose(sol.z[:, 0], [2.0, 1.0, 10.0], rtol=1e-4)


@pytest.mark.parametrize("axis", [-1, pytest.param(1, marks=pytest.mark.slow)])
def test_any_batch_axis(axis):
    """The axis only says where the samples are."""
    x = np.random.default_rng(0).normal(size=(4, 3, 2)) * SPREAD[:4, None, None]
    cell = lambda z, x: 0.5 * jnp.sin(z) + 0.3 * jnp.sum(z, axis=(1, 2), keepdims=True) / 6 + x
    options = dict(solver=cells.SMALL["anderson"], rtol=1e-8, max_steps=200)

    def moved(z, x):
        return jnp.moveaxis(cell(jnp.moveaxis(z, axis, 0), jnp.moveaxis(x, axis, 0)), 0, axis)

    def loss(f, x, axis):
        sol = deqjax.fixed_point(f, jnp.zeros_like(x), x, batch_axis=axis, **options)
        return jnp.sum(jnp.sin(sol.z)), sol

    there = np.moveaxis(x, 0, axis)
    (_, a), ga = jax.jit(jax.value_and_grad(lambda x: loss(moved, x, axis), has_aux=True))(there)
    (_, b), gb = jax.jit(jax.value_and_grad(lambda x: loss(cell, x, 0), has_aux=True))(x)
    assert a.z.shape == there.shape and a.stats.steps.shape == (4,)
    assert np.unique(a.stats.steps).size > 1
    np.testing.assert_array_equal(a.stats.steps, b.stats.steps)
    assert cells.relative(a.z, np.moveaxis(np.asarray(b.z), 0, axis)) < 1e-12
    assert cells.relative(ga, np.moveaxis(np.asarray(gb), 0, axis)) < 1e-10


def test_pytrees_with_a_batch():
    theta, _ = cells.tanh_parameters(6, radius=0.9)
    x = injections()
    run = lambda f, z0: jax.jit(
        lambda x: deqjax.fixed_point(
            f, z0, theta, x, solver=cells.SMALL["broyden"], batch_axis=0, rtol=1e-9, max_steps=300
        )
    )(x)
    flat = run(cells.tanh_cell, jnp.zeros_like(x))
    tree = run(cells.on_pytrees(cells.tanh_cell), cells.split(jnp.zeros_like(x)))
    assert tree.z["a"].shape == (5, 2) and tree.z["b"][0].shape == (5, 4)
    np.testing.assert_allclose(tree.stats.steps, flat.stats.steps, atol=1)
    assert cells.relative(cells.join(tree.z), cells.tanh_solution(theta, x)) < 1e-8


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_an_empty_batch(solver):
    def loss(x):
        sol = deqjax.fixed_point(
            elementwise, jnp.zeros_like(x), x, solver=cells.SMALL[solver], batch_axis=0, trace=True
        )
        return jnp.sum(sol.z), sol

    (_, sol), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(np.zeros((0, 4)))
    assert sol.z.shape == grad.shape == (0, 4)
    assert sol.stats.status.shape == (0,) and sol.stats.trace.shape == (101, 0)
    assert sol.raise_unless_converged() is sol


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_a_batch_of_one_is_the_unbatched_solve(solver):
    theta, x = cells.tanh_parameters(6, radius=0.9)
    options = dict(solver=cells.SMALL[solver], rtol=1e-9, max_steps=300, trace=True)
    one = jax.jit(
        lambda x: deqjax.fixed_point(
            cells.tanh_cell, jnp.zeros((1, 6)), theta, x, batch_axis=0, **options
        )
    )(x[None])
    plain = jax.jit(
        lambda x: deqjax.fixed_point(cells.tanh_cell, jnp.zeros(6), theta, x, **options)
    )(x)
    assert int(one.stats.steps[0]) == int(plain.stats.steps) > 3
    assert cells.relative(one.z[0], plain.z) < 1e-12
    k = int(plain.stats.steps)
    np.testing.assert_allclose(one.stats.trace[:k, 0], plain.stats.trace[:k], rtol=1e-4)


def test_without_a_batch_axis_rows_are_one_equation():
    """batch_axis=None: one stop for all, and one least-squares problem for all."""
    x = injections()
    whole = jax.jit(
        lambda x: deqjax.fixed_point(
            elementwise,
            jnp.zeros_like(x),
            x,
            solver=cells.SMALL["anderson"],
            rtol=1e-7,
            max_steps=300,
        )
    )(x)
    assert whole.stats.steps.shape == () and bool(whole.stats.converged)
    residual = np.linalg.norm(np.asarray(elementwise(whole.z, x) - whole.z))
    np.testing.assert_allclose(whole.stats.residual, residual, rtol=1e-6)
    assert whole.state.solver_state.system.shape == (1, 3, 5)


def test_scalar_samples():
    x = np.array([0.1, 1.0, 3.0])
    sol = deqjax.fixed_point(
        lambda z, x: jnp.cos(z) * 0.5 + x, jnp.zeros(3), x, batch_axis=0, rtol=1e-10
    )
    np.testing.assert_allclose(sol.z, 0.5 * np.cos(sol.z) + x, rtol=1e-9)
