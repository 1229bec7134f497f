"""Scoring and sampling of a small language model."""

import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.data import Stream
from deqjax.nn import LanguageCell
from deqjax.training import (
    LanguageModelling,
    PenaltyOptions,
    Phase,
    perplexity,
    sample,
)

sys.path.insert(0, str(Path(__file__).parent))
import tiny_run


@pytest.fixture(scope="module")
def model():
    model = tiny_run.new_model(nnx.Rngs(0))
    model.eval()
    return model


def stream(**changes):
    ids = np.random.default_rng(1).integers(0, tiny_run.VOCABULARY, 30).astype(np.int32)
    return Stream(ids, **(dict(batch_size=2, segment=4, start_id=0) | changes))


def test_perplexity_scores_every_token_with_memory(model):
    score = perplexity(model, stream())
    assert score.tokens == 30
    memory, nats = model.empty_memory(2), 0.0
    for batch in stream():
        out = model(batch.inputs, memory)
        memory = out.memory
        log_p = jax.nn.log_softmax(out.logits)
        picked = jnp.take_along_axis(log_p, batch.targets[..., None], -1)[..., 0]
        nats -= float(jnp.sum(picked * batch.weights))
    assert score.perplexity == pytest.approx(math.exp(nats / 30), rel=1e-4)


def test_a_new_model_is_about_as_good_as_guessing(model):
    assert 0.3 < perplexity(model, stream()).perplexity / tiny_run.VOCABULARY < 3


def test_samples_are_tokens_and_depend_on_the_seed_alone(model):
    prompt = np.array([1, 2, 3], np.int32)
    one, again = (sample(model, prompt, 12, seed=4) for _ in range(2))
    other = sample(model, prompt, 12, seed=5)
    assert one.shape == (12,) and one.min() >= 0 and one.max() < tiny_run.VOCABULARY
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.slow
def test_a_cold_sample_is_the_most_likely_token(model):
    prompt = np.array([1, 2, 3], np.int32)
    drawn = sample(model, prompt, 1, temperature=1e-4)
    memory = model(prompt[None, :-1], model.cell.empty_memory(1)).memory
    assert drawn[0] == model(prompt[None, -1:], memory).logits[0, -1].argmax()


@pytest.mark.slow
def test_warm_start_begins_where_the_last_segment_ended(model):
    task = tiny_run.task()
    batch, carry = task.batch(0), task.carry()
    assert float(jnp.abs(carry.z).max()) == 0
    _, (first, metrics) = task.loss(model, carry, batch, step=0, phase=Phase(), probe=None)
    cold = metrics["solve"].steps
    again = carry._replace(z=first.z)
    _, (_, metrics) = task.loss(model, again, batch, step=0, phase=Phase(), probe=None)
    assert (metrics["solve"].steps < cold).all()


def losses(model, steps=range(1), **penalties):
    """Of a task with those penalties on its first batch, at those training steps; and metrics."""
    base = tiny_run.task()
    task = LanguageModelling(
        base.new_model, base.train, base.valid, penalties=PenaltyOptions(**penalties)
    )
    carry, batch = task.carry(), task.batch(0)
    run = jax.jit(
        lambda step: task.loss(
            nnx.merge(*nnx.split(model)), carry, batch, step=step, phase=Phase(), probe=None
        )
    )
    found = [run(step) for step in steps]
    return [float(loss) for loss, _ in found], [metrics for _, (_, metrics) in found]


def test_the_jacobian_penalty_is_paid_at_a_share_of_the_steps(model):
    (plain,), _ = losses(model)
    paid, metrics = losses(model, range(60), jacobian=0.5, jacobian_share=0.4)
    values = np.array([float(m["jacobian"]) for m in metrics])
    assert 0.2 < (values > 0).mean() < 0.6 and values.min() == 0
    np.testing.assert_allclose(np.array(paid) - plain, 0.5 * values, atol=1e-5)


@pytest.mark.slow
def test_the_jacobian_penalty_is_that_of_the_cell_at_the_equilibrium(model):
    task = tiny_run.task()
    carry, batch = task.carry(), task.batch(0)
    out = model(batch.inputs, carry.memory, keep_context=True)
    f = lambda z: model.cell(z, out.context)

    def of_one(i):
        one = lambda z: f(out.solution.z.at[i].set(z))[i]
        jacobian = jax.jacfwd(one)(out.solution.z[i])
        return jnp.sum(jacobian**2) / out.solution.z[i].size

    exact = np.mean([float(of_one(i)) for i in range(len(out.solution.z))])
    _, metrics = losses(model, range(300), jacobian=1.0, jacobian_share=1.0)
    assert np.mean([float(m["jacobian"]) for m in metrics]) == pytest.approx(exact, rel=0.1)


def test_activation_penalties(model):
    task = tiny_run.task()
    out = model(task.batch(0).inputs, task.carry().memory)
    h = np.asarray(out.hidden)
    (plain,), _ = losses(model)
    (paid,), metrics = losses(model, activation=2.0, temporal=0.5)
    expected = 2.0 * np.mean(h**2) + 0.5 * np.mean((h[:, 1:] - h[:, :-1]) ** 2)
    assert paid - plain == pytest.approx(expected, rel=1e-4)
    assert float(metrics[0]["nats"]) == pytest.approx(plain, rel=1e-5)
    _, after = task.after(task.carry(), dict(metrics[0]), Phase())
    assert float(after["perplexity"]) == pytest.approx(math.exp(plain), rel=1e-4)


def test_pressure_rises_while_solves_fail_and_falls_afterwards():
    from deqjax.training.language_modelling import Pressure

    pressure = Pressure(jnp.ones(()), jnp.ones(()))
    seen = []
    for converged in [1.0] * 20 + [0.0] * 60 + [1.0] * 600:
        pressure = pressure.after(jnp.float32(converged))
        seen.append(float(pressure.factor))
    assert max(seen[:20]) == 1 and seen[79] > 2 and seen[-1] == 1


def test_a_task_that_tightens_keeps_its_pressure_in_the_carry(model):
    base = tiny_run.task()
    penalties = PenaltyOptions(jacobian=0.1, tighten=True)
    task = LanguageModelling(base.new_model, base.train, base.valid, penalties=penalties)
    carry = task.carry()
    options = dict(step=0, phase=Phase(fewer_steps=7), probe=None)
    _, (new, metrics) = task.loss(model, carry, task.batch(0), **options)
    share = {"nats": metrics["nats"], "converged": metrics["solve"].converged.mean()}
    new, metrics = task.after(new, share, Phase(fewer_steps=7))
    assert float(new.pressure.share) == pytest.approx(0.98) and "pressure" in metrics
    with pytest.raises(ValueError, match="--tighten"):
        PenaltyOptions(tighten=True).check()
    with pytest.raises(ValueError, match="--jacobian-share"):
        PenaltyOptions(jacobian_share=0.0).check()


def test_a_learned_start_is_fitted_to_the_equilibrium():
    def new_model(rngs):
        cell = tiny_run.TransformerCell(8, heads=2, d_inner=8, memory_length=4, rngs=rngs)
        return tiny_run.LanguageModel(11, cell, learned_start=True, rngs=rngs, rtol=1e-3)

    base = tiny_run.task()
    task = LanguageModelling(new_model, base.train, base.valid)
    graph, params, rest = nnx.split(new_model(nnx.Rngs(0)), nnx.Param, ...)
    carry, batch = task.carry(), task.batch(0)

    @jax.jit
    def step(params):
        def loss(params):
            options = dict(step=0, phase=Phase(), probe=None)
            loss, (_, metrics) = task.loss(nnx.merge(graph, params, rest), carry, batch, **options)
            return loss, metrics["start"]

        (_, distance), grads = jax.value_and_grad(loss, has_aux=True)(params)
        # The rest stands still, so that the target does.
        start = jax.tree.map(lambda p, g: p - 100.0 * g, params["start"], grads["start"])
        return nnx.State({**params, "start": start}), distance

    first = step(params)[1]
    for _ in range(60):
        params, distance = step(params)
    assert distance < 0.7 * first


def test_a_stack_reports_no_solves():
    def new_model(rngs):
        cell = tiny_run.TransformerCell(8, heads=2, d_inner=8, memory_length=4, rngs=rngs)
        return tiny_run.LanguageModel(11, cell, depth=3, rngs=rngs)

    base = tiny_run.task()
    task = LanguageModelling(new_model, base.train, base.valid)
    assert not task.solves and task.probe(Phase(), 2) is None
    model = new_model(nnx.Rngs(0))
    _, (_, metrics) = task.loss(
        model, task.carry(), task.batch(0), step=0, phase=Phase(), probe=None
    )
    assert "solve" not in metrics
    assert set(task.evaluate(model)) == {"valid_perplexity", "valid_loss"}
    with pytest.raises(ValueError, match="warm start"):
        LanguageModelling(new_model, base.train, base.valid, warm_start=True).carry()


def readers():
    """One model of every kind of memory, with a context that holds the whole text."""
    from deqjax.nn import CellStack, LanguageModel, LSTMLanguageModel, TransformerCell, TrellisCell

    rngs, tight = nnx.Rngs(0), dict(rtol=1e-6, max_steps=200)
    block = dict(heads=2, d_inner=8, memory_length=30, rngs=rngs)
    layers = [TransformerCell(8, **block, injection=None) for _ in range(2)]
    trellis = TrellisCell(8, hidden=8, memory_length=1, rngs=rngs)
    return {
        "deq-transformer": LanguageModel(11, TransformerCell(8, **block), rngs=rngs, **tight),
        "deq-trellisnet": LanguageModel(11, trellis, rngs=rngs, **tight),
        "transformer-xl": LanguageModel(11, CellStack(layers), depth=1, rngs=rngs),
        "lstm": LSTMLanguageModel(11, width=8, hidden=8, layers=2, rngs=rngs),
    }


@pytest.mark.parametrize("kind", ["deq-transformer", "deq-trellisnet", "transformer-xl", "lstm"])
def test_the_score_depends_neither_on_segments_nor_on_other_rows(kind):
    """To 1e-5 in nats a token, at a solver tolerance of 1e-6."""
    model = readers()[kind]
    model.eval()
    ids = np.random.default_rng(1).integers(0, 11, 30).astype(np.int32)
    whole = perplexity(model, Stream(ids, 1, 30, 0)).nats
    for segment in (5, 12):
        assert perplexity(model, Stream(ids, 1, segment, 0)).nats == pytest.approx(whole, abs=3e-4)
    halves = (Stream(ids[:15], 1, 5, 0), Stream(ids[15:], 1, 5, int(ids[14])))
    apart = sum(perplexity(model, half).nats for half in halves)
    assert perplexity(model, Stream(ids, 2, 5, 0)).nats == pytest.approx(apart, abs=3e-4)


@pytest.mark.parametrize("kind", ["deq-transformer", "deq-trellisnet", "transformer-xl"])
def test_the_cells_of_this_library_follow_the_protocol(kind):
    assert isinstance(readers()[kind].cell, LanguageCell)


def test_a_cell_that_lacks_something_is_told_what():
    class Half(nnx.Module):
        n_in = d = 4
        memory_length = 0

        def inject(self, given):
            return given.x

    base = tiny_run.task()
    new_model = lambda rngs: tiny_run.LanguageModel(11, Half(), rngs=rngs)
    with pytest.raises(TypeError, match=r"Half is no cell .* lacks empty_memory, initial_state"):
        LanguageModelling(new_model, base.train, base.valid).carry()
