"""Input ahead of the device."""

import threading
from types import SimpleNamespace

import pytest

from deqjax.training import prefetch
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
        two_ahead.wait()  # steps 3 and 4 are made before they are asked for
        assert [next(batches) for _ in range(3)] == [3, 4, 5]
        with pytest.raises(StopIteration):
            next(batches)
    assert made == [2, 3, 4, 5]


def test_the_wait_for_input_is_measured(monkeypatch):
    clock = iter([10.0, 12.5, 20.0, 20.25])
    monkeypatch.setattr(prefetch, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with Prefetch(lambda step: step, 0, 2) as batches:
        next(batches), next(batches)
    assert batches.waited == 2.75


def test_what_goes_wrong_is_raised_where_the_batch_is_asked_for():
    with Prefetch(lambda step: 1 // step, 0, 3) as batches, pytest.raises(ZeroDivisionError):
        next(batches)
