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
    # A step costs traffic. On a CPU histories, state and weights of half the batch are in a cache
    # together where those of the whole may not be; a GPU is not busy with so little.
    times = 16 if jax.default_backend() == "gpu" else 0.5
    return [*_all(cell, settings), *_other_batch(cell, int(times * len(cell.x)), settings)]


def _all(cell: Cell, settings: Settings) -> list[Row]:
    rows = []
    for name, over, detail in _measured(cell, settings, axes=(0, None), with_peers=True):
        limit = next((limit for label, _, limit in SOLVERS if name.startswith(label)), None)
        if limit is None or over is None:
            rows.append(info(name, detail))
        else:
            rows.append(at_most(name, over, limit, detail))
    return rows


def _other_batch(cell: Cell, batch: int, settings: Settings) -> list[Row]:
    """The same of a smaller or larger batch."""
    repeated = lambda x: np.resize(x, (batch, *x.shape[1:]))
    part = replace(cell, x=repeated(cell.x), z0=repeated(cell.z0), v=repeated(cell.v))
    found = _measured(part, settings, axes=(0,), with_peers=batch > len(cell.x))
    return [
        info(f"batch {batch}, {name}", detail if over is None else f"{over:.3f} ({detail})")
        for name, over, detail in found
    ]


def _measured(cell: Cell, settings: Settings, axes: tuple, with_peers: bool):
    """(name, time of a step over its own f or None, detail), of every solver."""
    functions = {}
    for steps in (SHORT, LONG):
        functions["f", steps] = bare(cell, steps)
        for name, solver, _ in SOLVERS:
            for axis in axes:
                functions[f"{name}, batch_axis={axis}", steps] = fixed_steps(
                    cell, solver, steps, axis
                )
        for name, call in (peers.fixed_steps(cell, steps, settings) if with_peers else {}).items():
            functions[name, steps] = call
    times = interleaved(functions, **settings.timing)
    own = {name: _per_step(times, name) for name in ("f", "torch f") if (name, LONG) in functions}
    for name, library in (("f", "JAX"), ("torch f", "torch")):
        if name in own:
            yield f"one f: {library}", None, f"{1e3 * np.median(own[name]):.3f} ms"
    for name in dict.fromkeys(name for name, _ in functions):
        if name not in own:
            base = own["torch f" if name.startswith("torchdeq") else "f"]
            over = spread(_per_step(times, name) / base)
            if name.startswith(tuple(label for label, _, _ in SOLVERS)):
                yield name, over.median, over.quartiles
            else:
                yield name, None, f"{over.median:.3f} ({over.quartiles}), over its own f"


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
