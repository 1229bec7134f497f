"""Is the equilibrium real? The same weights under other solvers, tolerances, starts and lengths."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from deqjax.solvers import Picard, Solver, as_solver

from .task import Config, Pair, Score, evaluate, held_out

# What each check changes: (name, solver, rtol relative to training's, random start). All must find
# the same equilibrium but the last: plain iteration need not converge to it.
CHECKS = (
    ("as trained", None, 1.0, False),
    ("tolerance / 100", None, 0.01, False),
    ("broyden", "broyden", 0.1, False),
    ("picard, damped by half", Picard(damping=0.5), 0.1, False),
    ("random start", None, 0.1, True),
    ("picard", "picard", 0.1, False),
)


class Line(NamedTuple):
    """A check's name, the length of its sequences, how many there were, and the score."""

    name: str
    length: int
    count: int
    score: Score


def audit(model: Any, config: Config, sequences: int = 256) -> Iterator[Line]:
    """Score an equilibrium model under every check, on the first test sequences."""
    pair = held_out(config.train.seed, sequences, config.length)
    for name, solver, factor, random in CHECKS:
        with solved_by(model, solver, config.solver.rtol * factor):
            score = evaluate(model, pair, 32, start=_random_start(model) if random else None)
        yield Line(name, config.length, sequences, score)


def generalisation(model: Any, config: Config) -> Iterator[Line]:
    """The same weights on twice and four times the delay that they were trained on."""
    for length in (2 * config.length, 4 * config.length):
        count = max(32, 256 * config.length**2 // length**2)
        pair: Pair = held_out(config.train.seed, count, length)
        yield Line("as trained", length, count, evaluate(model, pair, 16))


@contextmanager
def solved_by(
    model: Any, solver: str | Solver | None, rtol: float, max_steps: int = 200
) -> Iterator[None]:
    """Within, the model's equilibrium is solved by `solver` (None: its own) to `rtol`."""
    own = model.deq.solver
    chosen = own if solver is None else as_solver(solver)
    model.deq.solver = chosen.with_options(rtol=rtol, atol=own.atol, max_steps=max_steps)
    try:
        yield
    finally:
        model.deq.solver = own


def _random_start(model: Any):
    def start(inputs: np.ndarray) -> np.ndarray:
        shape = (*inputs.shape, model.cell.d)
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    return start
