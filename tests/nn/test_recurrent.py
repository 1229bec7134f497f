"""The recurrent baselines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import Recurrent


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_outputs_depend_on_the_past_alone(kind):
    model = Recurrent(5, kind=kind, features=3, hidden=4, rngs=nnx.Rngs(0))
    tokens = jnp.array([[0, 1, 2, 3, 4, 0]])
    logits = model(tokens).logits
    changed = model(tokens.at[0, 3].set(1)).logits
    assert logits.shape == (1, 6, 5)
    np.testing.assert_array_equal(logits[:, :3], changed[:, :3])
    assert (np.abs(logits - changed)[0, 3:].max(-1) > 0).all()


def test_sizes_are_those_of_the_cells():
    def count(kind):
        model = Recurrent(10, kind=kind, features=8, hidden=16, rngs=nnx.Rngs(0))
        return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))

    outside = 10 * 8 + 16 * 10 + 10
    assert count("lstm") == outside + 4 * (16 * (8 + 16) + 16)
    assert count("gru") == outside + 3 * (16 * (8 + 16) + 16) + 16 - 16


def test_an_unknown_kind_gets_a_sentence():
    with pytest.raises(ValueError, match="kind must be one of lstm, gru; got 'rnn'"):
        Recurrent(10, kind="rnn", features=8, hidden=16, rngs=nnx.Rngs(0))  # type: ignore[arg-type]
