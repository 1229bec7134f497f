"""Time of one solver step over one f, the bare `fori_loop` of f being 1."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import deqjax

from . import peers
from .cells import Cell, cells
from .report import Row, Settings, at_most, info
from .timing import interleaved, spread

TITLE = "Time per step over a bare fori_loop of f (reference cell)"
SOLVERS = (
    ("Picard", deqjax.Picard(), 1.03),
    ("Anderson(5)", deqjax.Anderson(memory=5), 1.12),
    ("Broyden(10)", deqjax.Broyden(memory=10), 1.30),
)
SHORT, LONG = 12, 36  # both longer than any history: their difference is steady state


def run(settings: Settings) -> list[Row]:
    cell = cells(settings.quick)[0]
    return [*_all(cell, settings), *_part_of_the_batch(cell, settings)]


def _all(cell: Cell, settings: Settings) -> list[Row]:
    functions = {}
    for steps in (SHORT, LONG):
        functions["f", steps] = bare(cell, steps)
        for name, solver, _ in SOLVERS:
            for axis in (0, None):
                functions[f"{name}, batch_axis={axis}", steps] = fixed_steps(
                    cell, solver, steps, axis
                )
        for name, call in peers.fixed_steps(cell, steps, settings).items():
            functions[name, steps] = call
    times = interleaved(functions, **settings.timing)
    own = _per_step(times, "f")
    torch_f = "torch f"
    rows = [info("one f: JAX", f"{1e3 * np.median(own):.3f} ms")]
    if (torch_f, LONG) in functions:
        own_torch = _per_step(times, torch_f)
        rows.append(info("one f: torch", f"{1e3 * np.median(own_torch):.3f} ms"))
    for name in dict.fromkeys(name for name, _ in functions):
        if name in ("f", torch_f):
            continue
        base = own_torch if name.startswith("torchdeq") else own
        over = spread(_per_step(times, name) / base)
        limit = next((limit for label, _, limit in SOLVERS if name.startswith(label)), None)
        if limit is None:
            rows.append(info(name, f"{over.median:.3f} ({over.quartiles}), over its own f"))
        else:
            rows.append(at_most(name, over.median, limit, over.quartiles))
    return rows


def _part_of_the_batch(cell: Cell, settings: Settings) -> list[Row]:
    """The same of half the batch, for which histories, state and weights are in a cache together
    where for the whole they may not be: what a step costs is traffic."""
    half = len(cell.x) // 2
    part = replace(cell, x=cell.x[:half], z0=cell.z0[:half], v=cell.v[:half])
    functions = {}
    for steps in (SHORT, LONG):
        functions["f", steps] = bare(part, steps)
        for name, solver, _ in SOLVERS:
            functions[name, steps] = fixed_steps(part, solver, steps, 0)
    times = interleaved(functions, **settings.timing)
    own = _per_step(times, "f")
    rows = [info(f"batch {half}, one f: JAX", f"{1e3 * np.median(own):.3f} ms")]
    for name, _, _ in SOLVERS:
        over = spread(_per_step(times, name) / own)
        rows.append(info(f"batch {half}, {name}", f"{over.median:.3f} ({over.quartiles})"))
    return rows


def _per_step(times, name) -> np.ndarray:
    """Seconds a step in each round: what the longer run takes more. Fixed costs cancel."""
    more = times.seconds[name, LONG] - times.seconds[name, SHORT]
    return np.maximum(more, 1e-9) / (LONG - SHORT)


def bare(cell: Cell, steps: int):
    """The loop that any solver is measured against: `steps` times f, then z."""
    theta, x = jax.tree.map(jnp.asarray, (cell.theta, cell.x))

    @jax.jit
    def loop(theta, x):
        return lax.fori_loop(0, steps, lambda _, z: cell.f(z, theta, x), jnp.asarray(cell.z0))

    return partial(loop, theta, x)


def fixed_steps(cell: Cell, solver: deqjax.Solver, steps: int, axis: int | None):
    """A deqjax solve that cannot stop early; that it did not is checked, not assumed."""
    theta, x = jax.tree.map(jnp.asarray, (cell.theta, cell.x))

    @jax.jit
    def solve(theta, x):
        sol = deqjax.fixed_point(
            cell.f,
            jnp.asarray(cell.z0),
            theta,
            x,
            solver=solver,
            rtol=0.0,
            atol=0.0,
            max_steps=steps,
            batch_axis=axis,
        )
        return sol.z, sol.stats.steps

    taken = np.asarray(solve(theta, x)[1])
    if not (taken == steps).all():
        raise RuntimeError(f"{solver.name} took {taken} steps where {steps} were to be timed")
    return partial(solve, theta, x)
