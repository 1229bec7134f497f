"""Path independence: does the solution depend on where the solve starts?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._errors import check_integer
from .._fixed_point import fixed_point
from .._shown import Shown
from .._solution import Stats
from .._state import from_front, norm, select, subtract, to_front, wide
from ..solvers import Solver
from ._inputs import check_concrete, checked, of_modules

PyTree = Any


@dataclass(frozen=True, repr=False)
class PathIndependence(Shown):
    """What `path_independence` found, as numpy arrays. Its `str()` is the verdict.

    Attributes:
        distance: the largest ‖zᵢ − zⱼ‖ between two *converged* solutions, relative to the largest
            ‖z‖ of them (or, where z* ≈ 0, to a thousand times their largest residual); NaN with
            fewer than two. A number, or (batch,) with `batch_axis`.
        converged: (starts,), or (starts, batch). The first start is z0 itself.
        stats: the `Stats` of every solve, the same shapes.
        solutions: the solutions, every leaf with a leading axis of starts.
        agree: the relative distance up to which two solutions count as one.
    """

    distance: Any
    converged: Any
    stats: Stats
    solutions: PyTree
    agree: float

    @property
    def all_converged(self) -> bool:
        return bool(self.converged.all())

    @property
    def several_solutions(self) -> bool:
        """Whether two starts converged to different places (for any sample)."""
        return bool(np.any(self.distance > self.agree))

    @property
    def path_independent(self) -> bool:
        """All starts converged, and to the same place (for every sample)."""
        return self.all_converged and bool(np.all(self.distance <= self.agree))

    def __str__(self) -> str:
        starts, total = self.converged.shape[0], self.converged.size
        solves = f"{starts} starts" if total == starts else f"{total} solves from {starts} starts"
        count = f"{int(self.converged.sum())} of {solves} converged"
        if np.isnan(self.distance).all():
            return f"{count}: too few to compare their solutions"
        distance = f"largest relative distance {np.nanmax(self.distance):.1e}"
        if self.several_solutions:
            return f"{count}, to different solutions ({distance}): there are several fixed points"
        if self.all_converged:
            return f"{count}, to one solution ({distance})"
        return (
            f"{count}; those that did agree ({distance}), the others failed to solve, which says "
            "nothing about other fixed points"
        )


@of_modules()
def path_independence(
    f: Callable[..., PyTree],
    z0: PyTree,
    *args: PyTree,
    starts: int = 8,
    scale: float = 1.0,
    key: jax.Array | None = None,
    solver: str | Solver = "anderson",
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    batch_axis: int | None = None,
    agree: float = 1e-2,
) -> PathIndependence:
    """Solve from z0 and from random points around it, and compare where the solves end.

    A DEQ whose equilibrium does not depend on the start can be warm-started freely and uses more
    steps at test time to its advantage (Anil et al. 2022, arXiv 2211.09961, who compare directions;
    here distances, so that a solution near zero counts as well). Two answers are kept apart: "the
    starts converged to different places" and "some starts did not converge". Agreement is evidence
    over the starts tried, and no proof of uniqueness.

    The solves run one after another in one compiled loop: memory for one, plus the solutions.

    Args:
        f: as in `fixed_point`; or a module such as `deqjax.nn.DEQ`, followed by its input alone.
        z0: the first start, and the centre of the others.
        *args: as in `fixed_point`.
        starts: how many, z0 included, at least two.
        scale: standard deviation of z − z0 in every entry. Take the size of a solution's entries.
        key: PRNG key of the starts; None is always the same key.
        solver: as in `fixed_point`.
        rtol: as in `fixed_point`. Solutions of a stiff equation agree to much less than this.
        atol: as in `fixed_point`.
        max_steps: as in `fixed_point`.
        batch_axis: as in `fixed_point`; every sample has a verdict of its own.
        agree: relative distance up to which two solutions count as the same.

    Raises:
        TypeError: called inside `jit`.
        ValueError: starts < 2, or whatever `fixed_point` says about its arguments.

    Examples:
        >>> import jax.numpy as jnp
        >>> print(path_independence(lambda z, x: 0.5 * jnp.tanh(z) + x, jnp.zeros(3), jnp.ones(3)))
        8 of 8 starts converged, to one solution (largest relative distance ...)
    """
    check_integer("starts", starts, least=2)
    check_concrete("path_independence", (z0, args))
    z0, _ = checked(f, z0, args, batch_axis)
    keys = jax.random.split(jax.random.key(0) if key is None else key, starts)

    @jax.jit
    def solve_all(z0, args):
        def solve(start):
            index, key = start
            z = _scattered(z0, key, jnp.where(index == 0, 0.0, scale))
            sol = fixed_point(
                *(f, z, *args),
                solver=solver,
                rtol=rtol,
                atol=atol,
                max_steps=max_steps,
                batch_axis=batch_axis,
                on_failure="ignore",  # the result says which converged
            )
            return to_front(sol.z, batch_axis), sol.stats

        z, stats = lax.map(solve, (jnp.arange(starts), keys))
        converged = stats.converged.reshape(starts, -1)
        residual = stats.residual.reshape(starts, -1)
        distance = _largest_distance(z, residual, converged)
        z = jax.vmap(lambda z: from_front(z, batch_axis))(z)
        return distance.reshape(stats.converged.shape[1:]), z, stats

    distance, z, stats = solve_all(z0, args)
    stats = jax.tree.map(np.asarray, stats)
    return PathIndependence(np.asarray(distance), stats.converged, stats, z, agree)


def _scattered(z: PyTree, key: jax.Array, scale: jax.Array) -> PyTree:
    leaves, treedef = jax.tree.flatten(z)
    keys = jax.random.split(key, len(leaves))

    def leaf(x, key):
        noise = jax.random.normal(key, x.shape, wide(x.dtype))
        return (x + scale * noise).astype(x.dtype)

    moved = [leaf(x, key) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, moved)


def _largest_distance(z: PyTree, residual: jax.Array, converged: jax.Array) -> jax.Array:
    """max ‖zᵢ − zⱼ‖ / max ‖zᵢ‖ over the converged, (batch,); leaves (starts, batch, ...)."""
    # A solve that failed may hold numbers of any size: it is taken out before any arithmetic.
    z = jax.vmap(select)(converged, z, jax.tree.map(jnp.zeros_like, z))

    def from_one(i):
        mine = jax.tree.map(lambda x: x[i], z)
        far = lax.map(lambda other: norm(subtract(mine, other)), z)
        return jnp.max(jnp.where(converged & converged[i], far, 0), axis=0)

    far = jnp.max(lax.map(from_one, jnp.arange(converged.shape[0])), axis=0)
    size = jnp.max(lax.map(norm, z), axis=0)
    # Solutions are known to about their residuals: where z* = 0 there is no other scale.
    size = jnp.maximum(size, 1e3 * jnp.max(jnp.where(converged, residual, 0), axis=0))
    relative = far / jnp.where(size > 0, size, 1)
    return jnp.where(converged.sum(axis=0) >= 2, relative, jnp.nan)
