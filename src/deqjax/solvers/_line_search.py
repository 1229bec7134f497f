"""A backtracking line search on ‖g‖, per sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._state import per_sample, select
from .base import Cell, Point

PyTree = Any

DECREASE = 1e-4
TRIALS = 10


class _Search(NamedTuple):
    t: jax.Array
    best: Point
    best_norm: jax.Array
    searching: jax.Array
    trials: jax.Array
    first: jax.Array


def backtrack(
    f: Cell, point: Point, direction: PyTree, active: jax.Array | None, growth: float = 1.0
) -> tuple[Point, jax.Array]:
    """The first t = 1, t₁, t₂, … with ‖g(z + t d)‖ ≤ (c − 10⁻⁴ t) ‖g(z)‖,  g(z) = f(z) − z.

    With c = 1, Armijo's condition on ‖g‖ for a Newton direction, along which the slope of ‖g‖² is
    −2‖g‖²; the next t is the minimum of the parabola through what is known, kept within
    [t/10, t/2] (Dennis and Schnabel 1983, A6.3.1). If no trial does it, the best one is taken.

    Args:
        f: the cell.
        point: z and f(z).
        direction: d, leaves (batch, ...).
        active: samples that search; None means all.
        growth: c. Above 1 it lets ‖g‖ grow for a step, for directions that need not descend.

    Returns:
        The new point, and the evaluations of f that each sample made, (batch,).
    """
    start, _ = point.norms
    everyone = jnp.ones_like(start, bool) if active is None else active

    def trial(t) -> Point:
        step = jax.tree.map(lambda d: per_sample(t, d).astype(d.dtype) * d, direction)
        return f.at(f.plus(point.z, step))

    def judge(new: Point, t):
        size, _ = new.norms
        enough = size <= (growth - DECREASE * t) * start  # false for NaN
        return size, enough

    def body(c: _Search) -> _Search:
        t = c.t
        new = trial(t)
        size, enough = judge(new, t)
        better = c.searching & ((size < c.best_norm) | ~jnp.isfinite(c.best_norm))
        # Samples that have ended wait, and f of where they do is known from the first trial.
        better |= c.first & ~everyone
        best = select(better, new, c.best)
        # ‖g‖² in units of ‖g(z)‖², so that nothing overflows.
        relative = (size / start) ** 2
        parabola = t**2 / (relative - 1 + 2 * t)
        shorter = jnp.where(jnp.isfinite(parabola), jnp.clip(parabola, 0.1 * t, 0.5 * t), 0.1 * t)
        return _Search(
            t=shorter,
            best=best,
            best_norm=jnp.where(better, size, c.best_norm),
            searching=c.searching & ~enough & (c.trials + 1 < TRIALS),
            trials=c.trials + c.searching,
            first=jnp.zeros((), bool),
        )

    zero = jnp.zeros_like(start)
    count = zero.astype(jnp.int32)
    first = _Search(zero + 1, point, zero + jnp.inf, everyone, count, jnp.ones((), bool))
    found = f.repeat(body, first, lambda c: c.searching | c.first)
    return found.best, found.trials
