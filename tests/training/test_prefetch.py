"""Input ahead of the device."""

import threading

import pytest

from deqjax.training.prefetch import Prefetch


def test_batches_come_in_order_and_ahead():
    made, two_ahead = [], threading.Event()

    def make(step):
        made.append(step)
        if step == 4:
            two_ahead.set()
        return step

    with Prefetch(make, 2, 6) as batches:
        assert next(batches) == 2
        assert two_ahead.wait(10)  # steps 3 and 4 are made before they are asked for
        assert [next(batches) for _ in range(3)] == [3, 4, 5]
        with pytest.raises(StopIteration):
            next(batches)
    assert made == [2, 3, 4, 5]


def test_the_wait_for_input_is_measured():
    release = threading.Event()
    threading.Timer(0.2, release.set).start()
    with Prefetch(lambda step: release.wait(10), 0, 1) as batches:
        next(batches)
    assert 0.1 < batches.waited < 5


def test_what_goes_wrong_is_raised_where_the_batch_is_asked_for():
    with Prefetch(lambda step: 1 // step, 0, 3) as batches, pytest.raises(ZeroDivisionError):
        next(batches)
