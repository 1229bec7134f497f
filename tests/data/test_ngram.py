import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqjax.data import KneserNey, bigram_perplexity, unigram_perplexity, unigram_probability

vectors = st.lists(st.integers(0, 5), min_size=2, max_size=80).map(np.array)


@settings(max_examples=50)
@given(vectors, st.integers(6, 9))
def test_probabilities_are_positive_and_sum_to_one(train, size):
    unigram = unigram_probability(train, size)
    assert (unigram > 0).all()
    np.testing.assert_allclose(unigram.sum(), 1, rtol=1e-12)
    v, w = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    bigram = KneserNey.fit(train, size).probability(v, w)
    assert (bigram > 0).all()
    np.testing.assert_allclose(bigram.sum(axis=1), 1, rtol=1e-12)


@settings(max_examples=50)
@given(vectors, vectors)
def test_every_heldout_token_is_scored(train, heldout):
    unigram, model = unigram_probability(train, 6), KneserNey.fit(train, 6)
    before = [train[-1], *heldout[:-1]]
    expected = [-np.log(unigram[w]) for w in heldout]
    np.testing.assert_allclose(unigram_perplexity(train, heldout, 6), np.exp(np.mean(expected)))
    pairs = zip(before, heldout, strict=True)
    expected = [-np.log(model.probability(np.array(v), np.array(w))) for v, w in pairs]
    np.testing.assert_allclose(bigram_perplexity(train, heldout, 6), np.exp(np.mean(expected)))


def test_kneser_ney_by_hand():
    train = np.array([0, 1, 0, 1, 0, 1, 2, 0, 2, 0, 3, 1, 1])
    counts = {
        (0, 1): 3,
        (1, 0): 2,
        (1, 2): 1,
        (2, 0): 2,
        (0, 2): 1,
        (0, 3): 1,
        (3, 1): 1,
        (1, 1): 1,
    }
    # Counts of counts 5, 2, 1, 0: Y = 5/9. D(3) = 3 would leave a count of 3 nothing, hence 1/2.
    D = {1: 5 / 9, 2: 7 / 6, 3: 1 / 2}
    # 2, 3, 2, 1 different tokens stand before 0, 1, 2, 3; counts of these 1, 2, 1, 0: Y = 1/5.
    contexts, E = [2, 3, 2, 1], {1: 1 / 5, 2: 17 / 10, 3: 1 / 2}
    held = sum(E[c] for c in contexts)
    q = [(c - E[c]) / 8 + held / 8 / 4 for c in contexts]
    model = KneserNey.fit(train, 4)
    for v in range(4):
        total = sum(c for (a, _), c in counts.items() if a == v)
        gamma = sum(D[c] for (a, _), c in counts.items() if a == v) / total
        for w in range(4):
            c = counts.get((v, w), 0)
            expected = (c - D[c] if c else 0) / total + gamma * q[w]
            np.testing.assert_allclose(model.probability(np.array(v), np.array(w)), expected)


def test_exact_unigram():
    heldout = np.array([0, 2])
    assert unigram_perplexity(np.array([0, 0, 1]), heldout, 3) == pytest.approx(np.sqrt(2 * 6))
    assert unigram_perplexity(np.array([0, 0, 1]), heldout, 3, k=1e9) == pytest.approx(3)


def test_a_first_order_chain_is_learnt_to_its_entropy():
    generator = np.random.default_rng(0)
    move = generator.choice([1, 2], p=[0.9, 0.1], size=20_000)
    ids = np.cumsum(move) % 10
    entropy = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    bigram = bigram_perplexity(ids[:15_000], ids[15_000:], 10)
    assert abs(np.log(bigram) - entropy) < 0.02
    assert unigram_perplexity(ids[:15_000], ids[15_000:], 10) == pytest.approx(10, rel=0.01)


def test_errors_are_sentences():
    ok = np.array([0, 1])
    with pytest.raises(TypeError, match="train must be an integer vector, got float64"):
        bigram_perplexity(np.zeros(3), ok, 2)
    with pytest.raises(ValueError, match="heldout is empty"):
        unigram_perplexity(ok, np.zeros(0, int), 2)
    with pytest.raises(ValueError, match="heldout has ids from 0 to 5, outside a vocabulary of 2"):
        bigram_perplexity(ok, np.array([0, 5]), 2)
    with pytest.raises(ValueError, match="at least two tokens"):
        bigram_perplexity(ok[:1], ok, 2)
    with pytest.raises(ValueError, match="k must be positive"):
        unigram_perplexity(ok, ok, 2, k=0)
