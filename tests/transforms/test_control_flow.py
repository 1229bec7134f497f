"""jit, scan, checkpoint, cond, donation, and equilibria inside equilibria."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells


def test_scan_over_solves_with_a_gradient_through_it():
    """A recurrent equilibrium: h_t = z* of z = tanh(W z + b) + h_{t−1}/2 + x_t, started at h."""
    theta, _ = cells.tanh_parameters(4, radius=0.5)
    xs = np.random.default_rng(0).normal(size=(3, 4))

    def run(step, theta, xs):
        h, zs = jax.lax.scan(step(theta), jnp.zeros(4), xs)
        return jnp.sum(jnp.sin(zs)) + jnp.sum(h**2)

    def implicit(theta):
        def step(h, x):
            f = lambda z, h: cells.tanh_cell(z, theta, 0.5 * h + x)
            z = deqjax.fixed_point(f, h, h, solver=cells.SMALL["anderson"], **cells.TIGHT).z
            return z, z

        return step

    def explicit(theta):
        def step(h, x):
            body = lambda z, _: (cells.tanh_cell(z, theta, 0.5 * h + x), None)
            z = jax.lax.scan(body, h, length=60)[0]
            return z, z

        return step

    got, want = (
        jax.jit(jax.value_and_grad(functools.partial(run, step), (0, 1)))(theta, xs)
        for step in (implicit, explicit)
    )
    assert cells.relative(got, want) < 1e-8


@pytest.mark.parametrize("where", ["around the solve", "inside f"])
def test_checkpoint(where):
    theta, x = cells.tanh_parameters(5)
    if where == "inside f":
        loss = lambda theta, x: cells.loss_of(
            deqjax.fixed_point(
                jax.checkpoint(cells.tanh_cell),
                jnp.zeros(5),
                theta,
                x,
                solver=cells.SMALL["anderson"],
                **cells.TIGHT,
            ).z
        )
    else:
        loss = jax.checkpoint(cells.small_loss)
    assert (
        cells.relative(jax.jit(jax.grad(loss, (0, 1)))(theta, x), cells.dense_gradient(theta, x))
        < 1e-8
    )


def test_cond_and_switch():
    theta, x = cells.tanh_parameters(5)
    branches = [
        lambda theta, x: cells.small_loss(theta, x, solver="picard"),
        lambda theta, x: 2.0 * cells.small_loss(theta, x, solver="anderson"),
        lambda theta, x: jnp.sum(x),
    ]
    grad = jax.jit(jax.grad(lambda theta, x, i: jax.lax.switch(i, branches, theta, x), 1))
    exact = cells.dense_gradient(theta, x)[1]
    for i, want in enumerate([exact, 2.0 * exact, np.ones(5)]):
        assert cells.relative(grad(theta, x, i), want) < 1e-8

    def on_status(theta, x, max_steps):
        sol = cells.tanh_solve(theta, x, solver="picard", max_steps=max_steps)
        return jax.lax.cond(sol.stats.converged, jnp.sum, lambda z: -1e3 * jnp.sum(z), sol.z)

    assert float(jax.jit(on_status, static_argnums=2)(theta, x, 2)) != 0
    np.testing.assert_allclose(
        jax.jit(on_status, static_argnums=2)(theta, x, 200), cells.tanh_solution(theta, x).sum()
    )


def test_jit_with_donated_arguments():
    theta, x = cells.tanh_parameters(5)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(theta, x):
        grad = jax.grad(cells.small_loss)(theta, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, theta, grad)

    donated = jax.tree.map(jnp.asarray, theta)
    new = update(donated, x)
    want = jax.tree.map(lambda p, g: p - 0.1 * g, theta, cells.dense_gradient(theta, x)[0])
    assert cells.relative(new, want) < 1e-9
    assert donated["w"].is_deleted()


def test_jit_changes_nothing():
    theta, x = cells.tanh_parameters(4)
    call = functools.partial(cells.tanh_solve, solver="picard", rtol=1e-9)
    plain, jitted = call(theta, x), jax.jit(call)(theta, x)
    assert jax.tree.structure(plain) == jax.tree.structure(jitted)
    assert cells.relative(plain.z, jitted.z) < 1e-8
    assert isinstance(jitted, deqjax.Solution)


@pytest.mark.parametrize("adjoint", ["implicit", "unrolled"])
def test_an_equilibrium_inside_an_equilibrium(adjoint):
    """z = tanh(W y(z) + b) + x, where y solves y = sin(y)/2 + V z; gradients to W, b, V and x."""
    theta, x = cells.tanh_parameters(4, radius=0.5)
    inject = 0.4 * np.eye(4)[::-1] + 0.1

    def loss(solve_inner, solve_outer, theta, inject, x):
        def f(z, theta, inject, x):
            y = solve_inner(lambda y, z, inject: 0.5 * jnp.sin(y) + inject @ z, z, inject)
            return cells.tanh_cell(y, theta, x)

        return cells.loss_of(solve_outer(f, theta, inject, x))

    def implicit(f, *args):
        solver = deqjax.Anderson(memory=2)
        return deqjax.fixed_point(f, jnp.zeros(4), *args, solver=solver, **cells.TIGHT).z

    def outer(f, *args):
        options = dict(rtol=1e-11, atol=1e-11, max_steps=40)
        return deqjax.fixed_point(
            f, jnp.zeros(4), *args, solver=cells.SMALL["picard"], adjoint=adjoint, **options
        ).z

    def explicit(f, *args):
        return jax.lax.scan(lambda z, _: (f(z, *args), None), jnp.zeros(4), length=50)[0]

    got, want = (
        jax.jit(jax.value_and_grad(functools.partial(loss, *pair), (0, 1, 2)))(theta, inject, x)
        for pair in ((implicit, outer), (explicit, explicit))
    )
    assert cells.relative(got, want) < 1e-8


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
                    cell,
                    jnp.zeros(3),
                    {"a": (a,), "b": 2, "n": None},
                    1,
                    solver="picard",
                    **cells.TIGHT,
                ).z
            )
        )
    )(0.5)
    z = np.zeros(3)
    for _ in range(100):
        z = 0.5 * np.sin(z) + 2 * x + 1
    np.testing.assert_allclose(grad, np.sum(np.sin(z) / (1 - 0.5 * np.cos(z))), rtol=1e-9)
