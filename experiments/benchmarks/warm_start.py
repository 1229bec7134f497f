"""Evaluations saved by starting at the last solution, over inputs that drift."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import deqjax

from .cells import Cell, cells
from .report import Row, Settings, at_least, info

TITLE = "Warm start: f_evals saved over correlated inputs (rtol 1e-5)"
LIMIT = 0.30
# Required at the first. A step changes the input by √(1 − ρ²) of its spread: 1.4%, 4.5%, 14%. At a
# linear rate a start that is c times closer saves log c of the log 10⁵ that a cold one takes.
CORRELATIONS = (0.9999, 0.999, 0.99)
SOLVERS = ("picard", "anderson", "broyden")


def run(settings: Settings) -> list[Row]:
    rows = []
    for cell in cells(settings.quick)[:3]:
        for solver in SOLVERS:
            for rho in CORRELATIONS:
                counts = evaluations(cell, solver, rho, 4 if settings.quick else 16)
                cold, warm, resumed = counts
                saved = 1 - min(warm, resumed) / cold
                what = f"{cell.name}, {solver}, correlation {rho}"
                detail = f"cold {cold}, from the last z {warm}, with its history too {resumed}"
                if rho == CORRELATIONS[0]:
                    rows.append(at_least(what, saved, LIMIT, detail))
                else:
                    rows.append(info(what, f"{saved:.3f} ({detail})"))
    return rows


def evaluations(cell: Cell, solver: str, correlation: float, length: int) -> tuple[int, int, int]:
    """f_evals over the sequence: from zero, from the last z, and with the last history as well."""
    rng = np.random.default_rng(5)
    inputs = [cell.x]
    keep, change = correlation, np.sqrt(1 - correlation**2) * np.std(cell.x)
    for _ in range(length - 1):
        inputs.append(
            (keep * inputs[-1] + change * rng.normal(size=cell.x.shape)).astype(np.float32)
        )

    @jax.jit
    def solve(z0, theta, x, resume=None):
        return deqjax.fixed_point(
            cell.f, z0, theta, x, solver=solver, rtol=1e-5, max_steps=500, resume=resume
        )

    start = jnp.asarray(cell.z0)
    first = solve(start, cell.theta, inputs[0])
    totals = [0, 0, 0]
    warm = resumed = first
    for x in inputs[1:]:
        warm = solve(warm.z, cell.theta, x)
        resumed = solve(resumed.z, cell.theta, x, resumed.state)
        for i, sol in enumerate((solve(start, cell.theta, x), warm, resumed)):
            if not bool(sol.stats.converged):
                raise RuntimeError(f"{solver} did not converge on {cell.name}")
            totals[i] += int(sol.stats.f_evals)
    return totals[0], totals[1], totals[2]
