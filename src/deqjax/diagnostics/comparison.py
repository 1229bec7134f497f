"""Solvers side by side on one equation: evaluations, time, and what was reached."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .._errors import check_integer
from .._fixed_point import fixed_point
from .._shown import Shown, worst
from .._solution import Solution, Stats
from .._state import norm, subtract, to_front
from ..solvers import Solver
from ._inputs import check_concrete, checked, named, of_modules
from ._jacobian import ratio
from ._table import ending, seconds, table

PyTree = Any


@dataclass(frozen=True)
class SolverRow:
    """One solver's solve.

    Attributes:
        solver: its name.
        status: "converged", or how it failed and for how many samples.
        converged: fraction of the samples that converged.
        steps: of the slowest sample.
        f_evals: of the slowest sample.
        rel_residual: ‖f(z) − z‖ / ‖f(z)‖ of the worst sample, from f evaluated anew at sol.z.
        seconds: median wall time of a compiled solve.
    """

    solver: str
    status: str
    converged: float
    steps: int
    f_evals: int
    rel_residual: float
    seconds: float


@dataclass(frozen=True, repr=False)
class SolverComparison(Shown):
    """What `compare_solvers` found. Its `str()` is a table.

    Attributes:
        rows: a `SolverRow` for each solver.
        solutions: {name: `Solution`}, with traces.
        scale: ‖f(z)‖ at the best solution found, (batch,) with `batch_axis`: the picture divides
            all residuals by it.
    """

    rows: tuple[SolverRow, ...]
    solutions: Mapping[str, Solution]
    scale: Any

    def __str__(self) -> str:
        header = ("solver", "f_evals", "steps", "rel. residual", "time", "status")
        rows = [
            (
                *(r.solver, str(r.f_evals), str(r.steps)),
                *(f"{r.rel_residual:.1e}", seconds(r.seconds), r.status),
            )
            for r in self.rows
        ]
        return table(header, rows, words=(0, 5))

    def plot(self, ax: Any = None, *, against: str = "evaluations") -> Any:
        """Residual against "evaluations", "steps" or "time", as Matplotlib Axes."""
        from .convergence import plot_convergence

        times = {r.solver: r.seconds for r in self.rows}
        return plot_convergence(
            self.solutions, ax, against=against, seconds=times, scale=self.scale
        )

    def figure(self) -> Any:
        """Residual against evaluations, and beside it against time, as a Matplotlib Figure."""
        from ._drawing import side_by_side

        figure, (left, right) = side_by_side()
        self.plot(left)
        self.plot(right, against="time")
        right.set_ylabel("")
        right.get_legend().remove()
        return figure


@of_modules()
def compare_solvers(
    f: Callable[..., PyTree],
    z0: PyTree,
    *args: PyTree,
    solvers: Sequence[str | Solver] | Mapping[str, Any] = ("picard", "anderson", "broyden"),
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    batch_axis: int | None = None,
    repeats: int = 5,
) -> SolverComparison:
    """Solve the same equation with each solver, and measure.

    Evaluations are the fair measure where f is dear, time where it is not: then what a solver does
    between evaluations counts. Times are medians of `repeats` compiled solves, taken in turns, so
    that a machine that slows down does so for all; the trace is on, which costs next to nothing.
    They are those of this machine and this batch, and say little about another.

    Args:
        f: as in `fixed_point`; or a module such as `deqjax.nn.DEQ`, followed by its input alone.
        z0: as in `fixed_point`.
        *args: as in `fixed_point`.
        solvers: names and objects that `fixed_point` takes, or {name: one of them}.
        rtol: as in `fixed_point`; None leaves each solver its own.
        atol: as in `fixed_point`.
        max_steps: as in `fixed_point`. A step of some solvers is several evaluations.
        batch_axis: as in `fixed_point`.
        repeats: timed solves of each.

    Raises:
        TypeError: called inside `jit`.
        ValueError: repeats < 1, or whatever `fixed_point` says about its arguments.

    Examples:
        >>> import jax.numpy as jnp
        >>> f = lambda z, x: 0.9 * jnp.cos(z) + x
        >>> found = compare_solvers(f, jnp.zeros(4), jnp.ones(4), solvers=("picard", "anderson"))
        >>> [(row.solver, row.status) for row in found.rows]
        [('picard', 'converged'), ('anderson', 'converged')]
    """
    check_integer("repeats", repeats, least=1)
    check_concrete("compare_solvers", (z0, args))
    z0, _ = checked(f, z0, args, batch_axis)

    options: dict[str, Any] = dict(rtol=rtol, atol=atol, max_steps=max_steps)
    # The table says how each ended.
    options |= dict(batch_axis=batch_axis, trace=True, on_failure="ignore")

    def program(solver):
        return jax.jit(lambda z0, args: fixed_point(f, z0, *args, solver=solver, **options))

    @jax.jit
    def measure(z, args):
        """‖f(z) − z‖ / ‖f(z)‖ and ‖f(z)‖, (batch,)."""
        z, fz = (to_front(x, batch_axis) for x in (z, f(z, *args)))
        return ratio(norm(subtract(fz, z)), norm(fz)), norm(fz)

    programs = {name: program(solver) for name, solver in named(solvers).items()}
    solutions = {n: jax.block_until_ready(solve(z0, args)) for n, solve in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, solve in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(solve(z0, args))
            times[name].append(time.perf_counter() - start)

    rows = []
    measured = {n: jax.tree.map(np.asarray, measure(s.z, args)) for n, s in solutions.items()}
    for name, sol in solutions.items():
        stats: Stats = sol.stats
        rows.append(
            SolverRow(
                solver=name,
                status=ending(stats),
                converged=float(np.mean(stats.converged)),
                steps=int(worst(stats.steps)),
                f_evals=int(worst(stats.f_evals)),
                rel_residual=worst(measured[name][0]),
                seconds=statistics.median(times[name]),
            )
        )
    residuals, sizes = (np.stack(x) for x in zip(*measured.values(), strict=True))
    scale = np.take_along_axis(sizes, np.argmin(residuals, axis=0)[None], axis=0)[0]
    return SolverComparison(tuple(rows), solutions, scale if batch_axis is not None else scale[0])
