"""Published weights: there and back, and refusals."""

import jax
import numpy as np
import pytest
from flax import nnx

from deqjax.nn import Recurrent
from deqjax.training import load_weights, save_weights
from deqjax.training.checkpoints import CheckpointError


def model(seed, hidden=4):
    return Recurrent(5, kind="gru", features=3, hidden=hidden, rngs=nnx.Rngs(seed))


def test_there_and_back(tmp_path):
    path, source, target = tmp_path / "weights.npz", model(0), model(1)
    save_weights(path, source)
    load_weights(path, target)
    pairs = zip(*(jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (source, target)), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
    with np.load(path, allow_pickle=False) as file:
        assert "embed/embedding" in file.files


def test_weights_of_another_model_get_a_sentence(tmp_path):
    path = tmp_path / "weights.npz"
    save_weights(path, model(0))
    with pytest.raises(CheckpointError, match=r"is of another model: decode/kernel is \(4, 5\)"):
        load_weights(path, model(0, hidden=6))


@pytest.mark.parametrize("content", [None, b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_no_weights_get_a_sentence(tmp_path, content):
    path = tmp_path / "weights.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_weights(path, model(0))


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{"decode/bias": np.array([print], dtype=object)})
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_weights(path, model(0))
