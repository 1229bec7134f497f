"""The paper's full-size models: their sizes, and that small ones of the same build run."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.full_size import CONFIGS, build, named

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
        pytest.param("wt103-transformer-small-explicit", marks=pytest.mark.slow),
        "wt103-trellisnet-checkpointed",
        pytest.param("ptb-trellisnet", marks=pytest.mark.slow),
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
