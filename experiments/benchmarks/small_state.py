"""What a step costs beyond f where f costs nothing: one sample, d = 32."""

from __future__ import annotations

import numpy as np

from .cells import tanh
from .per_step import SOLVERS, bare, fixed_steps
from .report import Row, Settings, at_most, info
from .timing import interleaved, spread

TITLE = "Per-step overhead over f on a small state (tanh, d=32, one sample)"
LIMIT = 25.0
# Many steps, since one takes microseconds. With this gain the cell has no attracting fixed point,
# so that no solver ends early.
SHORT, LONG, GAIN = 100, 500, 4.0


def run(settings: Settings) -> list[Row]:
    cell = tanh(batch=1, d=32, gain=GAIN)
    functions = {}
    for steps in (SHORT, LONG):
        functions["f", steps] = bare(cell, steps)
        for name, solver, _ in SOLVERS:
            for axis in (None, 0):
                label = f"{name}, batch_axis={axis}"
                functions[label, steps] = fixed_steps(cell, solver, steps, axis)
    times = interleaved(functions, **settings.timing)

    def per_step(name):
        more = times.seconds[name, LONG] - times.seconds[name, SHORT]
        return 1e6 * more / (LONG - SHORT)

    own = per_step("f")
    rows = [info("one f", f"{np.median(own):.2f} µs")]
    for name in dict.fromkeys(name for name, _ in functions):
        if name != "f":
            over = spread(per_step(name) - own)
            rows.append(at_most(name, over.median, LIMIT, over.quartiles, " µs"))
    return rows
