"""Eigenvalues: dense against numpy, Ritz values against the matrix they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqjax.diagnostics import spectrum

from .cells import linear, matrix, radius


def distance_to_spectrum(values, a):
    return np.abs(values[:, None] - np.linalg.eigvals(a)[None]).min(axis=1)


@pytest.mark.parametrize("kind", ("symmetric", "complex pair"))
def test_dense(kind):
    a = matrix(kind, 9)
    found = spectrum(linear, jnp.zeros(9), a)
    assert found.dense and found.eigenvalues.shape == (9,) and not found.residuals.any()
    assert distance_to_spectrum(found.eigenvalues, a).max() < 1e-10
    np.testing.assert_allclose(found.radius, radius(a), rtol=1e-10)
    assert (np.diff(np.abs(found.eigenvalues)) <= 0).all()


def test_more_columns_than_are_pushed_at_once():
    a = matrix("random", 45)
    want = np.sort_complex(np.linalg.eigvals(a))
    np.testing.assert_allclose(
        np.sort_complex(spectrum(linear, jnp.zeros(45), a).eigenvalues), want, atol=1e-12
    )


def test_ritz_values_and_their_residuals():
    a = matrix("symmetric", 80)
    found = spectrum(linear, jnp.zeros(80), a, dense_up_to=10, count=40)
    assert not found.dense and found.eigenvalues.shape == (40,)
    np.testing.assert_allclose(found.radius, radius(a), rtol=1e-6)
    # For a symmetric J an eigenvalue lies within the residual, and for some of them it is large.
    error = distance_to_spectrum(found.eigenvalues, a)
    assert (error <= found.residuals * np.abs(found.eigenvalues) + 1e-10).all()
    assert found.residuals.max() > 0.1 > found.residuals.min()


def test_the_krylov_space_of_everything_is_exact():
    a = matrix("non-normal", 10)
    found = spectrum(linear, jnp.zeros(10), a, dense_up_to=0)
    assert found.eigenvalues.shape == (10,)
    assert distance_to_spectrum(found.eigenvalues, a).max() < 1e-8


def test_multiplicities_are_found():
    d = np.array([0.5, 0.5, 0.5, -0.25, -0.25, 0.0])
    found = spectrum(lambda z: d * z, jnp.zeros(6), dense_up_to=0)
    np.testing.assert_allclose(np.sort(found.eigenvalues.real), np.sort(d), atol=1e-12)


@pytest.mark.parametrize("dense_up_to", (0, 100))
def test_batch(dense_up_to):
    a = np.stack([matrix("random", 6, s) for s in range(3)])
    found = spectrum(linear, jnp.zeros((3, 6)), a, batch_axis=0, dense_up_to=dense_up_to)
    assert found.eigenvalues.shape == found.residuals.shape == (3, 6)
    np.testing.assert_allclose(found.radius, radius(a), rtol=1e-10)


def test_not_finite_is_nan():
    a = np.stack([np.eye(2), np.full((2, 2), np.inf)])
    found = spectrum(linear, jnp.zeros((2, 2)), a, batch_axis=0)
    np.testing.assert_array_equal(found.radius, [1.0, np.nan])


def test_refuses_to_be_traced():
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda z: spectrum(lambda z: z, z).radius)(jnp.zeros(2))
