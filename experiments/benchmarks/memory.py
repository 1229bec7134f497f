"""Temporary memory of the compiled value-and-gradient: it must not depend on max_steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import deqjax

from .cells import Cell, cells
from .report import Row, Settings, at_most, info

TITLE = "Compiled temporary memory of value-and-grad, max_steps 4 -> 256 (reference cell)"
LIMIT = 1.02
FEW, MANY = 4, 256
SOLVERS = (deqjax.Picard(), deqjax.Anderson(), deqjax.Broyden(), deqjax.NewtonKrylov())


def run(settings: Settings) -> list[Row]:
    cell = cells(settings.quick)[0]
    solvers = SOLVERS[:2] if settings.quick else SOLVERS
    rows = []
    for solver in solvers:
        for axis in (None, 0):
            rows.append(_flat(cell, solver, "implicit", axis))
    if hasattr(deqjax, "Reversible"):
        rows.append(_flat(cell, deqjax.Picard(), "reversible", None))
    few, many = (temporary_bytes(cell, solvers[0], "unrolled", None, k) for k in (FEW, 64))
    grown = f"{many / few:.2f} from {FEW} to 64 steps: growth is seen where there is some"
    return [*rows, info("picard, unrolled", grown)]


def _flat(cell: Cell, solver, adjoint: str, axis) -> Row:
    few, many = (temporary_bytes(cell, solver, adjoint, axis, k) for k in (FEW, MANY))
    what = f"{solver.name}, {adjoint}, batch_axis={axis}"
    return at_most(what, many / few, LIMIT, f"{few / 2**20:.2f} -> {many / 2**20:.2f} MiB")


def temporary_bytes(cell: Cell, solver, adjoint: str, axis, max_steps: int) -> int:
    def loss(theta, x):
        sol = deqjax.fixed_point(
            cell.f,
            jnp.zeros_like(x),
            theta,
            x,
            solver=solver,
            adjoint=adjoint,
            max_steps=max_steps,
            batch_axis=axis,
        )
        return jnp.vdot(cell.v, sol.z)

    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (cell.theta, cell.x))
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*given).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise RuntimeError("this back end does not analyse memory")
    return analysis.temp_size_in_bytes
