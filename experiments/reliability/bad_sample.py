"""A sample that is not a number, on one of eight devices."""

from __future__ import annotations

import numpy as np

from deqjax.training import read_metrics

from .run import SPOILT, STEPS
from .trials import Outcome, Reference, start

SAID = (
    "the part of its device is left out of the step and counted, all losses are finite, and the "
    "loss of the first such step is that of a run in which the sample weighs nothing"
)


def outcomes(reference: Reference, trials: int, seed: int) -> list[Outcome]:
    rows = {}
    for weight in ("nan", "0"):
        folder = reference.folder / f"sample-{weight}"
        start(folder, 1, "--weight-of-one", weight, devices=8).finish()
        rows[weight] = read_metrics(folder / "run")
    bad = [(row["step"], row["bad_parts"]) for row in rows["nan"] if row["bad_parts"]]
    wrong = []
    if bad != [(step + 1, 1) for step in sorted(SPOILT)]:
        wrong.append(f"counted {bad}")
    if not all(np.isfinite(row["loss"]) for row in rows["nan"]) or len(rows["nan"]) != STEPS:
        wrong.append("a loss is not finite")
    at = min(SPOILT)
    apart = abs(rows["nan"][at]["loss"] / rows["0"][at]["loss"] - 1)
    if not apart < 1e-6:
        wrong.append("its loss is another")
    said = f"steps {', '.join(str(step + 1) for step in sorted(SPOILT))}; the losses differ by a \
share of {apart:.0e}"
    return [Outcome("a NaN sample among eight devices", 1, int(not wrong), SAID, (*wrong, said))]
