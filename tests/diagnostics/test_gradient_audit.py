"""The audit against gradients by dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax.diagnostics import gradient_audit

from .cells import matrix

N = 5
J = 0.5 * matrix("random", N)
C = np.linspace(-1, 2, N)


def affine(z, x):
    """z* = (I − J)⁻¹ x, and the gradient of c·z* is (I − Jᵀ)⁻¹ c."""
    return jnp.asarray(J) @ z + x


def audit(**options):
    options = dict(loss=lambda z: jnp.asarray(C) @ z, rtol=1e-11) | options
    return gradient_audit(affine, jnp.zeros(N), jnp.ones(N), **options)


def want(g):
    exact = np.linalg.solve(np.eye(N) - J.T, C)
    sizes = np.linalg.norm(g), np.linalg.norm(exact)
    return g @ exact / np.prod(sizes), sizes[0] / sizes[1], np.linalg.norm(g - exact) / sizes[1]


def test_rows_against_dense():
    """JFB: u = c. Phantom: u = λ Σᵢ ((1 − λ) I + λ Jᵀ)ⁱ c."""
    found = audit(adjoints=("jfb", deqjax.Phantom(steps=3, damping=0.8), "implicit"))
    m = 0.2 * np.eye(N) + 0.8 * J.T
    phantom = 0.8 * (C + m @ C + m @ m @ C)
    exact = np.linalg.solve(np.eye(N) - J.T, C)
    names = [row.adjoint for row in found.rows]
    assert names == ["jfb", "Phantom(steps=3, damping=0.8)", "implicit"]
    for row, g in zip(found.rows[:2], (C, phantom), strict=True):
        got = (row.cosine, row.relative_norm, row.relative_error)
        np.testing.assert_allclose(got, want(g), rtol=1e-8)
        np.testing.assert_allclose(found.gradients[row.adjoint][0], g, rtol=1e-8)
    np.testing.assert_allclose(found.gradients["exact"][0], exact, rtol=1e-9)
    assert found.rows[2].relative_error < 1e-9
    assert found.trustworthy and found.reference.rel_residual < 1e-10


def test_the_table_is_readable():
    lines = str(audit(adjoints="jfb")).splitlines()
    assert lines[0].startswith("forward solve: converged, relative residual")
    assert lines[1].startswith("adjoint solve: converged, relative residual")
    header = ["adjoint", "cosine", "|g|/|g*|", "|g-g*|/|g*|", "evaluations"]
    assert lines[3].split() == header
    assert lines[5].split()[0] == "jfb" and len(lines) == 6


def test_a_reference_that_failed_says_so():
    found = audit(adjoints="jfb", adjoint_solver=deqjax.Picard(max_steps=1, rtol=1e-12))
    assert not found.trustworthy and found.forward.converged
    assert found.reference.status == deqjax.Status.MAX_STEPS
    assert "the exact gradient is itself in doubt" in str(found)


def test_batch_pytree_and_integer_arguments():
    theta = {"w": jnp.asarray(J), "rows": jnp.array([1, 0])}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, N)))
    z0 = {"z": jnp.zeros((2, N))}

    def f(z, theta, x):
        return {"z": jnp.tanh(z["z"] @ theta["w"].T) + x[theta["rows"]]}

    found = gradient_audit(f, z0, theta, x, adjoints={"mine": "phantom"}, batch_axis=0)
    assert found.trustworthy and found.forward.status.shape == found.reference.status.shape == (2,)
    assert [g.shape for g in found.gradients["exact"]] == [(N, N), (2, N)]
    assert [row.adjoint for row in found.rows] == ["mine"]
    assert 0.5 < found.rows[0].cosine < 1 and 0.01 < found.rows[0].relative_error < 1


def test_unrolled_is_audited_too():
    (row,) = audit(adjoints="unrolled", solver="picard", max_steps=80).rows
    assert row.relative_error < 1e-6


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="pass the parameters as arguments"):
        gradient_audit(lambda z: 0.5 * z, jnp.ones(2))
    with pytest.raises(ValueError, match=r"loss must return a scalar, it returned shape \(5,\)"):
        audit(loss=lambda z: z)
    with pytest.raises(ValueError, match="did you mean 'phantom'"):
        audit(adjoints=("phantm",))
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda x: gradient_audit(affine, jnp.zeros(N), x).gradients)(jnp.ones(N))
