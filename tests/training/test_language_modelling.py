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
from deqjax.training import perplexity, sample

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
    memory, nats = model.cell.empty_memory(2), 0.0
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


def test_warm_start_begins_where_the_last_segment_ended(model):
    task = tiny_run.task()
    batch, carry = task.batch(0), task.carry()
    assert float(jnp.abs(carry.z).max()) == 0
    _, (first, metrics) = task.loss(model, carry, batch, depth=None, probe=None)
    cold = metrics["solve"].steps
    again = carry._replace(z=first.z)
    _, (_, metrics) = task.loss(model, again, batch, depth=None, probe=None)
    assert (metrics["solve"].steps < cold).all()
