"""jit, vmap, scan, checkpoint, cond, donation, and equilibria inside equilibria."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax

from .cells import (
    SMALL,
    SOLVERS,
    TIGHT,
    cotangent_of,
    loss_of,
    relative,
    tanh_cell,
    tanh_gradient,
    tanh_parameters,
    tanh_solution,
)


def solve(theta, x, solver="anderson", **options):
    options = TIGHT | options
    return deqjax.fixed_point(
        tanh_cell, jnp.zeros_like(x), theta, x, solver=SMALL[solver], **options
    )


def value(theta, x, **options):
    return loss_of(solve(theta, x, **options).z)


def batch(n=5, rows=3):
    theta, x = tanh_parameters(n)
    return theta, x * np.array([0.1, 1.0, 8.0])[:rows, None]


def dense(theta, x):
    z = tanh_solution(theta, x)
    return tanh_gradient(theta, z, cotangent_of(z))


@pytest.mark.parametrize("solver", SOLVERS)
def test_vmap_is_the_batch_axis(solver):
    theta, x = batch()
    call = functools.partial(solve, solver=solver, rtol=1e-8, atol=0.0)
    mapped = jax.jit(jax.vmap(call, (None, 0)))(theta, x)
    batched = jax.jit(lambda theta, x: call(theta, x, batch_axis=0))(theta, x)
    assert np.unique(batched.stats.steps).size > 1
    np.testing.assert_array_equal(mapped.stats.steps, batched.stats.steps)
    np.testing.assert_array_equal(mapped.stats.status, batched.stats.status)
    assert relative(mapped.z, batched.z) < 1e-10


def test_grad_of_vmap_and_vmap_of_grad():
    theta, x = batch()
    grad_of_vmap = jax.jit(
        jax.grad(lambda t, x: jnp.sum(jax.vmap(value, (None, 0))(t, x)), (0, 1))
    )(theta, x)
    assert relative(grad_of_vmap, dense(theta, x)) < 1e-8
    vmap_of_grad = jax.jit(jax.vmap(jax.grad(value, (0, 1)), (None, 0)))(theta, x)
    summed = (jax.tree.map(lambda g: g.sum(0), vmap_of_grad[0]), vmap_of_grad[1])
    assert relative(summed, dense(theta, x)) < 1e-8
    for i in range(3):  # per-sample parameter gradients, not only their sum
        row = jax.tree.map(lambda g, i=i: g[i], vmap_of_grad[0])
        assert relative(row, dense(theta, x[i])[0]) < 1e-8


def test_vmap_over_closures_and_keys():
    """The mapped values reach the solve only by closure; one of them is a PRNG key."""
    theta, x = tanh_parameters(5)

    def loss(scale, key):
        mask = jax.random.bernoulli(key, 0.5, (5,))
        f = lambda z: jnp.where(mask, tanh_cell(z, theta, 0.0), 0.0) * scale + x
        f_with_key = lambda z: f(z) + 0.0 * jax.random.uniform(key)
        return loss_of(deqjax.fixed_point(f_with_key, jnp.zeros(5), solver="picard", **TIGHT).z)

    scales, keys = np.array([0.3, 0.6, 0.9]), jax.random.split(jax.random.key(0), 3)
    both = jax.jit(jax.value_and_grad(loss))
    mapped = jax.jit(jax.vmap(jax.value_and_grad(loss)))(scales, keys)
    rows = [both(s, k) for s, k in zip(scales, keys, strict=True)]
    assert relative(mapped, tuple(np.stack(c) for c in zip(*rows, strict=True))) < 1e-9
    assert np.unique(mapped[0]).size == 3


def test_vmap_of_a_batched_solve():
    """An outer vmap over parameters of a solve that has its own batch axis."""
    theta, x = batch()
    factors = np.array([0.5, 1.0])
    call = lambda c, x: solve(jax.tree.map(lambda p: c * p, theta), x, batch_axis=0)
    sol = jax.jit(jax.vmap(call, (0, None)))(factors, x)
    assert sol.stats.steps.shape == (2, 3) and np.all(sol.stats.converged)
    want = [tanh_solution({k: c * p for k, p in theta.items()}, x) for c in factors]
    assert relative(sol.z, np.stack(want)) < 1e-10


def test_scan_over_solves_with_a_gradient_through_it():
    """A recurrent equilibrium: h_t = z* of z = tanh(W z + b) + h_{t−1}/2 + x_t, started at h."""
    theta, _ = tanh_parameters(4, radius=0.5)
    xs = np.random.default_rng(0).normal(size=(3, 4))

    def run(step, theta, xs):
        h, zs = jax.lax.scan(step(theta), jnp.zeros(4), xs)
        return jnp.sum(jnp.sin(zs)) + jnp.sum(h**2)

    def implicit(theta):
        def step(h, x):
            f = lambda z, h: tanh_cell(z, theta, 0.5 * h + x)
            z = deqjax.fixed_point(f, h, h, solver=SMALL["anderson"], **TIGHT).z
            return z, z

        return step

    def explicit(theta):
        def step(h, x):
            body = lambda z, _: (tanh_cell(z, theta, 0.5 * h + x), None)
            z = jax.lax.scan(body, h, length=60)[0]
            return z, z

        return step

    got, want = (
        jax.jit(jax.value_and_grad(functools.partial(run, step), (0, 1)))(theta, xs)
        for step in (implicit, explicit)
    )
    assert relative(got, want) < 1e-8


@pytest.mark.parametrize("where", ["around the solve", "inside f"])
def test_checkpoint(where):
    theta, x = tanh_parameters(5)
    if where == "inside f":
        loss = lambda theta, x: loss_of(
            deqjax.fixed_point(
                jax.checkpoint(tanh_cell), jnp.zeros(5), theta, x, solver=SMALL["anderson"], **TIGHT
            ).z
        )
    else:
        loss = jax.checkpoint(value)
    assert relative(jax.jit(jax.grad(loss, (0, 1)))(theta, x), dense(theta, x)) < 1e-8


def test_cond_and_switch():
    theta, x = tanh_parameters(5)
    branches = [
        lambda theta, x: value(theta, x, solver="picard"),
        lambda theta, x: 2.0 * value(theta, x, solver="anderson"),
        lambda theta, x: jnp.sum(x),
    ]
    grad = jax.jit(jax.grad(lambda theta, x, i: jax.lax.switch(i, branches, theta, x), 1))
    exact = dense(theta, x)[1]
    for i, want in enumerate([exact, 2.0 * exact, np.ones(5)]):
        assert relative(grad(theta, x, i), want) < 1e-8

    def on_status(theta, x, max_steps):
        sol = solve(theta, x, solver="picard", max_steps=max_steps)
        return jax.lax.cond(sol.stats.converged, jnp.sum, lambda z: -1e3 * jnp.sum(z), sol.z)

    assert float(jax.jit(on_status, static_argnums=2)(theta, x, 2)) != 0
    np.testing.assert_allclose(
        jax.jit(on_status, static_argnums=2)(theta, x, 200), tanh_solution(theta, x).sum()
    )


def test_jit_with_donated_arguments():
    theta, x = tanh_parameters(5)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(theta, x):
        grad = jax.grad(value)(theta, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, theta, grad)

    donated = jax.tree.map(jnp.asarray, theta)
    new = update(donated, x)
    want = jax.tree.map(lambda p, g: p - 0.1 * g, theta, dense(theta, x)[0])
    assert relative(new, want) < 1e-9
    assert donated["w"].is_deleted()


def test_jit_changes_nothing():
    theta, x = tanh_parameters(4)
    call = functools.partial(solve, solver="picard", rtol=1e-9)
    plain, jitted = call(theta, x), jax.jit(call)(theta, x)
    assert jax.tree.structure(plain) == jax.tree.structure(jitted)
    assert relative(plain.z, jitted.z) < 1e-8
    assert isinstance(jitted, deqjax.Solution)


@pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
def test_an_equilibrium_inside_an_equilibrium(adjoint):
    """z = tanh(W y(z) + b) + x, where y solves y = sin(y)/2 + V z; gradients to W, b, V and x."""
    theta, x = tanh_parameters(4, radius=0.5)
    inject = 0.4 * np.eye(4)[::-1] + 0.1

    def loss(solve_inner, solve_outer, theta, inject, x):
        def f(z, theta, inject, x):
            y = solve_inner(lambda y, z, inject: 0.5 * jnp.sin(y) + inject @ z, z, inject)
            return tanh_cell(y, theta, x)

        return loss_of(solve_outer(f, theta, inject, x))

    def implicit(f, *args):
        solver = deqjax.Anderson(memory=2)
        return deqjax.fixed_point(f, jnp.zeros(4), *args, solver=solver, **TIGHT).z

    def outer(f, *args):
        options = dict(rtol=1e-11, atol=1e-11, max_steps=40)
        return deqjax.fixed_point(
            f, jnp.zeros(4), *args, solver=SMALL["picard"], adjoint=adjoint, **options
        ).z

    def explicit(f, *args):
        return jax.lax.scan(lambda z, _: (f(z, *args), None), jnp.zeros(4), length=50)[0]

    got, want = (
        jax.jit(jax.value_and_grad(functools.partial(loss, *pair), (0, 1, 2)))(theta, inject, x)
        for pair in ((implicit, outer), (explicit, explicit))
    )
    assert relative(got, want) < 1e-8


def test_collectives_of_an_outer_vmap():
    """axis_name of an outer vmap may be used in f: all samples then share one equation."""
    theta, x = batch()

    def one(x):
        f = lambda z, x: tanh_cell(z, theta, x) * 0.5 + 0.2 * jax.lax.pmean(z, "i")
        # Samples stop apart, so run a fixed number of steps.
        return deqjax.fixed_point(
            f, jnp.zeros_like(x), x, solver="picard", rtol=0.0, atol=0.0, max_steps=80
        ).z

    got = jax.jit(jax.vmap(one, axis_name="i"))(x)
    z = np.zeros_like(x)
    for _ in range(80):
        z = (np.tanh(z @ theta["w"].T + theta["b"]) + x) * 0.5 + 0.2 * z.mean(0)
    assert relative(got, z) < 1e-12


def test_pytree_arguments_and_static_closures():
    """None, tuples, dicts and Python numbers among the arguments."""
    x = np.arange(3.0)
    cell = lambda z, p, c: (
        p["a"][0] * jnp.sin(z) + p["b"] * x + (0.0 if p["n"] is None else 1.0) + c
    )
    grad = jax.jit(
        jax.grad(
            lambda a: jnp.sum(
                deqjax.fixed_point(
                    cell, jnp.zeros(3), {"a": (a,), "b": 2, "n": None}, 1, solver="picard", **TIGHT
                ).z
            )
        )
    )(0.5)
    z = np.zeros(3)
    for _ in range(100):
        z = 0.5 * np.sin(z) + 2 * x + 1
    np.testing.assert_allclose(grad, np.sum(np.sin(z) / (1 - 0.5 * np.cos(z))), rtol=1e-9)
