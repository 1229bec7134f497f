"""SIGKILL at random moments of a run, which then goes on."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np

from .run import STEPS
from .trials import MOST, Outcome, Reference, left, same, start, state_of, written

SAID = "the last state and every line of metrics, bit for bit those of the undisturbed run"


def outcomes(reference: Reference, trials: int, seed: int) -> list[Outcome]:
    """Every fifth trial is a job of two processes, of which one is killed and then the other."""
    two = trials // 5
    jobs = {1: trials - two, 2: two}
    return [_of(reference, count, n, seed) for count, n in jobs.items() if n]


def _of(reference: Reference, count: int, trials: int, seed: int) -> Outcome:
    draw = np.random.default_rng((seed, count))
    wanted = reference.of(count)
    kept, notes, moments = 0, [], []
    for trial in range(trials):
        folder = reference.folder / f"killed-{count}-{trial}"
        steps, wait = int(draw.integers(0, STEPS)), float(draw.uniform(0, wanted["seconds"]))
        at, start_again = _killed(folder, count, steps, wait, int(draw.integers(count)))
        moments.append(at)
        differs = same(left(folder), wanted)
        verdict = f"lost: {', '.join(differs)}" if differs else "the same"
        said = f"killed after step {at}, went on from {start_again}: {verdict}"
        print(f"  {trial + 1}/{trials}: {said}", flush=True)
        if differs:
            notes.append(said)
        else:
            kept += 1
            shutil.rmtree(folder)
    notes.append(f"after steps {min(moments)} to {max(moments)} of {STEPS}")
    what = "SIGKILL of a process" if count == 1 else f"SIGKILL of one of {count} processes"
    return Outcome(what, trials, kept, SAID, tuple(notes))


def _killed(
    folder: Path, count: int, steps: int, wait: float, victim: int
) -> tuple[int, int | None]:
    """Kill a job `wait` seconds after it has written so many steps, and let it go on to its end.

    Returns:
        The step that it was killed after, and that of the checkpoint from which it went on.
    """
    job = start(folder, count)
    deadline = time.monotonic() + MOST
    while written(folder) < steps and job.running:
        if time.monotonic() > deadline:
            raise RuntimeError(f"step {steps} was not reached in {MOST:.0f} s")
        time.sleep(0.002)
    time.sleep(wait)
    at = written(folder)
    job.kill(victim)
    start_again = state_of(folder)["step"]
    start(folder, count).finish()
    return at, start_again
