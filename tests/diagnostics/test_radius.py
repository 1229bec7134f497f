"""Spectral radius: against numpy's eigenvalues, and honest where it is not there yet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqjax.diagnostics import spectral_radius
from deqjax.diagnostics._arnoldi import eig, eig_on_host

from .cells import KINDS, linear, linear_pytree, matrix, radius


@pytest.mark.parametrize("kind", KINDS)
def test_exact_when_the_space_is_the_whole(kind):
    a = matrix(kind, 12)
    found = spectral_radius(linear, jnp.zeros(12), a)
    assert found.steps == 12
    np.testing.assert_allclose(found.radius, radius(a), rtol=1e-10)
    np.testing.assert_allclose(abs(found.eigenvalue), found.radius, rtol=1e-14)
    assert np.min(np.abs(np.linalg.eigvals(a) - found.eigenvalue)) < 1e-10
    assert found.residual < 1e-12


@pytest.mark.parametrize("kind", ("random", "complex pair"))
def test_a_small_space_finds_it_and_the_residual_is_true(kind):
    """The residual is an upper estimate: λ is an eigenvalue of J + E, ‖E‖ = residual · |λ|."""
    a = matrix(kind, 60)
    found = spectral_radius(linear, jnp.zeros(60), a, steps=35)
    want = np.linalg.svd(a - complex(found.eigenvalue) * np.eye(60), compute_uv=False)[-1]
    assert want <= float(found.residual * found.radius) * (1 + 1e-8) + 1e-12
    if kind == "complex pair":
        assert found.residual < 1e-3
        np.testing.assert_allclose(found.radius, radius(a), rtol=1e-4)


def test_unconverged_is_visible():
    a = matrix("random", 200)
    early, late = (spectral_radius(linear, jnp.zeros(200), a, steps=k) for k in (5, 150))
    assert abs(early.radius - radius(a)) > 0.05
    assert early.residual > 0.2
    np.testing.assert_allclose(late.radius, radius(a), rtol=1e-8)
    assert late.residual < 1e-6


def test_each_sample_has_its_own():
    a = np.stack([matrix(kind, 8, seed) for seed, kind in enumerate(KINDS)])
    found = spectral_radius(linear, jnp.zeros((4, 8)), a, batch_axis=0)
    np.testing.assert_allclose(found.radius, radius(a), rtol=1e-10)
    turned = spectral_radius(lambda z: linear(z.T, a).T, jnp.zeros((8, 4)), batch_axis=1)
    np.testing.assert_allclose(turned.radius, radius(a), rtol=1e-10)


def test_pytree():
    a = matrix("complex pair", 8)
    z = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(2)}
    np.testing.assert_allclose(spectral_radius(linear_pytree, z, a).radius, 0.95, rtol=1e-10)


def test_complex_state_counts_as_pairs():
    a = matrix("random", 5) + 1j * matrix("random", 5, 1)
    found = spectral_radius(linear, jnp.zeros(5, complex), a)
    np.testing.assert_allclose(found.radius, radius(a), rtol=1e-10)


def test_nonlinear_cell_at_the_given_point():
    a, z = matrix("random", 6), np.linspace(-1, 1, 6)
    found = spectral_radius(lambda z: jnp.tanh(jnp.asarray(a) @ z), jnp.asarray(z))
    np.testing.assert_allclose(
        found.radius, radius((1 - np.tanh(a @ z) ** 2)[:, None] * a), rtol=1e-10
    )


@pytest.mark.slow
def test_repeated_eigenvalues_and_zero():
    """The Krylov space closes after one step; the iteration goes on outside it."""
    half = spectral_radius(lambda z: 0.5 * z, jnp.zeros(7))
    np.testing.assert_allclose((half.radius, half.residual), (0.5, 0.0), atol=1e-14)
    d = jnp.array([0.2, 0.2, 0.2, 0.9])
    np.testing.assert_allclose(spectral_radius(lambda z: d * z, jnp.zeros(4)).radius, 0.9)
    zero = spectral_radius(lambda z: jnp.ones_like(z), jnp.zeros(3))
    assert zero.radius == 0 and zero.residual == 0


def test_bfloat16_state():
    a = jnp.asarray(matrix("complex pair", 8), jnp.bfloat16)
    found = spectral_radius(linear, jnp.zeros(8, jnp.bfloat16), a)
    assert found.radius.dtype == jnp.float32
    np.testing.assert_allclose(found.radius, 0.95, rtol=0.03)


def test_nan_stays_nan():
    assert jnp.isnan(spectral_radius(lambda z: z * jnp.nan, jnp.zeros(3)).radius)


def test_jit_and_vmap():
    a = np.stack([matrix("random", 6, s) for s in range(3)])
    found = jax.jit(jax.vmap(lambda a: spectral_radius(linear, jnp.zeros(6), a)))(jnp.asarray(a))
    np.testing.assert_allclose(found.radius, radius(a), rtol=1e-10)


def test_the_host_eigensolver_is_the_same():
    h = np.stack([matrix("random", 5), np.full((5, 5), np.nan)])
    values, vectors = eig_on_host(h)
    here = eig(jnp.asarray(h[:1]))
    np.testing.assert_allclose(np.sort(values[0]), np.sort(here[0][0]), rtol=1e-12)
    np.testing.assert_allclose(h[0] @ vectors[0], vectors[0] * values[0], atol=1e-12)
    assert np.isnan(values[1]).all()


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="steps must be an integer >= 1"):
        spectral_radius(linear, jnp.zeros(2), jnp.eye(2), steps=0)
    with pytest.raises(ValueError, match="keep the shape of the state"):
        spectral_radius(lambda z: z[:1], jnp.zeros(2))
    with pytest.raises(ValueError, match="batch_axis=1 does not exist"):
        spectral_radius(lambda z: z, jnp.zeros(2), batch_axis=1)
