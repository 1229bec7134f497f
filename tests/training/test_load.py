"""A run's model from its folder alone."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import Decoder, LanguageModel, LSTMLanguageModel, Sampling, TransformerCell
from deqjax.training import (
    OptionError,
    architecture,
    fit,
    from_architecture,
    load,
    sample,
)
from deqjax.training.checkpoints import CheckpointError

sys.path.insert(0, str(Path(__file__).parent))
import tiny_run


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, tiny_run.saved(folder)


@pytest.fixture
def run(saved, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(saved[0], tmp_path / "run"))


def damage(checkpoint: Path) -> None:
    file = max((f for f in checkpoint.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def same(one, other) -> bool:
    pairs = zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (one, other)), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def test_the_model_and_what_it_needs_come_back(saved):
    loaded = load(saved[0])
    assert same(loaded.model, saved[1]) and loaded.step == 6
    assert loaded.vocabulary == tiny_run.WORDS and loaded.options["learning_rate"] == 3e-3
    assert loaded.model.drop_in.deterministic


@pytest.mark.slow
def test_a_trained_model_draws_the_tokens_of_the_memory_carried(tmp_path):
    given = tiny_run.options(tmp_path, steps=6, eval_every=2, stack_steps=0, stack_jitter=0)
    trained = fit(tiny_run.task(), given, given, name="run", files=tiny_run.FILES)
    loaded = load(trained.directory, "best")
    assert loaded.step in (2, 4, 6)
    loaded = load(trained.directory)
    assert same(loaded.model, trained.model)
    prompt = np.array([1, 2, 3], np.int32)
    kept = Decoder(loaded.model, prompt, Sampling(temperature=0)).draw(12)
    today = sample(trained.model, prompt, 12, temperature=1e-6)
    np.testing.assert_array_equal(kept.tokens[0], today)


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(run):
    damage(run / "checkpoints" / "step_000000006")
    with pytest.warns(RuntimeWarning, match="skipped the damaged checkpoint.*step_000000006"):
        assert load(run).step == 4
    for step in (2, 4):
        damage(run / "checkpoints" / f"step_{step:09d}")
    with (
        pytest.warns(RuntimeWarning, match="damaged"),
        pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"),
    ):
        load(run)


def test_the_best_is_the_one_with_the_lowest_loss(run):
    assert load(run, "best").step == 4


def test_what_cannot_be_loaded_is_refused_in_a_sentence(run):
    with pytest.raises(OptionError, match="there is no run at"):
        load(run / "nothing")
    with pytest.raises(OptionError, match="which must be"):
        load(run, "newest")
    shutil.move(run / "checkpoints", run / "elsewhere")
    with pytest.raises(OptionError, match="has no checkpoint yet"):
        load(run)
    shutil.move(run / "elsewhere", run / "checkpoints")
    described = json.loads((run / "model.json").read_text())
    for changed, says in (
        ({"kind": "os.system"}, "not a known kind"),
        ({"cell": {**described["cell"], "heads": 3}}, "multiple of heads"),
        ({"cell": {**described["cell"], "d_inner": 9}}, "another model|does not fit"),
        ({"format": "x"}, "its format is not"),
    ):
        (run / "model.json").write_text(json.dumps(described | changed))
        with pytest.raises((OptionError, CheckpointError), match=says):
            load(run)
    (run / "model.json").write_text("{")
    with pytest.raises(OptionError, match="describes no model"):
        load(run)
    (run / "model.json").unlink()
    with pytest.raises(OptionError, match=r"another program.*load\(build="):
        load(run)
    assert load(run, build=tiny_run.new_model).step == 6
    (run / "vocabulary.json").write_text("{}")
    with pytest.raises(OptionError, match="not a vocabulary"):
        load(run, build=tiny_run.new_model)
    (run / "config.json").unlink()
    with pytest.raises(OptionError, match=r"it has no config\.json"):
        load(run)


def everything():
    """A model of every kind of part."""
    import jax.numpy as jnp

    from deqjax import Anderson, Broyden, Implicit, WarmStart
    from deqjax.nn import (
        AdaptiveEmbedding,
        AdaptiveSoftmax,
        CellStack,
        NarrowScannedStack,
        NarrowStack,
        Prelude,
        ScannedStack,
        TrellisCell,
    )

    rngs = nnx.Rngs(0)
    cell = lambda d=8, **options: TransformerCell(d, heads=2, d_inner=8, rngs=rngs, **options)
    layers = lambda d=8: [cell(d, injection=None) for _ in range(2)]
    embedding = AdaptiveEmbedding(20, 8, cutoffs=(5, 9), divisor=2, rngs=rngs)
    softmax = AdaptiveSoftmax(embedding, tie_projections=(False, True, True), rngs=rngs)
    solver = WarmStart(Anderson(memory=4, history_dtype="bfloat16"), start="picard")
    stacks = CellStack(layers(), final_norm=False), CellStack([cell(injection="state")])
    return [
        LanguageModel(20, Prelude(*stacks), softmax=softmax, rngs=rngs, dtype=jnp.bfloat16),
        LanguageModel(
            *(20, cell(weight_norm=True, norm="pre", dropout=0.1, chunk_size=3)),
            **dict(dropout=(0.1, 0.2), dropout_words=0.1, learned_start=True, solver=solver),
            **dict(adjoint=Implicit(solver=Broyden(memory=7), max_gain=5.0), rngs=rngs),
        ),
        LanguageModel(20, TrellisCell(8, hidden=9, weight_drop=0.2, rngs=rngs), rngs=rngs),
        LanguageModel(20, ScannedStack(layers(), checkpoint="all"), depth=1, rngs=rngs),
        LanguageModel(20, NarrowStack(layers(4), n_in=8, rngs=rngs), depth=1, rngs=rngs),
        LanguageModel(20, NarrowScannedStack(layers(4), n_in=8, rngs=rngs), depth=1, rngs=rngs),
        LSTMLanguageModel(20, width=4, hidden=6, layers=3, weight_drop=0.5, rngs=rngs),
    ]


@pytest.mark.parametrize("index", range(7))
def test_every_kind_of_model_is_described_and_built_again(index):
    make = lambda: everything()[index]
    model = nnx.eval_shape(make)
    described = architecture(model)
    assert json.loads(json.dumps(described)) == described
    again = nnx.eval_shape(lambda: from_architecture(described, nnx.Rngs(0)))
    assert architecture(again) == described
    shapes = (jax.tree_util.tree_leaves_with_path(nnx.state(m, nnx.Param)) for m in (model, again))
    for (one, x), (other, y) in zip(*shapes, strict=True):
        assert one == other and x.shape == y.shape
    if model.solves:
        assert again.deq.solver == model.deq.solver and again.deq.adjoint == model.deq.adjoint


def test_a_part_of_ones_own_is_refused():
    class Own(TransformerCell):
        pass

    model = LanguageModel(9, Own(4, heads=1, d_inner=4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"Own is not a part.*load\(build="):
        architecture(model)
