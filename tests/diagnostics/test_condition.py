"""Condition numbers of eigenvalues, and what they say about a radius that a residual hides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqjax.diagnostics import spectral_radius, spectrum

from .cells import linear, matrix


def exact(a):
    """(radius, condition number of its eigenvalue), from all left and right eigenvectors."""
    values, right = np.linalg.eig(a)
    left = np.linalg.inv(right)
    kappa = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=0)
    return np.abs(values).max(), kappa[np.argmax(np.abs(values))]


def normal(n, eigenvalue):
    """A real normal matrix with this pair of eigenvalues, all others within 0.5 and real."""
    basis, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(n, n)))
    d = np.diag(np.linspace(-0.5, 0.5, n))
    re, im = eigenvalue.real, eigenvalue.imag
    d[:2, :2] = [[re, -im], [im, re]]
    return basis @ d @ basis.T


def triangular(n, seed=0):
    """Strong coupling above a diagonal within ±0.9: far from normal, with known eigenvalues."""
    rng = np.random.default_rng(seed)
    coupling = 3 * np.triu(rng.normal(size=(n, n)), 1) / np.sqrt(n)
    return coupling + np.diag(rng.uniform(-0.9, 0.9, n))


def jordan(n, value=0.5):
    return value * np.eye(n) + np.diag(np.ones(n - 1), 1)


@pytest.mark.parametrize("steps", (8, 20, 60))
def test_a_normal_jacobian_has_condition_one(steps):
    a = normal(60, 0.6 + 0.7j)
    found = spectral_radius(linear, jnp.zeros(60), a, steps=steps)
    np.testing.assert_allclose(found.condition, 1.0, rtol=0.02 if steps == 8 else 1e-3)
    assert abs(found.radius - abs(0.6 + 0.7j)) <= found.uncertainty
    assert found.uncertainty <= 1.1 * found.residual * found.radius + 1e-12


@pytest.mark.parametrize("value", (0.5, 0.0))
def test_a_multiple_of_the_identity_has_condition_one(value):
    """Its eigenvectors are any: a left one must be taken that belongs to the right one."""
    found = spectral_radius(lambda z: value * z, jnp.zeros(12))
    np.testing.assert_allclose(found.condition, 1.0)
    assert bool(found.converged) and found.uncertainty < 1e-13


@pytest.mark.parametrize("kind", ("random", "non-normal", "complex pair"))
def test_condition_against_a_dense_decomposition(kind):
    a = matrix(kind, 12)
    _, kappa = exact(a)
    found = spectral_radius(linear, jnp.zeros(12), a)
    np.testing.assert_allclose(found.condition, kappa, rtol=1e-6)
    dense = spectrum(linear, jnp.zeros(12), a)
    np.testing.assert_allclose(dense.conditions[0], kappa, rtol=1e-6)
    ritz = spectrum(linear, jnp.zeros(12), a, dense_up_to=0)
    np.testing.assert_allclose(np.sort(ritz.conditions), np.sort(dense.conditions), rtol=1e-4)
    assert dense.converged.all() and ritz.converged.all()


def test_condition_from_a_small_space():
    a = matrix("random", 80)
    radius, kappa = exact(a)
    found = spectral_radius(linear, jnp.zeros(80), a, steps=55)
    np.testing.assert_allclose(found.condition, kappa, rtol=0.01)
    assert bool(found.converged) and abs(found.radius - radius) <= found.uncertainty
    ritz = spectrum(linear, jnp.zeros(80), a, dense_up_to=0, count=55)
    np.testing.assert_allclose(ritz.conditions[0], kappa, rtol=0.01)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
@pytest.mark.parametrize("steps", (30, 90))
def test_the_radius_of_a_triangular_jacobian_is_not_taken_for_known(steps, dtype):
    """The residual is 0.03 and less where the radius is wrong by a quarter."""
    a = jnp.asarray(triangular(400), dtype)
    truth = float(jnp.abs(jnp.diagonal(a)).max())
    found = spectral_radius(linear, jnp.zeros(400, dtype), a, steps=steps)
    assert found.radius > truth + 0.05 and found.residual < 0.04
    assert abs(found.radius - truth) <= found.uncertainty
    assert not found.converged
    assert f"spectral radius {found.radius:.3g} ± " in str(found) and "not converged" in repr(found)


@pytest.mark.parametrize("dtype", (jnp.float32, jnp.float64))
def test_a_jordan_block_is_not_taken_for_known(dtype):
    """Rounding alone moves its eigenvalue from 0.5 to 0.75 in float64, 1.05 in float32."""
    a = jnp.asarray(jordan(30), dtype)
    z = jnp.zeros(30, dtype)
    for found in (spectral_radius(linear, z, a), spectrum(linear, z, a, dense_up_to=0)):
        radius = np.ravel(found.radius)[0]
        uncertainty = np.ravel(getattr(found, "uncertainties", getattr(found, "uncertainty", 0)))[0]
        assert radius > 0.7 and radius - 0.5 <= uncertainty
        assert "not converged" in str(found)
    assert np.ravel(spectral_radius(linear, z, a).condition)[0] > 1e4


def test_a_dense_spectrum_knows_what_is_badly_conditioned():
    """Two eigenvalues 1e-7 apart, coupled by one; and a Jordan block, whose are all one."""
    a = np.array([[0.5, 1.0, 0.0], [0.0, 0.5 + 1e-7, 0.0], [0.0, 0.0, 0.9]])
    found = spectrum(linear, jnp.zeros(3), a)
    np.testing.assert_allclose(found.conditions, [1.0, 1e7, 1e7], rtol=1e-2)
    assert found.converged.all()
    found = spectrum(linear, jnp.zeros(3), jnp.asarray(jordan(3)))
    assert found.conditions.min() > 1e9
    assert (found.uncertainties >= np.abs(found.eigenvalues - 0.5)).all()


def test_what_has_not_converged_says_so_and_what_has_does_not():
    a = matrix("random", 60)
    early, late = (spectral_radius(linear, jnp.zeros(60), a, steps=k) for k in (5, 60))
    assert not early.converged and "not converged" in str(early) and "±" in str(early)
    assert bool(late.converged) and "not converged" not in str(late)
    assert str(late).startswith(f"spectral radius {late.radius:.3g};")
    early, late = (spectrum(linear, jnp.zeros(60), a, dense_up_to=d, count=9) for d in (0, 512))
    assert "not converged" in str(early) and "Ritz values" in str(early)
    assert str(late) == f"spectral radius {late.radius:.3g}; 60 of 60 eigenvalues converged"
    assert repr(late) == str(late)


def test_a_batch_says_how_many_have_not():
    a = np.stack([normal(40, 0.6 + 0.7j), jordan(40)])
    found = spectral_radius(linear, jnp.zeros((2, 40)), a, batch_axis=0)
    assert found.converged.tolist() == [True, False]
    assert "1 of 2 not converged" in str(found)
    found = spectrum(linear, jnp.zeros((2, 40)), a, batch_axis=0, dense_up_to=0, count=30)
    assert "1 of 2 not converged" in str(found)


def test_a_state_in_bfloat16_is_known_to_two_digits():
    a = jnp.asarray(normal(8, 0.6 + 0.7j), jnp.bfloat16)
    found = spectral_radius(linear, jnp.zeros(8, jnp.bfloat16), a)
    assert 1e-3 < found.uncertainty < 0.1


def test_under_jit_and_in_it():
    a = matrix("random", 6)
    seen = []

    @jax.jit
    def run(a):
        found = spectral_radius(linear, jnp.zeros(6), a)
        seen.append(repr(found))
        return found, found.converged

    found, converged = run(a)
    np.testing.assert_allclose(found.condition, exact(a)[1], rtol=1e-8)
    assert bool(converged) and "SpectralRadius(radius=" in seen[0]
