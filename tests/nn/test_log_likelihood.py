"""Cross-entropy: against float64, where float32's textbook form has no digit left."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import logsumexp

from deqjax.nn import AdaptiveEmbedding, AdaptiveSoftmax, cross_entropy
from deqjax.nn.log_likelihood import log_softmax


def confident(margin, classes=10, positions=6):
    """float32 logits of random classes, each leading all others of its row by about `margin`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(positions, classes))
    targets = rng.integers(classes, size=positions)
    logits[np.arange(positions), targets] = logits.max(-1) + margin
    return logits.astype(np.float32), targets


def exact(logits, targets):
    """log1p(Σ exp(o_j − o_t)) in float64."""
    logits = np.asarray(logits, np.float64)
    rows = np.arange(len(targets))
    away = logits - logits[rows, targets][:, None]
    away[rows, targets] = -np.inf
    return np.logaddexp(0, logsumexp(away, axis=-1))


@pytest.mark.parametrize("margin", (-40, -3, 0, 3, 12, 16, 27, 60))
def test_losses_from_forty_to_1e_26_in_float32(margin):
    logits, targets = confident(margin)
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact(logits, targets), rtol=1e-5)
    log_p = np.asarray(log_softmax(jnp.asarray(logits)))
    np.testing.assert_allclose(-log_p[np.arange(6), targets], found, rtol=1e-5)


def test_the_mean_of_many_small_losses():
    """What a score is: 8e-8 and less at each of thousands of positions."""
    logits, targets = confident(16.0, positions=4000)
    found = np.asarray(cross_entropy(jnp.asarray(logits), jnp.asarray(targets)), np.float64)
    want = exact(logits, targets)
    assert want.mean() < 4e-7
    np.testing.assert_allclose(found.mean(), want.mean(), rtol=1e-6)


@pytest.mark.slow
def test_gradients_are_softmax_less_the_target_with_all_their_digits():
    logits, targets = confident(16.0)
    loss = lambda x: cross_entropy(x, jnp.asarray(targets)).sum()
    found = jax.grad(loss)(jnp.asarray(logits))
    with jax.enable_x64(True):
        x = jnp.asarray(logits, jnp.float64)
        want = np.array(jax.nn.softmax(x) - jax.nn.one_hot(targets, 10))
    np.testing.assert_allclose(found, want, rtol=1e-5)
    forward = jax.jacfwd(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(forward, want, rtol=1e-5)


def test_log_softmax_normalises_and_has_the_plain_derivative():
    x = jnp.array([[1.0, 3.0, 3.0, -2.0], [0.0, 0.0, 0.0, 0.0]])  # ties
    np.testing.assert_allclose(log_softmax(x), jax.nn.log_softmax(x), rtol=1e-6)
    found, want = (jax.jacrev(f)(x) for f in (log_softmax, jax.nn.log_softmax))
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_edges():
    x = jnp.array([[1.0, 2.0]] * 4)
    found = cross_entropy(x, jnp.array([-1, 0, 1, 2]))
    np.testing.assert_array_equal(jnp.isnan(found), [True, False, False, True])
    one = jnp.array([[3.0]])
    assert float(cross_entropy(one, jnp.array([0]))[0]) == 0
    assert float(jax.grad(lambda x: cross_entropy(x, jnp.array([0])).sum())(one)[0, 0]) == 0
    assert cross_entropy(x.astype(jnp.bfloat16), jnp.zeros(4, int)).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"targets must have shape \(4,\), got \(3,\)"):
        cross_entropy(x, jnp.zeros(3, int))


@pytest.mark.slow
def test_an_adaptive_softmax_has_small_losses_too():
    embedding = AdaptiveEmbedding(12, 4, cutoffs=(5,), rngs=nnx.Rngs(0))
    softmax = AdaptiveSoftmax(embedding, rngs=nnx.Rngs(1))
    softmax.biases[0][...] = jnp.array([0.0, 20.0, 0.0, 0.0, 0.0, 0.0])
    h = 0.1 * jax.random.normal(jax.random.key(0), (3, 4))
    targets = jnp.array([1, 1, 1])
    with jax.enable_x64(True):
        graph, state = nnx.split(softmax)
        twin = nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.float64), state))
        wanted = -twin.log_probs(h.astype(jnp.float64))[jnp.arange(3), targets]
        want = np.asarray(wanted)
    assert 0 < want.max() < 1e-7
    np.testing.assert_allclose(softmax.loss(h, targets), want, rtol=1e-5)
    np.testing.assert_allclose(-softmax.log_probs(h)[:, 1], want, rtol=1e-5)
    forward = softmax.loss(h, targets, forward_mode=True)
    np.testing.assert_allclose(forward, want, rtol=1e-5)
