"""Requests to stop: Ctrl-C, and the SIGTERM by which a scheduler announces that it takes the
machine away."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax


@contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """A function to call after every step with its number: whether to stop there.

    A second Ctrl-C interrupts at once. In a job of several processes a signal to any of them stops
    all, after the same step: JAX's coordination service tells the others and picks a step that none
    of them has passed.
    """
    several = jax.process_count() > 1
    asked: list[int] = []

    def ask(number, frame):
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if several:
            os.kill(os.getpid(), signal.SIGTERM)  # which the service has a handler for

    # Theirs of SIGTERM must stay where there are several.
    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    try:
        old = {number: signal.signal(number, ask) for number in numbers}
    except ValueError:  # not the main thread: signals are somebody else's
        old = {}
    try:
        yield _all_reached if several else lambda step: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _all_reached(step: int) -> bool:
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)
