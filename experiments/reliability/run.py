"""The training that is disturbed: small, with everything in it that a restart must bring back.

    python -m experiments.reliability.run FOLDER [--index K --count N --port P] [--spoil …]

Dropout, a stack and then solves, memory over segments, a warm start, a plateau of the learning
rate, evaluations, the newest and the best checkpoints. Saves take about as long as the steps
between them, so that many moments fall into one.
"""

from __future__ import annotations

import argparse
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from deqjax.data import Stream
from deqjax.nn import LanguageModel, TransformerCell
from deqjax.training import LanguageModelling, LaunchOptions, Run, TrainOptions, connect, fit

STEPS, ROWS, WORDS = 40, 8, 13
SPOILT = {7, 8, 21}  # steps in which a sample is spoilt, where one is


def build(rngs: nnx.Rngs) -> LanguageModel:
    cell = TransformerCell(16, heads=2, d_inner=16, memory_length=6, dropout=0.2, rngs=rngs)
    return LanguageModel(WORDS, cell, dropout=0.1, rngs=rngs, rtol=1e-3, max_steps=10)


class Slow(LanguageModelling):
    """A step of at least some milliseconds, and a sample that may be spoilt."""

    weight_of_one = 1.0

    def batch(self, index: int, rows: slice = slice(None)) -> Any:
        time.sleep(0.02)
        batch = super().batch(index, rows)
        if index in SPOILT and self.weight_of_one != 1.0:
            weights = batch.weights.copy()
            weights[3] *= np.float32(self.weight_of_one)
            batch = batch._replace(weights=weights)
        return batch


def task(weight_of_one: float = 1.0, *, warm_start: bool = True) -> LanguageModelling:
    ids = np.random.default_rng(0).integers(0, WORDS, 2000).astype(np.int32)
    train = Stream(ids, batch_size=ROWS, segment=8, start_id=0)
    valid = Stream(ids[:100], batch_size=2, segment=8, start_id=0)
    made = Slow(build, train, valid, warm_start=warm_start)
    made.weight_of_one = weight_of_one  # type: ignore[misc]
    return made


def options(folder: Path) -> TrainOptions:
    return TrainOptions(
        steps=STEPS,
        batch_size=ROWS,
        warmup=4,
        schedule="plateau",
        stack_steps=5,
        stack_jitter=1,
        runs=folder,
        name="run",
        log_every=1,
        eval_every=8,
        checkpoint_every=2,
    )


def train(folder: Path, weight_of_one: float = 1.0) -> Run:
    given = options(folder)
    return fit(task(weight_of_one), given, given, name="run")


def elsewhere(days: float, host: str) -> None:
    """Another clock and another name of the machine, for all that asks Python."""
    now = time.time
    time.time = lambda: now() + 86400 * days
    socket.gethostname = lambda: host


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--days", type=float, default=0.0)
    parser.add_argument("--host", default="")
    parser.add_argument("--weight-of-one", type=float, default=1.0)
    given = parser.parse_args()
    if given.host:
        elsewhere(given.days, given.host)
    if given.count > 1:
        launch = LaunchOptions(coordinator=f"127.0.0.1:{given.port}")
        connect(replace(launch, processes=given.count, process=given.index))
    train(given.folder, given.weight_of_one)
