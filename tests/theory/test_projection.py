"""Matrices of bounded norm: the nearest ones, and never a row too long."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqjax.theory.wellposed import certify, mu_bounded, norm_bounded, project_inf_norm


def optimum(row, kappa):
    """The nearest point of the ℓ₁ ball, in rational arithmetic: the one support whose τ meets the
    KKT conditions, |a| > τ on it and ≤ τ off it."""
    a = [Fraction(float(x)) for x in row]
    size = sorted((abs(x) for x in a), reverse=True)
    kappa = Fraction(kappa)
    if sum(size) <= kappa:
        return a
    (tau,) = {
        t
        for k in range(1, len(a) + 1)
        if (t := (sum(size[:k]) - kappa) / k) < size[k - 1] and (k == len(a) or size[k] <= t)
    }
    return [max(abs(x) - tau, 0) * (1 if x > 0 else -1) for x in a]


def exact_sum(row):
    return sum(abs(Fraction(float(x))) for x in row)


project = jax.jit(project_inf_norm, static_argnums=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.95, 3.0]), st.sampled_from([0, 1, 2, 3]))
def test_nearest_to_1e_12(seed, kappa, kind):
    A = np.random.default_rng(seed).normal(size=(3, 6))
    A = [A, np.round(A), 1e6 + A, np.sign(A) * [[0.0], [1e-3], [1e8]]][kind]
    found = np.asarray(project(A, kappa))
    for row, got in zip(A, found, strict=True):
        want = [float(x) for x in optimum(row, kappa)]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * max(1, kappa))
        assert exact_sum(got) <= Fraction(kappa)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("make", [project_inf_norm, norm_bounded])
def test_no_row_is_longer_than_kappa_in_any_dtype(make, dtype):
    rng = np.random.default_rng(0)
    make = jax.jit(make, static_argnums=1)
    for n in (1, 65):
        A = jnp.asarray(rng.normal(size=(40, n)) * np.geomspace(0.1, 100, 40)[:, None], dtype)
        found = make(A, 0.95)
        assert found.dtype == A.dtype and found.shape == A.shape
        sums = [exact_sum(row) for row in np.asarray(found, np.float64)]
        assert max(sums) <= Fraction(0.95)
        if make.__name__ == "project_inf_norm":
            assert max(sums) > 0.95 * (1 - 3 * float(jnp.finfo(dtype).eps) - 1e-4)
            assert (found[0] == A[0]).all() == (exact_sum(np.asarray(A[0], float)) < 0.94)


def test_the_plain_formula_exceeds_it_in_float32():
    """Why κ is rounded inward."""
    A = np.random.default_rng(0).normal(size=(200, 64)).astype(np.float32)
    size = np.sort(np.abs(A), axis=1)[:, ::-1]
    level = (np.cumsum(size, axis=1) - np.float32(0.95)) / np.arange(1, 65, dtype=np.float32)
    tau = np.take_along_axis(level, (size > level).sum(axis=1, keepdims=True) - 1, axis=1)
    plain = np.maximum(np.abs(A) - tau, 0).astype(np.float64).sum(axis=1)
    assert plain.max() > 0.95 + 1e-8
    assert certify(project_inf_norm(A[:64]), "relu").bound <= 0.95


def test_derivative_against_central_differences():
    A = np.random.default_rng(1).normal(size=(4, 5))
    A[3] *= 0.01  # inside
    for make in (project_inf_norm, norm_bounded):
        make = functools.partial(jax.jit(make, static_argnums=1), kappa=0.9)
        jacobian = jax.jit(jax.jacobian(make))(A)
        differences = np.zeros_like(jacobian)
        for at in np.ndindex(A.shape):
            e = np.zeros_like(A)
            e[at] = 1e-6
            differences[(..., *at)] = (make(A + e) - make(A - e)) / 2e-6
        np.testing.assert_allclose(jacobian, differences, atol=1e-8)
        if make.func.__name__ == "project_inf_norm":
            np.testing.assert_array_equal(jacobian[3, :, 3], np.eye(5))


def test_transforms_and_edges():
    A = np.random.default_rng(2).normal(size=(3, 4, 5))
    mapped = jax.jit(jax.vmap(lambda A: project_inf_norm(A, 0.5)))(A)
    np.testing.assert_allclose(mapped, project(A, 0.5), rtol=1e-14)
    gradient = jax.jit(jax.grad(lambda A: project_inf_norm(A).sum()))(np.zeros((2, 3)))
    assert jnp.isfinite(gradient).all()
    ties = np.ones((1, 4))
    np.testing.assert_allclose(project(ties, 1.0), ties / 4, rtol=1e-13)
    with_nan = project(np.array([[np.nan, 1.0], [3.0, 1.0]]), 1.0)
    assert np.isnan(with_nan[0]).any() and np.isfinite(with_nan[1]).all()


bounded = jax.jit(mu_bounded, static_argnums=1)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 4]), st.integers(0, 10**6), st.sampled_from(["float32", "float64"]))
def test_mu_is_bounded_whatever_T_is(n, seed, dtype):
    T = np.random.default_rng(seed).normal(size=(n, n)).astype(dtype)
    A = np.asarray(bounded(T * 10, 0.9), np.float64)
    rows = [Fraction(A[i, i]) + exact_sum(np.delete(A[i], i)) for i in range(n)]
    assert max(rows) <= Fraction(0.9)
    assert certify(A, "tanh", "mu_inf").holds
    grown = 0.9 - np.minimum(0, np.diag(T)) * -20  # γ + tᵢᵢ − |tᵢᵢ|
    np.testing.assert_allclose(
        [float(r) for r in rows], grown, atol=1e-3 if dtype == "float32" else 1e-11
    )


def test_bad_input_in_one_sentence():
    A = np.eye(2)
    for bad in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="kappa must be"):
            project_inf_norm(A, bad)
    with pytest.raises(TypeError, match="Python number"):
        jax.jit(project_inf_norm)(A, 0.9)
    with pytest.raises(TypeError, match="floating"):
        norm_bounded(np.eye(2, dtype=int))
    with pytest.raises(ValueError, match="square"):
        mu_bounded(np.ones((2, 3)))
    with pytest.raises(ValueError, match="gamma"):
        mu_bounded(A, math.inf)
    with pytest.raises(ValueError, match="shape"):
        project_inf_norm(1.0)
