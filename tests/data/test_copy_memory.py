import numpy as np
import pytest

from deqjax.data import copy_memory, memoryless_loss


@pytest.mark.parametrize("length", [1, 7, 100])
def test_layout(length):
    inputs, targets = copy_memory(0, 5, length)
    assert inputs.shape == targets.shape == (5, length + 20)
    assert inputs.dtype == targets.dtype == np.int32
    symbols = inputs[:, :10]
    assert symbols.min() >= 1
    assert symbols.max() <= 8
    rest = np.zeros(length + 10, int)
    rest[length] = 9
    np.testing.assert_array_equal(inputs[:, 10:], np.tile(rest, (5, 1)))
    np.testing.assert_array_equal(targets[:, -10:], symbols)
    assert not targets[:, :-10].any()


def test_symbols_are_uniform():
    inputs, _ = copy_memory(0, 2000, 1)
    counts = np.bincount(inputs[:, :10].ravel(), minlength=9)[1:]
    assert np.abs(counts - 2500).max() < 5 * np.sqrt(2500)


def test_the_seed_decides():
    np.testing.assert_array_equal(copy_memory((3, 1), 4, 5)[0], copy_memory((3, 1), 4, 5)[0])
    assert (copy_memory((3, 1), 4, 5)[0] != copy_memory((3, 2), 4, 5)[0]).any()
    generator = np.random.default_rng(0)
    assert (copy_memory(generator, 4, 5)[0] != copy_memory(generator, 4, 5)[0]).any()


def test_memoryless_loss():
    assert memoryless_loss(480) == pytest.approx(10 * np.log(8) / 500)


def test_errors_are_sentences():
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        copy_memory(0, 0, 5)
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        copy_memory(0, 1, 0)
    with pytest.raises(ValueError, match="length must be at least 1"):
        memoryless_loss(0)
