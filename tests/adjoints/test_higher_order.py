"""Reverse over reverse, to third order, against closed forms and explicit iterations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells


def equilibrium_loss(theta, x, **options):
    sol = deqjax.fixed_point(cells.tanh_cell, jnp.zeros_like(x), theta, x, **options, **cells.TIGHT)
    return cells.loss_of(sol.z)


def explicit_loss(theta, x):
    """150 plain iterations, differentiated by JAX: the radius is 0.7, so they reach round-off."""
    z = jax.lax.scan(lambda z, _: (cells.tanh_cell(z, theta, x), None), 0.0 * x, length=150)[0]
    return cells.loss_of(z)


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_second_derivatives(solver):
    """The gradient of ⟨c, ∇ℓ⟩ with respect to everything: mixed second derivatives too."""
    theta, x = cells.tanh_parameters(4)
    c = np.cos(np.arange(4.0))

    def second(loss):
        def inner(theta, x):
            g_theta, g_x = jax.grad(loss, (0, 1))(theta, x)
            return c @ g_x + jnp.sum(g_theta["w"] ** 2)

        return jax.jit(jax.grad(inner, (0, 1)))(theta, x)

    got = second(functools.partial(equilibrium_loss, solver=cells.SMALL[solver]))
    assert cells.relative(got, second(explicit_loss)) < 1e-6


def test_second_derivatives_of_a_batch():
    theta, x = cells.tanh_parameters(4)
    x = x * np.array([0.2, 2.0])[:, None]

    def penalty(loss, theta):
        return jnp.sum(jax.grad(loss, 1)(theta, x) ** 2)

    got = jax.jit(
        jax.grad(
            functools.partial(
                penalty,
                functools.partial(equilibrium_loss, solver=cells.SMALL["anderson"], batch_axis=0),
            )
        )
    )(theta)
    assert (
        cells.relative(got, jax.jit(jax.grad(functools.partial(penalty, explicit_loss)))(theta))
        < 1e-6
    )


def test_gradient_penalty_in_a_training_loss():
    """ℓ + ‖∂ℓ/∂x‖², as a training step has it: value and gradient."""
    theta, x = cells.tanh_parameters(4)

    def with_penalty(loss, theta):
        value, slope = jax.value_and_grad(loss, 1)(theta, x)
        return value + jnp.sum(slope**2)

    got = jax.jit(
        jax.value_and_grad(
            functools.partial(
                with_penalty, functools.partial(equilibrium_loss, solver=cells.SMALL["anderson"])
            )
        )
    )(theta)
    want = jax.jit(jax.value_and_grad(functools.partial(with_penalty, explicit_loss)))(theta)
    assert cells.relative(got, want) < 1e-6


def nested(f, order):
    for _ in range(order):
        f = jax.grad(f)
    return f


@pytest.mark.parametrize(
    "solver", ["picard", deqjax.Anderson(memory=1)], ids=["picard", "anderson"]
)
def test_three_derivatives_in_closed_form(solver):
    """z = a z / 2 + 1 has z = 2 / (2 − a), and n-th derivative 2 n! / (2 − a)ⁿ⁺¹."""
    z = lambda a: (
        deqjax.fixed_point(
            lambda z, a: 0.5 * a * z + 1.0, jnp.zeros(()), a, solver=solver, **cells.TIGHT
        ).z
    )
    for order, factorial in [(1, 1), (2, 2), (3, 6)]:
        got = jax.jit(nested(z, order))(0.7)
        np.testing.assert_allclose(got, 2 * factorial / 1.3 ** (order + 1), rtol=1e-8)


def test_third_derivative_of_a_transcendental_equation():
    """z = cos(a z): z' = −z sin(az) / (1 + a sin(az)), and so on by the total derivative."""
    first = lambda a, z: -z * jnp.sin(a * z) / (1 + a * jnp.sin(a * z))

    def total(h):
        return lambda a, z: jax.grad(h, 0)(a, z) + jax.grad(h, 1)(a, z) * first(a, z)

    a, z_star = 0.8, 0.5
    for _ in range(200):
        z_star = np.cos(a * z_star)
    z = lambda a: (
        deqjax.fixed_point(
            lambda z: jnp.cos(a * z), jnp.zeros(()), solver=cells.SMALL["picard"], **cells.TIGHT
        ).z
    )
    np.testing.assert_allclose(jax.jit(jax.grad(z))(a), first(a, z_star), rtol=1e-10)
    want = jax.jit(total(total(first)))(a, z_star)
    np.testing.assert_allclose(jax.jit(nested(z, 3))(a), want, rtol=1e-6)


def test_forward_mode_is_refused_and_not_computed_wrong():
    z = lambda a: deqjax.fixed_point(lambda z: jnp.cos(a * z), jnp.zeros(()), solver="picard").z
    with pytest.raises(TypeError, match=r"(?i)forward"):
        jax.jvp(z, (0.5,), (1.0,))
