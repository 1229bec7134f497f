"""An explicit network as a loop over its layers computes what its layers compute."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import (
    DEQ,
    CellStack,
    LanguageModel,
    NarrowScannedStack,
    NarrowStack,
    ScannedStack,
    TransformerCell,
    TransformerInput,
    TrellisCell,
)
from deqjax.training.mesh import parameter_specs

from .precision import cast

pytestmark = pytest.mark.usefixtures("double_precision")

BATCH, TIME, MEMORY, WIDTH, LAYERS = 2, 6, 4, 8, 3


def cells(**options):
    rngs = nnx.Rngs(0, dropout=1)
    given = dict(heads=2, d_inner=12, memory_length=MEMORY, injection=None) | options
    return [TransformerCell(WIDTH, rngs=rngs, **given) for _ in range(LAYERS)]


def tokens(seed=0):
    return jax.random.randint(jax.random.key(seed), (BATCH, TIME), 0, 11)


def two_segments(stack):
    """(loss, logits, memory, gradients) of a second segment, the first one remembered; the
    gradients of layers are stacked."""
    model = cast(LanguageModel(11, stack, depth=1, rngs=nnx.Rngs(3, dropout=4)))
    memory = model(tokens(1), model.empty_memory(BATCH, jnp.float64)).memory

    def loss(model):
        out = model(tokens(2), memory)
        return (out.logits**2).mean(), (out.logits, out.memory)

    (value, found), grads = nnx.jit(nnx.value_and_grad(loss, has_aux=True))(model)
    grads = nnx.to_pure_dict(grads)["deq"]["cell"]
    if "cells" in grads:
        layers = grads.pop("cells")
        grads["layers"] = jax.tree.map(lambda *x: jnp.stack(x), *(layers[i] for i in layers))
    return value, found, grads


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12), a, b)


@pytest.mark.parametrize(
    "options",
    [dict(norm="pre", dropout=0.2), pytest.param(dict(chunk_size=2), marks=pytest.mark.slow)],
)
def test_a_scan_over_layers_is_the_layers(options):
    """Values, memory and gradients, dropout masks included."""
    same(two_segments(ScannedStack(cells(**options))), two_segments(CellStack(cells(**options))))


@pytest.mark.slow
def test_checkpoints_and_narrow_layers_too():
    same(two_segments(ScannedStack(cells(), checkpoint="all")), two_segments(CellStack(cells())))
    build = lambda kind: kind(cells(), n_in=12, rngs=nnx.Rngs(2))
    same(two_segments(build(NarrowScannedStack)), two_segments(build(NarrowStack)))


def test_new_masks_at_every_call_and_none_in_eval_mode():
    stack = ScannedStack(cells(dropout=0.5))
    given = TransformerInput(jnp.ones((BATCH, TIME, WIDTH)))
    first, second = (stack.inject(given).masks.hidden for _ in range(2))
    assert first.shape == (LAYERS, BATCH, 1, 12) and (first != second).any()
    assert (first[0] != first[1]).any()
    stack.eval()
    assert stack.inject(given).masks.hidden is None


def test_the_program_holds_one_layer():
    """Products in the traced network do not grow with its depth."""

    def products(stack):
        given = TransformerInput(jnp.ones((BATCH, TIME, WIDTH)))
        run = lambda z: stack.output(stack(z, stack.inject(given)))
        return str(jax.make_jaxpr(run)(stack.initial_state(given))).count("dot_general")

    one = [*cells()][:1]
    assert products(ScannedStack(cells())) == products(ScannedStack(one))
    assert products(CellStack(cells())) > 2 * products(CellStack(one))


def test_a_tied_stack_as_a_loop():
    """`DEQ(scan=True)`: one cell applied again and again, values and gradients."""

    def loss_and_grads(scan):
        cell = TrellisCell(4, hidden=6, weight_drop=0.3, rngs=nnx.Rngs(0, dropout=1))
        deq = cast(DEQ(cell, scan=scan))
        x = jax.random.normal(jax.random.key(0), (BATCH, TIME, 4))
        loss = lambda deq: (deq(TransformerInput(x), depth=5).z ** 2).sum()
        value, grads = nnx.jit(nnx.value_and_grad(loss))(deq)
        return value, nnx.to_pure_dict(grads)

    same(loss_and_grads(True), loss_and_grads(False))


def test_names_of_axes_follow_their_arrays():
    stack = ScannedStack(cells())
    kernel = nnx.state(stack, nnx.Param)["layers"]["up"]["kernel"]
    assert kernel.get_metadata("out_sharding") == (None, "embed", "inner")
    mesh: Any = SimpleNamespace(shape=dict(data=1, fsdp=4, tensor=3))
    specs = jax.tree.leaves(parameter_specs(kernel, mesh), is_leaf=lambda x: x is not None)
    assert [tuple(spec) for spec in specs] == [(None, "fsdp", "tensor")]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ScannedStack([]), "at least one cell"),
        (lambda: ScannedStack(cells(injection="qkv")), "injection=None"),
        (lambda: ScannedStack(cells(), checkpoint="sqrt"), "'none' or 'all'"),
        (lambda: ScannedStack([*cells(), *cells(norm="pre")]), "must be alike"),
    ],
)
def test_bad_options(make, said):
    with pytest.raises(ValueError, match=said):
        make()
