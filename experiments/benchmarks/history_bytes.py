"""Histories kept in bfloat16: half the bytes, as many evaluations of f."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

import deqjax

from .cells import Cell, cells
from .report import Row, Settings, at_most, info

TITLE = "history_dtype=bfloat16 (rtol 1e-3)"
SOLVERS = (deqjax.Anderson(memory=5), deqjax.Broyden(memory=10))


def run(settings: Settings) -> list[Row]:
    rows = []
    for cell in cells(settings.quick):
        for solver in SOLVERS:
            for axis in (None, 0):
                rows += compare(cell, solver, axis)
    return rows


def compare(cell: Cell, solver, axis) -> list[Row]:
    narrow = replace(solver, history_dtype="bfloat16")
    (full, evals), (half, evals_narrow) = (solved(cell, s, axis) for s in (solver, narrow))
    what = f"{cell.name}, {solver.name}, batch_axis={axis}"
    detail = f"{evals} in float32, {evals_narrow} in bfloat16"
    bytes_ = at_most(f"{what}: bytes", half / full, 0.5, f"{full:,} -> {half:,}")
    if cell.name == "near-singular":  # eight bits are coarser than its residual: no requirement
        return [bytes_, info(f"{what}: f_evals", detail)]
    apart = abs(evals_narrow - evals)
    return [bytes_, at_most(f"{what}: |difference of f_evals|", apart, 1, detail)]


def solved(cell: Cell, solver, axis) -> tuple[int, int]:
    """(bytes of the history, f_evals of the slowest sample) of a solve that converged."""

    @jax.jit
    def solve(theta, x):
        return deqjax.fixed_point(
            cell.f,
            jnp.asarray(cell.z0),
            theta,
            x,
            solver=solver,
            rtol=1e-3,
            max_steps=2000,
            batch_axis=axis,
        )

    sol = solve(cell.theta, cell.x)
    if not np.asarray(sol.stats.converged).all():
        raise RuntimeError(f"{solver} did not converge on {cell.name}")
    # A history holds vectors of the state's width; the small matrices beside it stay in float32.
    width = cell.z0.shape[-1]
    leaves = [a for a in jax.tree.leaves(sol.state) if a.ndim > 2 and a.shape[-1] == width]
    return sum(a.nbytes for a in leaves), int(np.max(np.asarray(sol.stats.f_evals)))
