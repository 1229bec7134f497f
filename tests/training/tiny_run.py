"""A language model small enough to train in a test, with everything a restart must bring back:
optimiser moments, dropout keys, memory over segments, the solver's warm start, the position in the
data.

Run as a program it trains in the folder given and is killed on the way, after five steps or more.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from flax import nnx

from deqjax.data import Stream, Vocabulary
from deqjax.nn import LanguageModel, TransformerCell
from deqjax.training import (
    Checkpoints,
    LanguageModelling,
    TrainOptions,
    fit,
    new_state,
    save_architecture,
)
from deqjax.training.folder import describe, write_json
from deqjax.training.schedules import optimiser

VOCABULARY = 11


def new_model(rngs):
    cell = TransformerCell(8, heads=2, d_inner=8, memory_length=4, dropout=0.2, rngs=rngs)
    return LanguageModel(VOCABULARY, cell, dropout=0.1, rngs=rngs, rtol=1e-3, max_steps=8)


def task(batch=None):
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 400).astype(np.int32)
    train = Stream(ids, batch_size=2, segment=6, start_id=0)
    valid = Stream(ids[:40], batch_size=1, segment=6, start_id=0)
    return LanguageModelling(new_model, train, valid, warm_start=True)


def options(folder: Path, **changes) -> TrainOptions:
    given = dict(
        steps=12,
        batch_size=2,
        warmup=2,
        stack_steps=3,
        stack_jitter=1,
        runs=folder,
        name="run",
        log_every=1,
        eval_every=5,
        checkpoint_every=2,
    )
    return TrainOptions(**(given | changes))


class Killed(LanguageModelling):
    """Dies by SIGKILL when it is asked for a late batch, once five steps are on the disk."""

    def batch(self, index, rows=slice(None)):
        metrics = Path(sys.argv[1]) / "run" / "metrics.jsonl"
        while index >= 8 and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 5):
            time.sleep(0.01)
        if index >= 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(index, rows)


def train(folder: Path, kind=LanguageModelling, **changes):
    base = task()
    given = options(folder, **changes)
    return fit(kind(**vars(base)), given, given, name="run")


WORDS = Vocabulary.build("abcdefghij", "char")  # with the newline, eleven of them
FILES = {
    "vocabulary.json": lambda path: WORDS.save(path),
    "model.json": lambda path: save_architecture(path, task()._shape),
}


def saved(folder: Path):
    """A run's folder as `fit` leaves it, without the training; returns the last model."""
    folder.mkdir()
    given = options(folder.parent)
    for name, write in FILES.items():
        write(folder / name)
    write_json(folder / "config.json", describe(given))
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for step, metric in ((2, 0.5), (4, 0.3), (6, 0.4)):
            graph, state = new_state(task(), optimiser(given), seed=step)
            checkpoints.save(step, state, metric=metric)
    return nnx.merge(graph, state.params, state.rest)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Killed)
