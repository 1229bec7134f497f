"""vmap against the batch axis, over closures, and around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_vmap_is_the_batch_axis(solver):
    theta, x = cells.tanh_batch()
    call = functools.partial(cells.tanh_solve, solver=solver, rtol=1e-8, atol=0.0)
    mapped = jax.jit(jax.vmap(call, (None, 0)))(theta, x)
    batched = jax.jit(lambda theta, x: call(theta, x, batch_axis=0))(theta, x)
    assert np.unique(batched.stats.steps).size > 1
    np.testing.assert_array_equal(mapped.stats.steps, batched.stats.steps)
    np.testing.assert_array_equal(mapped.stats.status, batched.stats.status)
    assert cells.relative(mapped.z, batched.z) < 1e-10


def test_grad_of_vmap_and_vmap_of_grad():
    theta, x = cells.tanh_batch()
    grad_of_vmap = jax.jit(
        jax.grad(lambda t, x: jnp.sum(jax.vmap(cells.small_loss, (None, 0))(t, x)), (0, 1))
    )(theta, x)
    assert cells.relative(grad_of_vmap, cells.dense_gradient(theta, x)) < 1e-8
    vmap_of_grad = jax.jit(jax.vmap(jax.grad(cells.small_loss, (0, 1)), (None, 0)))(theta, x)
    summed = (jax.tree.map(lambda g: g.sum(0), vmap_of_grad[0]), vmap_of_grad[1])
    assert cells.relative(summed, cells.dense_gradient(theta, x)) < 1e-8
    for i in range(3):  # per-sample parameter gradients, not only their sum
        row = jax.tree.map(lambda g, i=i: g[i], vmap_of_grad[0])
        assert cells.relative(row, cells.dense_gradient(theta, x[i])[0]) < 1e-8


def test_vmap_over_closures_and_keys():
    """The mapped values reach the solve only by closure; one of them is a PRNG key."""
    theta, x = cells.tanh_parameters(5)

    def loss(scale, key):
        mask = jax.random.bernoulli(key, 0.5, (5,))
        f = lambda z: jnp.where(mask, cells.tanh_cell(z, theta, 0.0), 0.0) * scale + x
        f_with_key = lambda z: f(z) + 0.0 * jax.random.uniform(key)
        return cells.loss_of(
            deqjax.fixed_point(f_with_key, jnp.zeros(5), solver="picard", **cells.TIGHT).z
        )

    scales, keys = np.array([0.3, 0.6, 0.9]), jax.random.split(jax.random.key(0), 3)
    both = jax.jit(jax.value_and_grad(loss))
    mapped = jax.jit(jax.vmap(jax.value_and_grad(loss)))(scales, keys)
    rows = [both(s, k) for s, k in zip(scales, keys, strict=True)]
    assert cells.relative(mapped, tuple(np.stack(c) for c in zip(*rows, strict=True))) < 1e-9
    assert np.unique(mapped[0]).size == 3


def test_vmap_of_a_batched_solve():
    """An outer vmap over parameters of a solve that has its own batch axis."""
    theta, x = cells.tanh_batch()
    factors = np.array([0.5, 1.0])
    call = lambda c, x: cells.tanh_solve(jax.tree.map(lambda p: c * p, theta), x, batch_axis=0)
    sol = jax.jit(jax.vmap(call, (0, None)))(factors, x)
    assert sol.stats.steps.shape == (2, 3) and np.all(sol.stats.converged)
    want = [cells.tanh_solution({k: c * p for k, p in theta.items()}, x) for c in factors]
    assert cells.relative(sol.z, np.stack(want)) < 1e-10


def test_collectives_of_an_outer_vmap():
    """axis_name of an outer vmap may be used in f: all samples then share one equation."""
    theta, x = cells.tanh_batch()

    def one(x):
        f = lambda z, x: cells.tanh_cell(z, theta, x) * 0.5 + 0.2 * jax.lax.pmean(z, "i")
        # Samples stop apart, so run a fixed number of steps.
        return deqjax.fixed_point(
            f, jnp.zeros_like(x), x, solver="picard", rtol=0.0, atol=0.0, max_steps=80
        ).z

    got = jax.jit(jax.vmap(one, axis_name="i"))(x)
    z = np.zeros_like(x)
    for _ in range(80):
        z = (np.tanh(z @ theta["w"].T + theta["b"]) + x) * 0.5 + 0.2 * z.mean(0)
    assert cells.relative(got, z) < 1e-12
