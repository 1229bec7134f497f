"""A solve's path over the landscape of residuals, in the plane that holds most of the path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._errors import check_integer
from .._fixed_point import fixed_point
from .._shown import Shown
from .._solution import Stats
from .._state import from_front, norm, subtract, to_front
from ..solvers import Solver, as_solver
from ._inputs import check_concrete, checked, of_modules

PyTree = Any


@dataclass(frozen=True, repr=False)
class Landscape(Shown):
    """What `landscape` found, as numpy arrays.

    Attributes:
        path: the iterates in the plane, (steps + 1, 2), the returned z at (0, 0), in units of z.
        residuals: ‖f(z) − z‖ / ‖f(z*)‖ of each, (steps + 1,).
        along: the plane's grid in the direction in which the path extends most, (points,).
        across: and in the second direction, (points,).
        height: ‖f(z) − z‖ / ‖f(z*)‖ on the plane at (along[j], across[i]), (points, points).
        shares: the shares of the path's squared distances from z* that lie along each, (2,).
        stats: the `Stats` of the sample drawn.
        solver: its name.
    """

    path: np.ndarray
    residuals: np.ndarray
    along: np.ndarray
    across: np.ndarray
    height: np.ndarray
    shares: np.ndarray
    stats: Stats
    solver: str

    def __str__(self) -> str:
        return (
            f"{self.solver}: {self.stats}; the plane holds {self.shares.sum():.0%} of a path of "
            f"{len(self.path) - 1} steps"
        )

    def plot(self, ax: Any = None) -> Any:
        """The landscape and the path over it: see `plot_landscape`."""
        from .landscape_plot import plot_landscape

        return plot_landscape(self, ax)


@of_modules()
def landscape(
    f: Callable[..., PyTree],
    z0: PyTree,
    *args: PyTree,
    points: int = 41,
    margin: float = 0.25,
    sample: int | None = None,
    solver: str | Solver = "anderson",
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    batch_axis: int | None = None,
) -> Landscape:
    """Solve, keep every iterate, and evaluate the residual in the plane of the path.

    The plane goes through the returned z along the first two principal directions of the iterates
    seen from there, as Li et al. (2018, arXiv 1712.09913) draw the training of networks. A long
    valley is an eigenvalue of J near one, along which Picard creeps; a path that swings from side
    to side is one near −1; a basin that holds no zero is a solve that cannot converge there. It is
    a section through a space of many dimensions: read `shares` before you read the picture.

    Costs the solve, memory for `max_steps` + 1 states, and points² evaluations of f.

    Args:
        f: as in `fixed_point`; or a module such as `deqjax.nn.DEQ`, followed by its input alone.
        z0: as in `fixed_point`.
        *args: as in `fixed_point`.
        points: along each side of the plane.
        margin: how far the plane goes on around the path, relative to the path's extent.
        sample: which one of a batch to draw, the others at their solutions; None takes the one with
            the most steps. Without `batch_axis` there is one.
        solver: as in `fixed_point`; not one of several phases, such as `WarmStart`.
        rtol: as in `fixed_point`.
        atol: as in `fixed_point`.
        max_steps: as in `fixed_point`.
        batch_axis: as in `fixed_point`.

    Raises:
        TypeError: called inside `jit`.
        ValueError: a state of one number, points < 2, a solver of several phases, or whatever
            `fixed_point` says about its arguments.

    Examples:
        >>> import jax.numpy as jnp
        >>> found = landscape(lambda z, x: jnp.tanh(z) * 0.9 + x, jnp.zeros(3), jnp.arange(3.0))
        >>> found.path.shape[1], found.path[-1].round(3).tolist(), found.height.shape
        (2, [0.0, 0.0], (41, 41))
    """
    check_integer("points", points, least=2)
    check_concrete("landscape", (z0, args))
    z0, batch = checked(f, z0, args, batch_axis)
    inner = as_solver(solver).with_options(rtol=rtol, atol=atol, max_steps=max_steps)
    if len(inner.phases()) > 1:
        raise ValueError(
            f"landscape draws the path of one solver, and {inner.name!r} is several in turn: "
            "draw each by itself, the second from where the first ended"
        )
    recorder = Recording(inner=inner, **{k: getattr(inner, k) for k in Solver.options()})

    @jax.jit
    def solve(z0, args):
        sol = fixed_point(
            *(f, z0, *args),
            solver=recorder,
            batch_axis=batch_axis,
            trace=True,
            on_failure="ignore",  # the result says how it ended
        )
        return sol.z, sol.stats, sol.state.solver_state.iterates

    z, stats, iterates = solve(z0, args)
    stats = jax.tree.map(np.asarray, stats)
    one = 0 if batch_axis is None else sample
    if one is None:
        one = int(np.argmax(stats.steps))
    if not 0 <= one < batch:
        raise ValueError(f"sample must be one of the {batch} of the batch; got {sample!r}")
    if batch_axis is not None:
        trace, stats = stats.trace[:, one], jax.tree.map(lambda x: x[one], _bare(stats))
    else:
        trace, stats = stats.trace, _bare(stats)
    taken = int(stats.steps) + 1
    path = [np.asarray(x[one, :taken], np.float64).reshape(taken, -1) for x in iterates]
    front = to_front(z, batch_axis)
    leaves, treedef = jax.tree.flatten(front)
    end = np.concatenate([np.ravel(np.asarray(x[one], np.float64)) for x in leaves])
    if end.size < 2:
        raise ValueError("landscape draws a plane, and the state has one number: plot f against z")
    moved = np.concatenate(path, axis=1) - end
    directions, shares = _principal(moved)
    plane = moved @ directions.T

    def residual(z):
        """‖f(z) − z‖ and ‖f(z)‖ of the sample."""
        z, fz = to_front(z, batch_axis), to_front(f(z, *args), batch_axis)
        return norm(subtract(fz, z))[one], norm(fz)[one]

    def at(place):
        step = place @ jnp.asarray(directions, place.dtype)
        parts = jnp.split(step, np.cumsum([x[one].size for x in leaves])[:-1])
        moved = [
            x.at[one].add(d.reshape(x.shape[1:]).astype(x.dtype))
            for x, d in zip(leaves, parts, strict=True)
        ]
        return residual(from_front(jax.tree.unflatten(treedef, moved), batch_axis))[0]

    along, across = _sides(plane, points, margin)
    places = np.stack(np.meshgrid(along, across), -1).reshape(-1, 2)
    dtype = jnp.finfo(jnp.result_type(jnp.float32, *leaves)).dtype
    height = jax.jit(lambda places: lax.map(at, places))(jnp.asarray(places, dtype))
    scale = float(jax.jit(residual)(z)[1]) or 1.0
    return Landscape(
        path=plane,
        residuals=np.asarray(trace[:taken], np.float64) / scale,
        along=along,
        across=across,
        height=np.asarray(height, np.float64).reshape(points, points) / scale,
        shares=shares,
        stats=stats,
        solver=inner.name,
    )


def _bare(stats: Stats) -> Stats:
    """Without what has no sample axis in front."""
    return Stats(
        *(stats.status, stats.converged, stats.steps, stats.f_evals),
        *(stats.residual, stats.rel_residual),
    )


def _principal(moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two orthonormal rows that hold most of the rows of `moved`, and what share they hold.

    By the Gram matrix of the rows, which are few and long. Where the path has fewer dimensions, any
    direction across it will do.
    """
    values, vectors = np.linalg.eigh(moved @ moved.T)
    total = max(float(values.sum()), np.finfo(float).tiny)
    rows = []
    spare = np.random.default_rng(0).normal(size=(2, moved.shape[1]))
    for i in (1, 2):
        known = i <= len(values) and values[-i] > 1e-12 * total
        row = vectors[:, -i] @ moved if known else spare[i - 1]
        for other in rows:
            row = row - (row @ other) * other
        rows.append(row / np.linalg.norm(row))
    directions = np.array(rows)
    return directions, ((moved @ directions.T) ** 2).sum(axis=0) / total


def _sides(plane: np.ndarray, points: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """The grid around the path; a direction in which it has no extent gets a tenth of the other."""
    low, high = plane.min(axis=0), plane.max(axis=0)
    extent = high - low
    extent = np.maximum(extent, 0.1 * (extent.max() or 1.0))
    middle = (low + high) / 2
    half = (0.5 + margin) * extent
    first, second = (np.linspace(m - h, m + h, points) for m, h in zip(middle, half, strict=True))
    return first, second


class Recorded(NamedTuple):
    """The solver's own state, and all iterates: leaves (batch, max_steps + 1, ...)."""

    inner: PyTree
    iterates: list


@dataclass(frozen=True, kw_only=True)
class Recording(Solver):
    """A solver that keeps every iterate of another one."""

    inner: Any = None

    name = "recording"

    def done(self, residual, yardstick, tol):
        return self.inner.done(residual, yardstick, tol)

    def first_guess(self, z0):
        return self.inner.first_guess(z0)

    def init(self, point, max_steps):
        def kept(x):
            room = jnp.zeros((x.shape[0], max_steps + 1, *x.shape[1:]), x.dtype)
            return room.at[:, 0].set(x)

        state = self.inner.phases()[0][0].init(point, max_steps)
        return Recorded(state, [kept(x) for x in jax.tree.leaves(point.z)])

    def step(self, f, point, state, k, active):
        taken = self.inner.phases()[0][0].step(f, point, state.inner, k, active)
        leaves = jax.tree.leaves(taken.point.z)
        kept = [room.at[:, k + 1].set(x) for room, x in zip(state.iterates, leaves, strict=True)]
        return taken._replace(state=Recorded(taken.state, kept))
