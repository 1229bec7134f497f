"""A run that is killed, and goes on where clock and host are others."""

from __future__ import annotations

import os
import shutil
import time

import numpy as np

from .run import STEPS
from .trials import Outcome, Reference, left, same, start, written

SAID = "the last state and every line of metrics, bit for bit those of the undisturbed run"
DAYS = (-4000, -1, 1, 4000)


def outcomes(reference: Reference, trials: int, seed: int) -> list[Outcome]:
    draw = np.random.default_rng((seed, 3))
    wanted = reference.of()
    kept, notes = 0, []
    for days in DAYS:
        folder = reference.folder / f"elsewhere{days}"
        job = start(folder)
        steps = int(draw.integers(STEPS // 4, STEPS))
        while written(folder) < steps and job.running:
            time.sleep(0.01)
        job.kill()
        # As a copy from another machine would have them.
        for path in folder.rglob("*"):
            moment = float(draw.uniform(0, 2e9))
            os.utime(path, (moment, moment))
        start(folder, 1, "--days", str(days), "--host", f"host{days}").finish()
        differs = same(left(folder), wanted)
        if differs:
            notes.append(f"{days} days after step {steps}: {', '.join(differs)}")
        else:
            kept += 1
            shutil.rmtree(folder)
    notes.append(f"clock set by {', '.join(map(str, DAYS))} days, files of random times")
    return [Outcome("another clock, another host", len(DAYS), kept, SAID, tuple(notes))]
