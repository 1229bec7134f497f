"""Basins of attraction: which solution each start of a plane reaches, and in how many steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from .._errors import check_integer
from .._fixed_point import fixed_point
from .._shown import Shown
from .._solution import Stats
from ..solvers import Solver
from ._inputs import check_concrete, checked

PyTree = Any

MOST = 1000  # solutions that are told apart; more are a curve of solutions, or a loose tolerance


@dataclass(frozen=True, repr=False)
class Basins(Shown):
    """What `basins` found, as numpy arrays. Its `str()` says how many starts got where.

    Attributes:
        x: the first number of each start, (points,).
        y: the second, (points,).
        solutions: those that were reached, (solutions, 2), those with most starts first.
        reached: int32, which of them the start (x[j], y[i]) reached; −1 where the solve failed,
            (points, points).
        stats: the `Stats` of every solve, (points, points).
    """

    x: np.ndarray
    y: np.ndarray
    solutions: np.ndarray
    reached: np.ndarray
    stats: Stats

    @property
    def shares(self) -> np.ndarray:
        """The share of the starts that reached each solution, (solutions,)."""
        counts = np.bincount(self.reached[self.reached >= 0], minlength=len(self.solutions))
        return counts / self.reached.size

    def __str__(self) -> str:
        failed = float(np.mean(self.reached < 0))
        lines = [
            f"{self.reached.size} starts: {len(self.solutions)} "
            f"solution{'s' * (len(self.solutions) != 1)}, {failed:.1%} did not converge"
        ]
        for i, share in enumerate(self.shares[:8]):
            lines.append(f"  {self.name(i)} from {share:.1%}")
        if len(self.solutions) > 8:
            lines.append(f"  and {len(self.solutions) - 8} more")
        return "\n".join(lines)

    def name(self, i: int) -> str:
        """The i-th solution as text, to a thousandth of the square."""
        digits = 3 - math.floor(math.log10(self.x[-1] - self.x[0]))
        x, y = (round(float(c), digits) + 0.0 for c in self.solutions[i])  # no −0
        return f"({x:g}, {y:g})"

    def plot(self, ax: Any = None, *, show: str = "solutions") -> Any:
        """The plane of starts as Matplotlib Axes: see `plot_basins`."""
        from .basins_plot import plot_basins

        return plot_basins(self, ax, show=show)

    def figure(self) -> Any:
        """Solutions, and beside them steps, as a Matplotlib Figure."""
        from ._drawing import side_by_side

        figure, (left, right) = side_by_side(width=9.6)
        self.plot(left)
        self.plot(right, show="steps").set_ylabel("")
        return figure


def basins(
    f: Callable[..., PyTree],
    z0: PyTree,
    *args: PyTree,
    span: float = 2.0,
    points: int = 101,
    solver: str | Solver = "anderson",
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    agree: float = 1e-2,
) -> Basins:
    """Solve an equation in two unknowns from every point of a square around z0.

    For a small equation that stands for a large one: does the solver find the same solution from
    everywhere, and where does it fail? Picard's basins are those of the iteration itself; Anderson
    and Broyden also reach solutions that repel it, and their basins are ragged, because a step
    depends on all those before. `path_independence` asks the same of a state of any size.

    One solve under `jax.vmap`, so it takes as long as its slowest start; f must allow `vmap`.

    Args:
        f: as in `fixed_point`, on a state of two numbers in all.
        z0: the centre of the square.
        *args: as in `fixed_point`.
        span: half the side of the square, in units of z.
        points: starts along a side.
        solver: as in `fixed_point`.
        rtol: as in `fixed_point`.
        atol: as in `fixed_point`.
        max_steps: as in `fixed_point`.
        agree: two solutions closer than this share of `span` count as one.

    Raises:
        TypeError: called inside `jit`.
        ValueError: a state of more or fewer than two numbers, points < 2, a span that is not
            positive, or whatever `fixed_point` says about its arguments.

    Examples:
        >>> import jax.numpy as jnp
        >>> found = basins(lambda z: jnp.tanh(2 * z), jnp.zeros(2), points=10, solver="picard")
        >>> print(found)
        100 starts: 4 solutions, 0.0% did not converge
          (0.958, 0.958) from 25.0%
          ...
    """
    check_integer("points", points, least=2)
    if not span > 0:
        raise ValueError(f"span must be positive, it is half the side of a square; got {span!r}")
    check_concrete("basins", (z0, args))
    z0, _ = checked(f, z0, args, None)
    centre, unravel = ravel_pytree(z0)
    if centre.shape != (2,):
        raise ValueError(
            f"basins draws the plane of an equation in two unknowns, and z0 has {centre.size}: "
            "path_independence compares solutions of any size"
        )

    @jax.jit
    def solve_all(starts, args):
        def solve(start):
            sol = fixed_point(
                *(f, unravel(start), *args),
                solver=solver,
                rtol=rtol,
                atol=atol,
                max_steps=max_steps,
                on_failure="ignore",  # the result says which converged
            )
            return ravel_pytree(sol.z)[0], sol.stats

        return jax.vmap(solve)(starts)

    along = np.linspace(-span, span, points)
    x, y = (float(c) + along for c in np.asarray(centre, np.float64))
    starts = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    z, stats = jax.tree.map(np.asarray, solve_all(jnp.asarray(starts, centre.dtype), args))
    solutions, reached = _told_apart(z.astype(np.float64), stats.converged, agree * span)
    square = lambda n: n.reshape(points, points, *n.shape[1:])
    return Basins(x, y, solutions, square(reached), jax.tree.map(square, stats))


def _told_apart(z: np.ndarray, converged: np.ndarray, within: float):
    """Solutions, most frequent first, and the index of each z's: −1 where it did not converge."""
    reached = np.full(len(z), -1, np.int32)
    left = np.flatnonzero(converged)
    found = []
    while left.size and len(found) < MOST:
        near = np.linalg.norm(z[left] - z[left[0]], axis=1) <= within
        reached[left[near]] = len(found)
        found.append(z[left[near]].mean(axis=0))
        left = left[~near]
    if left.size:
        raise ValueError(
            f"more than {MOST} solutions: they form a curve, or the solves are looser than `agree`"
        )
    counts = np.bincount(reached[reached >= 0], minlength=len(found))
    # About as frequent ones by where they are: one equation has one order under every solver.
    places = np.array(found, np.float64).reshape(-1, 2)
    about = np.round(counts / len(z), 2)
    order = np.lexsort((*np.round(-places / within)[:, ::-1].T, -about))
    place = np.empty(len(found) + 1, np.int32)
    place[order], place[-1] = np.arange(len(found)), -1  # index −1 stays −1
    return places[order], place[reached]
