"""Several cells as one: a deep cell for an equilibrium, and an explicit Transformer-XL."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import CellStack, LanguageModel, NarrowStack, TransformerCell, TransformerInput

from .precision import cast

pytestmark = pytest.mark.usefixtures("double_precision")

BATCH, TIME, MEMORY, WIDTH = 2, 6, 4, 8


def cells(count, memory=0, **options):
    rngs = nnx.Rngs(0, dropout=1)
    make = lambda: TransformerCell(
        WIDTH, heads=2, d_inner=12, memory_length=memory, rngs=rngs, **options
    )
    return [make() for _ in range(count)]


def explicit(layers, memory=0, checkpoint="none", **options):
    stack = CellStack(cells(layers, memory, injection=None, **options), checkpoint=checkpoint)
    return cast(LanguageModel(11, stack, depth=1, rngs=nnx.Rngs(3, dropout=4)))


def deep(layers, memory=0, **options):
    stack = CellStack(cells(layers, memory, **options))
    solver = dict(solver="anderson", rtol=1e-12, max_steps=300)
    return cast(LanguageModel(11, stack, rngs=nnx.Rngs(3, dropout=4), **solver))


def tokens(seed=0, time=TIME):
    return jax.random.randint(jax.random.key(seed), (BATCH, time), 0, 11)


def test_an_explicit_network_is_its_layers_one_after_the_other():
    model = explicit(3)
    x = model.embed(tokens())
    want = x
    for cell in model.cell.cells:
        want = cell(want, cell.inject(TransformerInput(x)))
    want = want @ model.embedding[...].T
    np.testing.assert_allclose(model(tokens()).logits, want, rtol=1e-6)
    assert not any(hasattr(cell, "inject_qkv") for cell in model.cell.cells)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("build", [explicit, deep])
def test_causal(build, norm):
    """The gradient of an output to a later input is exactly zero."""
    model = build(2, norm=norm)
    graph, state = nnx.split(model)

    def output(x):
        model = nnx.merge(graph, state)
        given = TransformerInput(x)
        return (model.deq(given, depth=model.depth).z[:, 2] ** 3).sum()

    gradient = jax.jit(jax.grad(output))(model.embed(tokens()))
    assert np.all(np.asarray(gradient[:, 3:]) == 0)
    assert np.all(np.abs(gradient[:, :3]).max(axis=(0, 2)) > 0)


@pytest.mark.slow
def test_checkpoints_change_no_value_and_no_gradient():
    def loss_and_grad(checkpoint):
        model = explicit(3, memory=MEMORY, checkpoint=checkpoint, dropout=0.2)
        memory = jax.tree.map(
            lambda m: jax.random.normal(jax.random.key(5), m.shape).astype(m.dtype),
            model.cell.empty_memory(BATCH, jnp.float64),
        )

        def loss(model):
            return (model(tokens(2), memory).logits ** 2).mean()

        value, grads = nnx.jit(nnx.value_and_grad(loss))(model)
        return value, *jax.tree.leaves(grads)

    want = loss_and_grad("none")
    for checkpoint in ("all", "sqrt"):
        for a, b in zip(loss_and_grad(checkpoint), want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def temporary_bytes(f, *args):
    return jax.jit(f).lower(*args).compile().memory_analysis().temp_size_in_bytes


def compiler_keeps_checkpoints():
    """Whether `jax.checkpoint` saves anything here, with nothing of this library in it.

    Of jaxlib 0.10 the CPU back end drops the barriers that keep a recomputation apart, and merges
    it with the first computation; 0.12 does not, nor does the TPU's of either.
    """

    def gradient(wrap):
        layer = wrap(lambda w, x: jnp.sin(jnp.sin(x @ w)))
        return jax.grad(lambda w, x: functools.reduce(lambda x, _: layer(w, x), range(4), x).sum())

    shapes = jnp.ones((64, 64)), jnp.ones((4096, 64))
    wraps = (lambda f: f), jax.checkpoint
    plain, checkpointed = (temporary_bytes(gradient(wrap), *shapes) for wrap in wraps)
    return checkpointed < plain


@pytest.mark.slow
def test_checkpoints_save_memory():
    """Compiled temporary bytes of a training step of 9 layers."""
    if not compiler_keeps_checkpoints():
        pytest.skip("this XLA merges what jax.checkpoint computes again with what it computed")

    def temporary(checkpoint):
        model = explicit(9, checkpoint=checkpoint)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        long = jax.random.randint(jax.random.key(0), (4, 64), 0, 11)
        loss = lambda params: (nnx.merge(graph, params, rest)(long).logits ** 2).mean()
        return temporary_bytes(jax.grad(loss), params)

    none, every, root = map(temporary, ("none", "all", "sqrt"))
    assert every < 0.5 * none and root < 0.6 * none


@pytest.mark.parametrize("checkpoint, times", [("none", 0), ("all", 9), ("sqrt", 3)])
def test_checkpoints_are_asked_for(checkpoint, times):
    """Whatever a back end makes of them: one for each group of layers."""
    graph, params, rest = nnx.split(explicit(9, checkpoint=checkpoint), nnx.Param, ...)
    loss = lambda params: nnx.merge(graph, params, rest)(tokens()).logits.sum()
    jaxpr = jax.make_jaxpr(loss)(params)
    assert sum(eqn.primitive.name in ("checkpoint", "remat2") for eqn in jaxpr.eqns) == times


@pytest.mark.slow
@pytest.mark.parametrize("build", [explicit, pytest.param(deep, marks=pytest.mark.slow)])
def test_the_memory_of_a_stack_is_what_entered_its_cells(build):
    """A segment after a memory that reaches back far enough gives what the whole text gives."""
    model = build(2, memory=MEMORY)
    model.eval()
    whole = tokens(time=2 * MEMORY)
    memory = model.cell.empty_memory(BATCH, jnp.float64)
    first = model(whole[:, :MEMORY], memory)
    assert len(first.memory) == 2 and first.memory[0].z.shape == (BATCH, MEMORY, WIDTH)
    second = model(whole[:, MEMORY : MEMORY + 1], first.memory)
    want = model(whole[:, : MEMORY + 1], memory).logits[:, -1:]
    np.testing.assert_allclose(second.logits, want, rtol=1e-6, atol=1e-7)


def test_two_blocks_as_the_cell_of_an_equilibrium():
    model = deep(2, norm="pre", weight_norm=True)
    out = nnx.jit(lambda model: model(tokens()))(model)
    assert out.solution.stats.converged.all()
    given = TransformerInput(model.embed(tokens()))
    again = model.cell(out.solution.z, model.cell.inject(given))
    np.testing.assert_allclose(again, out.solution.z, atol=1e-9)
    assert abs(float((out.solution.z**2).mean()) - 1) < 1e-3  # normalised at the end


@pytest.mark.slow
def test_weight_norm_starts_as_the_layer_without_it_and_keeps_the_lengths():
    plain, normed = (
        CellStack(cells(1, weight_norm=weight_norm)).cells[0] for weight_norm in (False, True)
    )
    given = TransformerInput(jax.random.normal(jax.random.key(0), (BATCH, TIME, WIDTH)))
    z = jax.random.normal(jax.random.key(1), (BATCH, TIME, WIDTH))
    want = plain(z, plain.inject(given))
    np.testing.assert_allclose(normed(z, normed.inject(given)), want, rtol=1e-5, atol=1e-6)
    for name in ("qkv", "inject_qkv", "position", "out", "up", "down"):
        layer = getattr(normed, name)
        layer.kernel[...] *= 3.0
        length = jnp.linalg.norm(layer.weight, axis=0)
        np.testing.assert_allclose(length, layer.scale[...], rtol=1e-6)
    np.testing.assert_allclose(normed(z, normed.inject(given)), want, rtol=1e-5, atol=1e-6)

    def loss(cell):
        return (cell(z, cell.inject(given)) ** 3).sum()

    grads = nnx.grad(loss)(normed)
    for name in ("qkv", "up"):
        direction, gradient = getattr(normed, name).kernel[...], grads[name].kernel[...]
        assert float(jnp.abs(gradient).max()) > 1e-4
        along = (direction * gradient).sum(axis=0)
        assert float(jnp.abs(along).max()) < 1e-5 * float(jnp.abs(direction * gradient).max())


def test_narrow_layers_project_in_and_out():
    stack = cast(NarrowStack(cells(2, injection=None), n_in=12, rngs=nnx.Rngs(2)))
    assert (stack.n_in, stack.d) == (12, WIDTH)
    x = jax.random.normal(jax.random.key(1), (BATCH, TIME, 12))
    z = x @ stack.projection[...]
    for cell in stack.cells:
        z = cell(z, cell.inject(TransformerInput(z)))
    given = TransformerInput(x)
    found = stack.output(stack(stack.initial_state(given), stack.inject(given)))
    np.testing.assert_allclose(found, z @ stack.projection[...].T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CellStack([]), "at least one cell"),
        (lambda: CellStack([*cells(1), *cells(1, injection=None)]), "the same injection"),
        (lambda: CellStack([*cells(1), *cells(1, memory=3)]), "the same memory_length"),
        (lambda: CellStack(cells(1), checkpoint="half"), "'none', 'all' or 'sqrt'"),
        (lambda: cells(1, norm="mid"), "norm must be 'post' or 'pre'"),
        (lambda: cells(1, mimetic=True, weight_norm=True), "mimetic=True"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(ValueError, match=said):
        make()
