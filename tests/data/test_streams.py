import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqjax.data import Stream

START = 99


@st.composite
def streams(draw):
    batch_size = draw(st.integers(1, 6))
    size = draw(st.integers(batch_size, 60))
    # Distinct ids from 100 up, so that a token says where it stands.
    ids = np.arange(100, 100 + size, dtype=draw(st.sampled_from([np.int32, np.int64, np.uint16])))
    return Stream(ids, batch_size, draw(st.integers(1, 12)), START)


@settings(max_examples=100)
@given(streams())
def test_every_token_is_a_target_once_after_its_predecessor(stream):
    batches = list(stream)
    assert len(batches) == len(stream)
    targets, inputs, weights = (
        np.concatenate([getattr(batch, name) for batch in batches], axis=1)
        for name in ("targets", "inputs", "weights")
    )
    assert targets.shape == (stream.batch_size, len(stream) * stream.segment)
    real = weights == 1
    # Row after row, and segment after segment in a row, is the corpus in order.
    np.testing.assert_array_equal(targets[real], stream.ids)
    np.testing.assert_array_equal(inputs[real], [START, *stream.ids[:-1]])
    for padded in (targets, inputs, weights):
        assert not padded[~real].any()
    assert (np.diff(real.astype(int), axis=1) <= 0).all()  # padding only at a row's end
    assert np.ptp(real.sum(axis=1)) <= 1
    assert real[:, :: stream.segment].any(axis=0).all()  # no segment is all padding


@settings(max_examples=100)
@given(streams(), st.integers(0, 1000))
def test_a_position_is_an_integer(stream, index):
    again = Stream(stream.ids, stream.batch_size, stream.segment, START)
    epoch = list(again)
    for a, b in zip(stream[index], epoch[index % len(stream)], strict=True):
        np.testing.assert_array_equal(a, b)
    assert stream[index].fresh is (index % len(stream) == 0)


@settings(max_examples=50)
@given(streams(), st.integers(0, 20), st.data())
def test_hosts_read_their_own_rows(stream, index, data):
    cut = data.draw(st.integers(0, stream.batch_size))
    hosts = [s for s in (slice(0, cut), slice(cut, None)) if range(stream.batch_size)[s]]
    parts = [
        Stream(stream.ids, stream.batch_size, stream.segment, START, rows=rows)[index]
        for rows in hosts
    ]
    for name in ("inputs", "targets", "weights"):
        whole = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(whole, getattr(stream[index], name))


def test_a_batch_written_out():
    batch = Stream(np.arange(10, 17, dtype=np.int32), 2, 3, 5)[0]
    assert batch.inputs.tolist() == [[5, 10, 11], [13, 14, 15]]
    assert batch.targets.tolist() == [[10, 11, 12], [14, 15, 16]]
    assert (batch.inputs.dtype, batch.targets.dtype) == (np.int32, np.int32)
    assert batch.weights.dtype == np.float32
    last = Stream(np.arange(10, 17, dtype=np.int32), 2, 3, 5)[1]
    assert last.targets.tolist() == [[13, 0, 0], [0, 0, 0]]
    assert last.weights.tolist() == [[1, 0, 0], [0, 0, 0]]


def test_ids_may_be_memory_mapped(tmp_path):
    ids = np.arange(20, dtype=np.int32)
    np.save(tmp_path / "ids.npy", ids)
    mapped = np.load(tmp_path / "ids.npy", mmap_mode="r")
    batch = Stream(mapped, 4, 2, 0)[1]
    np.testing.assert_array_equal(batch.targets, Stream(ids, 4, 2, 0)[1].targets)
    assert type(batch.targets) is np.ndarray


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"batch_size": 11}, ValueError, "10 tokens are too few for batch_size=11"),
        ({"ids": np.zeros(0, np.int32)}, ValueError, "0 tokens are too few"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"segment": -3}, ValueError, "segment must be at least 1, got -3"),
        ({"segment": 2.0}, TypeError, "float"),
        ({"start_id": -1}, ValueError, "start_id must be a token id"),
        ({"ids": np.zeros(10)}, TypeError, "integer dtype such as int32, got float64"),
        ({"ids": np.zeros(10, bool)}, TypeError, "got bool"),
        ({"ids": np.zeros((2, 5), np.int32)}, TypeError, "numpy vector"),
        ({"ids": [1, 2, 3]}, TypeError, "numpy vector"),
        ({"rows": slice(2, 2)}, ValueError, "selects none of the 2 rows"),
    ],
)
def test_errors_are_sentences(change, error, sentence):
    arguments = {"ids": np.arange(10), "batch_size": 2, "segment": 3, "start_id": 0} | change
    with pytest.raises(error, match=sentence):
        Stream(**arguments)


def test_a_negative_position_is_refused():
    with pytest.raises(IndexError, match="got -1"):
        Stream(np.arange(10), 2, 3, 0)[-1]
