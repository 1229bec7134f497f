"""The paper's full-size models: their sizes, and that small ones of the same build run."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from deqjax import Anderson
from deqjax.nn import DEQ, TransformerInput
from deqjax.training.configs import CONFIGS, NarrowStack, Repeated, build, named
from experiments.full_size import measure

EQUILIBRIA = (
    "wt103-transformer-small",
    "wt103-transformer-medium",
    "wt103-transformer-medium-adaptive",
    "wt103-trellisnet",
    "ptb-trellisnet",
)


def shrunken(name):
    """The same kind of model, small."""
    config = named(name)
    transformer = config.kind == "transformer"
    narrow = config.d != config.n_in
    return replace(
        config,
        vocabulary=40,
        n_in=12 if transformer else 5,
        d=6 if transformer and narrow else 12,
        heads=2,
        inner=16,
        layers=config.layers and (4 if config.tied else 2),
        d_embed=config.d_embed and 8,
        cutoffs=config.cutoffs and (10, 20),
        memory=min(config.memory, 4),
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_as_many_parameters_as_in_the_paper(name):
    config = CONFIGS[name]
    total, body = config.count()
    assert total / 1e6 == pytest.approx(config.published.total, rel=0.02)
    if config.published.body is not None:
        assert body / 1e6 == pytest.approx(config.published.body, rel=0.02)
    # What lies outside of the body is one row for each word, and a bias.
    assert total - body > config.vocabulary * 100


def test_every_equilibrium_has_its_explicit_networks():
    assert {name for name, config in CONFIGS.items() if config.solves} == set(EQUILIBRIA)
    for name in EQUILIBRIA:
        assert named(name).explicit
        for other in named(name).explicit:
            assert not named(other).solves and other.startswith(name)
    assert sum(len(named(name).explicit) for name in EQUILIBRIA) + len(EQUILIBRIA) == len(CONFIGS)


def test_an_unknown_name_gets_a_sentence():
    with pytest.raises(ValueError, match="did you mean 'wt103-trellisnet'"):
        build("wt103-trelisnet", nnx.Rngs(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_in_full_size_it_goes_from_tokens_to_losses(name):
    """Traced and not run."""
    config = CONFIGS[name]
    tokens = jax.ShapeDtypeStruct((2, config.segment), np.int32)

    def run(tokens):
        model = build(name, nnx.Rngs(0, dropout=1), max_steps=30)
        assert model.solves == config.solves
        out = model(tokens, model.empty_memory(2), targets=tokens)
        return out.nats, out.memory

    nats, memory = jax.eval_shape(run, tokens)
    assert nats.shape == (2, config.segment)
    assert all(leaf.shape[:2] == (2, config.memory) for leaf in jax.tree.leaves(memory))


# One for each way to build a model; what these are made of has its tests elsewhere.
@pytest.mark.parametrize(
    "name",
    [
        "wt103-transformer-medium-adaptive",
        "wt103-transformer-small-explicit",
        "ptb-trellisnet",
    ],
)
def test_a_small_one_runs(name):
    config = shrunken(name)
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, (2, 6))

    @jax.jit
    def run():
        options = dict(solver="picard", max_steps=5) if config.solves else {}
        model = config.build(nnx.Rngs(0, dropout=1), **options)
        return model(tokens, model.empty_memory(2)).logits

    logits = run()
    assert logits.shape == (2, 6, config.vocabulary) and np.isfinite(logits).all()


def test_with_checkpoints_it_is_still_the_cell_again_and_again():
    config = replace(shrunken("wt103-trellisnet-checkpointed"), dropout=0.0)
    x = np.random.default_rng(1).normal(size=(2, 6, config.n_in)).astype(np.float32)
    given = TransformerInput(x)

    @jax.jit
    def gradients():
        repeated = config.cell(nnx.Rngs(0))
        assert isinstance(repeated, Repeated) and (repeated.times, repeated.checkpoint) == (
            4,
            "sqrt",
        )

        def gradient(cell, depth):
            return nnx.grad(lambda cell: (DEQ(cell)(given, depth=depth).z ** 2).sum())(cell)

        return gradient(repeated, 1)["cell"], gradient(repeated.cell, 4)

    for a, b in zip(*map(jax.tree.leaves, gradients()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.abs(b).max() > 1e-3


def test_narrow_layers_project_in_and_out():
    x = np.random.default_rng(1).normal(size=(2, 6, 12)).astype(np.float32)

    @jax.jit
    def both():
        stack = shrunken("wt103-transformer-small-explicit").cell(nnx.Rngs(0, dropout=1))
        assert isinstance(stack, NarrowStack) and (stack.n_in, stack.d) == (12, 6)
        stack.eval()
        z = x @ stack.projection[...]
        for cell in stack.cells:
            z = cell(z, cell.inject(TransformerInput(z)))
        given = TransformerInput(x)
        found = stack.output(stack(stack.initial_state(given), stack.inject(given)))
        return found, z @ stack.projection[...].T

    found, want = both()
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_equilibrium_takes_less_memory_than_the_layers():
    device = jax.devices("cpu")[0]
    small = [
        replace(named(name), n_in=32, d=32, heads=2, inner=64)
        for name in ("wt103-transformer-small", "wt103-transformer-small-tied")
    ]
    deq, tied = (
        measure(config, Anderson() if config.solves else None, device, 4, 32) for config in small
    )
    assert deq.parameters == tied.parameters > 0
    assert 0 < deq.temporary < 0.5 * tied.temporary
