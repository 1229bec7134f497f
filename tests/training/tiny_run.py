"""A language model small enough to train in a test, with everything a restart must bring back:
optimiser moments, dropout keys, memory over segments, the solver's warm start, the position in the
data.

Run as a program it trains in the folder given, slowly enough to be killed on the way.
"""

import sys
import time
from pathlib import Path

import numpy as np

from deqjax.data import Stream
from deqjax.nn import LanguageModel, TransformerCell
from deqjax.training import LanguageModelling, TrainOptions, fit

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


class Slow(LanguageModelling):
    """Waits before each batch, so that a kill lands between any two steps."""

    def batch(self, index, rows=slice(None)):
        time.sleep(0.05)
        return super().batch(index, rows)


def train(folder: Path, kind=LanguageModelling, **changes):
    base = task()
    given = options(folder, **changes)
    return fit(kind(**vars(base)), given, given, name="run")


if __name__ == "__main__":
    train(Path(sys.argv[1]), Slow)
