"""SIGKILL at random moments of a run, which then goes on."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from .run import STEPS
from .trials import MOST, Outcome, Reference, left, same, start, state_of, written

SAID = "the last state and every line of metrics, bit for bit those of the undisturbed run"


def outcomes(reference: Reference, trials: int, seed: int) -> list[Outcome]:
    """Every fifth trial is a job of two processes, of which one is killed and then the other.

    Each trial is in the ledger when it has ended, and is not made again.
    """
    two = trials // 5
    jobs = {1: trials - two, 2: two}
    for count, n in jobs.items():
        for trial in range(n):
            name = f"seed {seed}, {count} process(es), trial {trial}"
            if name not in reference.ledger:
                found = _trial(reference, count, trial, seed)
                reference.ledger[name] = found | dict(count=count)
                print(f"  {name} of {n}: {_told(found)}", flush=True)
    rows = list(reference.ledger.values())
    return [_counted(count, [r for r in rows if r["count"] == count]) for count in jobs]


def _trial(reference: Reference, count: int, trial: int, seed: int) -> dict[str, Any]:
    wanted = reference.of(count)
    draw = np.random.default_rng((seed, count, trial))
    steps, wait = int(draw.integers(0, STEPS)), float(draw.uniform(0, wanted["seconds"]))
    folder = reference.folder / f"killed-{count}-{trial}"
    at, start_again = _killed(folder, count, steps, wait, int(draw.integers(count)))
    differs = same(left(folder), wanted)
    shutil.rmtree(folder)
    return dict(at=at, start_again=start_again, differs=differs)


def _told(row: dict[str, Any]) -> str:
    verdict = f"lost: {', '.join(row['differs'])}" if row["differs"] else "the same"
    return f"killed after step {row['at']}, went on from {row['start_again']}: {verdict}"


def _counted(count: int, rows: list[dict[str, Any]]) -> Outcome:
    notes = [_told(r) for r in rows if r["differs"]]
    if rows:
        moments = [r["at"] for r in rows]
        notes.append(f"after steps {min(moments)} to {max(moments)} of {STEPS}")
    kept = sum(not r["differs"] for r in rows)
    what = "SIGKILL of a process" if count == 1 else f"SIGKILL of one of {count} processes"
    return Outcome(what, len(rows), kept, SAID, tuple(notes))


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
