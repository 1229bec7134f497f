"""Explicit layers before an equilibrium: what they are, and that they are trained through it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import CellStack, LanguageModel, Prelude, TransformerCell, TransformerInput

from .precision import cast

pytestmark = pytest.mark.usefixtures("double_precision")

BATCH, TIME, MEMORY, WIDTH = 2, 4, 4, 8


def stack(injection, memory=0, **options):
    rngs = nnx.Rngs(0 if injection else 7)
    block = dict(heads=2, d_inner=12, memory_length=memory, norm="pre", rngs=rngs)
    return CellStack([TransformerCell(WIDTH, injection=injection, **block)], **options)


def language_model(memory=0, **options):
    cell = Prelude(stack(None, memory, final_norm=False), stack("state", memory))
    solver = dict(solver="anderson", rtol=1e-12, max_steps=300)
    return cast(LanguageModel(11, cell, rngs=nnx.Rngs(3), **solver, **options))


def tokens(time=TIME):
    return jax.random.randint(jax.random.key(0), (BATCH, time), 0, 11)


@pytest.mark.slow
def test_the_equation_is_the_cell_of_what_the_layers_return():
    model = language_model()
    out = nnx.jit(lambda model: model(tokens()))(model)
    assert out.solution.stats.converged.all()
    x, layers, cell = model.embed(tokens()), model.cell.layers, model.cell.cell
    h = layers(x, layers.inject(TransformerInput(x)))
    z = cell(out.solution.z, cell.inject(TransformerInput(h)))
    np.testing.assert_allclose(z, out.solution.z, atol=1e-10)
    assert np.abs(h - x).max() > 0.1


@pytest.mark.slow
def test_the_gradient_of_all_parameters_is_that_of_the_steps_taken():
    @nnx.jit(static_argnames="adjoint")
    def gradient(model, adjoint):
        loss = lambda model: (model(tokens(), adjoint=adjoint, max_steps=60).logits ** 2).mean()
        return nnx.grad(loss)(model)

    model = language_model()
    implicit, unrolled = gradient(model, "implicit"), gradient(model, "unrolled")
    assert any("layers" in path for path, _ in nnx.to_flat_state(implicit))
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(implicit), nnx.to_flat_state(unrolled), strict=True
    ):
        np.testing.assert_allclose(a[...], b[...], rtol=1e-6, atol=1e-9, err_msg=str(path))
        assert np.abs(b[...]).max() > 1e-7, path


@pytest.mark.slow
def test_causal():
    model = language_model()
    graph, state = nnx.split(model)

    def output(x):
        return (nnx.merge(graph, state).deq(TransformerInput(x)).z[:, 1] ** 3).sum()

    gradient = jax.jit(jax.grad(output))(model.embed(tokens()))
    assert not gradient[:, 2:].any()
    assert (jnp.abs(gradient[:, :2]).max(axis=(0, 2)) > 0).all()


@pytest.mark.slow
def test_memory_is_a_longer_context():
    """One position after a memory that reaches back to the first sees all that there was."""
    model = language_model(MEMORY)
    read = nnx.jit(lambda model, tokens, memory: model(tokens, memory))
    whole, memory = tokens(MEMORY + 1), model.cell.empty_memory(BATCH, jnp.float64)
    first = read(model, whole[:, :MEMORY], memory)
    second = read(model, whole[:, MEMORY:], first.memory)
    want = read(model, whole, memory).logits[:, MEMORY:]
    np.testing.assert_allclose(second.logits, want, rtol=1e-7, atol=1e-9)


def test_wrong_parts_get_a_sentence():
    with pytest.raises(ValueError, match="must have injection=None"):
        Prelude(stack("state"), stack("state"))
    narrow = CellStack([TransformerCell(4, heads=2, d_inner=4, rngs=nnx.Rngs(0))])
    with pytest.raises(ValueError, match="a width of 8 and the cell takes one of 4"):
        Prelude(stack(None), narrow)
