"""Diagnostics of a module and its input are those of its equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax import diagnostics
from deqjax.nn import DEQ, LanguageModel, TransformerCell


class Cell(nnx.Module):
    def __init__(self, d, rngs):
        small = nnx.initializers.normal(0.15)
        self.linear = nnx.Linear(d, d, kernel_init=small, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, z, x):
        return jnp.tanh(self.dropout(self.linear(z)) + x)


@pytest.fixture
def deq():
    return DEQ(Cell(6, nnx.Rngs(0)), solver="broyden", rtol=1e-4)


X = jnp.linspace(-1.0, 1.0, 18).reshape(3, 6)


def test_of_its_solution(deq):
    f = deq.function(X)
    z = deq(X).z  # draws a mask, which belongs to the next equation
    want = diagnostics.spectrum(f, z, batch_axis=0)
    deq = DEQ(Cell(6, nnx.Rngs(0)), solver="broyden", rtol=1e-4)
    np.testing.assert_allclose(
        np.abs(diagnostics.spectrum(deq, X).eigenvalues), np.abs(want.eigenvalues), rtol=1e-3
    )
    radius = diagnostics.spectral_radius(deq, X)
    np.testing.assert_allclose(radius.radius, want.radius, rtol=1e-2)
    assert np.all(np.asarray(diagnostics.lipschitz(deq, X).constant) >= 0.99 * want.radius)


def test_of_its_start(deq):
    found = diagnostics.compare_solvers(deq, X, solvers=("picard", "anderson"), repeats=1)
    assert [row.status for row in found.rows] == ["converged", "converged"]
    assert 1e-6 < max(row.rel_residual for row in found.rows) <= 1e-4  # to the module's rtol
    paths = diagnostics.path_independence(deq, X, starts=2)
    assert paths.all_converged and paths.path_independent


def test_gradients_are_to_its_parameters(deq):
    audit = diagnostics.gradient_audit(deq, X, adjoints="jfb")
    assert audit.trustworthy and 0 < audit.rows[0].cosine < 1
    shapes = {np.shape(g) for g in jax.tree.leaves(audit.gradients["exact"])}
    assert (6, 6) in shapes and (3, 6) in shapes


def test_nothing_else_by_position(deq):
    with pytest.raises(TypeError, match="takes the module and its input"):
        diagnostics.spectrum(deq, X, X)


def test_of_a_language_model_and_a_text():
    cell = TransformerCell(8, heads=2, d_inner=16, memory_length=4, rngs=nnx.Rngs(0))
    model = LanguageModel(20, cell, rngs=nnx.Rngs(0), rtol=1e-4)
    tokens = jnp.arange(12).reshape(2, 6)
    found = diagnostics.compare_solvers(model, tokens, solvers="anderson", repeats=1)
    np.testing.assert_allclose(
        found.solutions["anderson"].z, model(tokens).solution.z, rtol=1e-5, atol=1e-6
    )
    assert np.shape(diagnostics.spectral_radius(model, tokens).radius) == (2,)
