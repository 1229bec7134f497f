"""What `test_processes.py` runs beside itself: one process of a job that trains.

    python process_programs.py FOLDER INDEX COUNT PORT [CHANGED OPTION=VALUE ...]

COUNT 1 is a process on its own; PORT may be "launched", for what the environment says. Every step
waits a little, so that a signal lands between two.
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import tiny_run

from deqjax.data import Stream
from deqjax.training import LanguageModelling, LaunchOptions, connect, fit
from deqjax.training.scoring import Share, current, sharing

ROWS = 4


class Slow(LanguageModelling):
    def batch(self, index, rows=slice(None)):
        time.sleep(0.1)
        assert len(range(ROWS)[rows]) == (ROWS if COUNT == 1 else ROWS // COUNT), rows
        return super().batch(index, rows)

    def evaluate(self, model):
        """Half of the rows here, and what all of them say."""
        mine = current().of(self.valid)
        assert mine is not None and len(range(2)[mine.rows]) == 2 // COUNT
        found = super().evaluate(model)
        with sharing(Share()):
            alone = super().evaluate(model)
        np.testing.assert_allclose(found["valid_loss"], alone["valid_loss"], rtol=1e-6)
        return found


def task():
    ids = np.random.default_rng(0).integers(0, tiny_run.VOCABULARY, 800).astype(np.int32)
    train = Stream(ids, batch_size=ROWS, segment=6, start_id=0)
    valid = Stream(ids[:40], batch_size=2, segment=6, start_id=0)
    return Slow(tiny_run.new_model, train, valid, warm_start=True)


if __name__ == "__main__":
    folder, index, COUNT = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if sys.argv[4] == "launched":
        connect(LaunchOptions())
    elif COUNT > 1:
        connect(LaunchOptions("yes", f"127.0.0.1:{sys.argv[4]}", COUNT, index))
    changes = dict(pair.split("=", 1) for pair in sys.argv[5:])
    changes = {k: int(v) if v.isdecimal() else v for k, v in changes.items()}
    given = dict(batch_size=ROWS, steps=24, checkpoint_every=3, schedule="plateau") | changes
    options = tiny_run.options(folder, **given)
    run = fit(task(), options, options, name="run")
    # Every process ends with the whole model and the same result.
    print(index, run.result["valid_loss"], flush=True)
