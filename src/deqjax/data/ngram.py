"""Count-based baselines: what a neural language model has to beat.

All counts come from `train`. The first held-out token is scored after the last token of `train`,
so every held-out token is scored; logarithms are taken in float64.
"""

from dataclasses import dataclass

import numpy as np


def unigram_probability(train: np.ndarray, vocabulary_size: int, k: float = 1.0) -> np.ndarray:
    """Add-k unigram distribution, float64 `(V,)`: `p(w) = (c(w) + k) / (N + kV)`.

    Raises `TypeError` unless `train` is an integer vector, `ValueError` when it is empty, has ids
    outside `0 <= id < V`, or `k <= 0`.

    >>> unigram_probability(np.array([0, 0, 1]), vocabulary_size=3)
    array([0.5       , 0.33333333, 0.16666667])
    """
    if not k > 0:
        raise ValueError(f"k must be positive, so that unseen tokens have a probability, got {k}")
    _check(train, vocabulary_size, "train")
    counts = np.bincount(train, minlength=vocabulary_size) + float(k)
    return counts / counts.sum()


def unigram_perplexity(
    train: np.ndarray, heldout: np.ndarray, vocabulary_size: int, k: float = 1.0
) -> float:
    """`exp` of the mean negative log-probability of `heldout` `(m,)` under the add-k unigrams of
    `train` `(n,)`. Raises as `unigram_probability`, for both arrays."""
    _check(heldout, vocabulary_size, "heldout")
    probability = unigram_probability(train, vocabulary_size, k)
    return float(np.exp(-np.log(probability[heldout]).mean()))


@dataclass(frozen=True, eq=False)
class KneserNey:
    """Interpolated modified Kneser–Ney bigrams (Chen and Goodman, 1999). `KneserNey.fit` makes one.

        p(w | v) = (c(v, w) − D(c(v, w))) / c(v)  +  γ(v) q(w)
        γ(v)     = Σ_w D(c(v, w)) / c(v),  and 1 for a v never seen before another token
        q(w)     = (n(w) − D'(n(w))) / n  +  γ' / V

    `n(w)` counts the different tokens seen before `w`, and `n` their sum: how many contexts a word
    has met says better than its frequency how likely it is in a new one. `D` takes three values,
    for counts of 1, 2 and 3 or more, in closed form from the counts of counts; `D'` is its
    counterpart for `n(w)`. For every `v`, `p(· | v)` is positive and sums to one.
    """

    vocabulary_size: int
    pairs: np.ndarray  # int64 (P,), sorted: v V + w of every bigram seen
    seen: np.ndarray  # float64 (P,): the first term of p
    backoff: np.ndarray  # float64 (V,): γ
    lower: np.ndarray  # float64 (V,): q

    @classmethod
    def fit(cls, train: np.ndarray, vocabulary_size: int) -> "KneserNey":
        """Counts `train`, an integer vector of at least two ids `0 <= id < V`.

        Raises `TypeError` or `ValueError` as `unigram_probability`."""
        _check(train, vocabulary_size, "train")
        if len(train) < 2:
            raise ValueError("train must have at least two tokens to have a bigram")
        V = vocabulary_size
        pairs, counts = np.unique(train[:-1].astype(np.int64) * V + train[1:], return_counts=True)
        v, w = pairs // V, pairs % V

        contexts = np.bincount(w, minlength=V)
        discount = _discounts(contexts)[np.minimum(contexts, 3)]
        lower = (contexts - discount) / len(pairs) + discount.sum() / len(pairs) / V

        total = np.bincount(v, counts, minlength=V)
        discount = _discounts(counts)[np.minimum(counts, 3)]
        held_back = np.bincount(v, discount, minlength=V)
        backoff = np.divide(held_back, total, out=np.ones(V), where=total > 0)
        return cls(V, pairs, (counts - discount) / total[v], backoff, lower)

    def probability(self, previous: np.ndarray, current: np.ndarray) -> np.ndarray:
        """`p(current | previous)`, float64, of two broadcastable integer arrays of ids."""
        wanted = np.asarray(previous, np.int64) * self.vocabulary_size + current
        place = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        first = np.where(self.pairs[place] == wanted, self.seen[place], 0.0)
        return first + self.backoff[previous] * self.lower[current]


def bigram_perplexity(train: np.ndarray, heldout: np.ndarray, vocabulary_size: int) -> float:
    """`exp` of the mean negative log-probability of `heldout` `(m,)` under the modified Kneser–Ney
    bigrams of `train` `(n,)`: see `KneserNey`. Raises as `KneserNey.fit`, for both arrays.

    >>> train = np.tile(np.arange(3), 100)
    >>> bool(bigram_perplexity(train, train[:30], 3) < 1.05 < unigram_perplexity(train, train, 3))
    True
    """
    _check(heldout, vocabulary_size, "heldout")
    model = KneserNey.fit(train, vocabulary_size)
    previous = np.concatenate([train[-1:], heldout[:-1]])
    return float(np.exp(-np.log(model.probability(previous, heldout)).mean()))


def _discounts(counts: np.ndarray) -> np.ndarray:
    """`D(c)` for c = 0, 1, 2, 3+: `D(c) = c − (c + 1) Y n_{c+1} / n_c`, `Y = n₁ / (n₁ + 2 n₂)`,
    with `n_c` the number of entries of `counts` equal to `c`."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    discount = np.zeros(4)
    Y = n[1] / (n[1] + 2 * n[2]) if n[1] else 0.5
    for c in (1, 2, 3):
        # Small or dense counts leave n_c empty or the estimate outside (0, c): then 1/2 of a count
        # is held back, which keeps every probability positive and the sum one.
        estimate = c - (c + 1) * Y * n[c + 1] / n[c] if n[c] else 0.5
        discount[c] = estimate if 0 < estimate < c else 0.5
    return discount


def _check(ids: np.ndarray, vocabulary_size: int, name: str) -> None:
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{name} must be an integer vector, got {ids.dtype} of shape {ids.shape}")
    if not len(ids):
        raise ValueError(f"{name} is empty")
    if ids.min() < 0 or ids.max() >= vocabulary_size:
        raise ValueError(
            f"{name} has ids from {ids.min()} to {ids.max()}, outside a vocabulary of "
            f"{vocabulary_size}"
        )
