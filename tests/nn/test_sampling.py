"""The next token: which are left, and how often each is drawn."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqjax.nn import Sampling

P = np.array([0.05, 0.4, 0.1, 0.3, 0.15], np.float32)
LOGITS = jnp.log(P)


def left(**options):
    return np.flatnonzero(np.isfinite(Sampling(**options).left(LOGITS))).tolist()


def test_what_is_left():
    assert left() == [0, 1, 2, 3, 4]
    assert left(top_k=2) == [1, 3]
    assert left(top_k=9) == [0, 1, 2, 3, 4]
    assert left(top_p=0.6) == [1, 3]
    assert left(top_p=0.75) == [1, 3, 4]
    assert left(top_p=1e-9) == [1]
    assert left(top_p=1.0) == [0, 1, 2, 3, 4]
    # Of the two that top_k leaves, the first has four sevenths.
    assert left(top_k=2, top_p=0.5) == [1]


def test_no_temperature_takes_the_most_likely():
    keys = jax.random.split(jax.random.key(0), 2)
    two = jnp.stack([LOGITS, LOGITS[::-1]])
    assert Sampling(temperature=0)(two, keys).tolist() == [1, 3]


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_come_as_often_as_they_should(temperature):
    n = 20_000
    draws = Sampling(temperature, top_k=3)(
        jnp.tile(LOGITS, (n, 1)), jax.random.split(jax.random.key(1), n)
    )
    wanted = np.where(P >= 0.15, P, 0) ** (1 / temperature)
    seen = np.bincount(draws, minlength=5) / n
    np.testing.assert_allclose(seen, wanted / wanted.sum(), atol=0.015)


@pytest.mark.parametrize(
    "options", [dict(temperature=-1.0), dict(temperature=math.nan), dict(top_k=0), dict(top_p=0)]
)
def test_what_cannot_be_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Sampling(**options)
