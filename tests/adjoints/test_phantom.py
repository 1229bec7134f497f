"""Phantom gradients and JFB against the documented series."""

import functools

import jax
import numpy as np
import pytest

import deqjax
from tests import cells


def by_adjoint(adjoint, theta, x, **options):
    loss = functools.partial(
        cells.tanh_loss, adjoint=adjoint, solver="picard", **cells.TIGHT, **options
    )
    return jax.jit(jax.grad(loss, (0, 1)))(theta, x)


def direct(theta, z, u):
    """One VJP of the cell at z, with the cotangent u."""
    s = u * (1 - np.tanh(theta["w"] @ z + theta["b"]) ** 2)
    return {"w": np.outer(s, z), "b": s}, u


@pytest.mark.parametrize(("steps", "damping"), [(1, 0.5), (2, 1.0), (5, 0.5)])
def test_phantom_is_the_documented_series(steps, damping):
    """u = λ Σᵢ ((1 − λ) I + λ J)ᵀⁱ v over i < steps."""
    theta, x = cells.tanh_parameters(5)
    z = cells.tanh_solution(theta, x)
    v = cells.cotangent_of(z)
    step = ((1 - damping) * np.eye(5) + damping * cells.tanh_jacobian(z, theta)).T
    u = damping * sum(np.linalg.matrix_power(step, i) @ v for i in range(steps))
    got = by_adjoint(deqjax.Phantom(steps=steps, damping=damping), theta, x)
    assert cells.relative(got, direct(theta, z, u)) < 1e-9


def test_phantom_tends_to_the_exact_gradient():
    theta, x = cells.tanh_parameters(5)
    errors = [
        cells.relative(
            by_adjoint(deqjax.Phantom(steps=k, damping=0.8), theta, x),
            cells.dense_gradient(theta, x),
        )
        for k in (1, 5, 100)
    ]
    assert errors[0] > 0.1 and errors[1] < 0.7 * errors[0] and errors[2] < 1e-8
    assert (
        cells.relative(by_adjoint("phantom", theta, x), cells.dense_gradient(theta, x)) > 1e-3
    )  # default: approximate


def test_jfb_leaves_the_jacobian_out():
    theta, x = cells.tanh_parameters(5)
    z = cells.tanh_solution(theta, x)
    got = by_adjoint("jfb", theta, x)
    assert cells.relative(got, direct(theta, z, cells.cotangent_of(z))) < 1e-9
    assert cells.relative(got, cells.dense_gradient(theta, x)) > 0.05
