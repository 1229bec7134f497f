"""Times on a noisy machine: interleaved, compared within a round, the median of the ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Ratio:
    """A ratio of times: median and quartiles over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"

    @property
    def quartiles(self) -> str:
        return f"quartiles {self.low:.3f} to {self.high:.3f}"


@dataclass(frozen=True)
class Times:
    """Seconds a call, {name: (rounds,)}: index i of every name was measured in the same round."""

    seconds: dict[Any, np.ndarray]

    def median(self, name: Hashable) -> float:
        return float(np.median(self.seconds[name]))

    def ratio(self, a: Hashable, b: Hashable) -> Ratio:
        """Time of a over time of b."""
        return spread(self.seconds[a] / self.seconds[b])

    def fastest(self, names) -> str:
        return min(names, key=self.median)


def spread(values: np.ndarray) -> Ratio:
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Ratio(float(median), float(low), float(high))


def interleaved(
    functions: Mapping[Any, Callable[[], object]], *, rounds: int, seconds: float
) -> Times:
    """Time all functions in turn, `rounds` times, each a block of calls of about `seconds`.

    Every second round goes backwards, so that a machine that slows down or speeds up favours
    nobody. A function runs once untimed before its block: caches and threads are then its own.
    """
    calls = {}
    for name, function in functions.items():
        _wait(function())  # compiles
        once = min(_block(function, 1) for _ in range(2))
        calls[name] = max(1, round(seconds / max(once, 1e-7)))
    taken: dict[Any, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds):
        order = list(functions) if round_ % 2 == 0 else list(functions)[::-1]
        for name in order:
            _wait(functions[name]())
            taken[name].append(_block(functions[name], calls[name]))
    return Times({name: np.array(values) for name, values in taken.items()})


def once(function: Callable[[], object]) -> float:
    """Seconds of the second call."""
    _wait(function())  # compiles
    return _block(function, 1)


def _block(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        _wait(function())
    return (time.perf_counter() - start) / calls


def _wait(result: object) -> None:
    """Until the result is there: JAX returns before it is. Other objects are left alone."""
    jax.block_until_ready(result)
