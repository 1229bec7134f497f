"""GMRES without restarts, per sample, on states of any structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._small import joined, solve_small
from .._state import History, finite, norm, per_sample, zero_scalars
from .base import Cell, eps

PyTree = Any


class _Arnoldi(NamedTuple):
    """A V = V H with H = Ωᵀ R: V holds j + 1 vectors, Ω all Givens rotations so far."""

    j: jax.Array
    basis: History
    rotations: jax.Array
    triangle: jax.Array
    residual: jax.Array
    running: jax.Array
    products: jax.Array


def gmres(
    matvec: Callable[[PyTree], PyTree],
    b: PyTree,
    *,
    f: Cell,
    memory: int,
    target: jax.Array,
    active: jax.Array | None = None,
) -> tuple[PyTree, jax.Array]:
    """x in the Krylov space of A and b with the least ‖b − A x‖ (Saad and Schultz 1986).

    Arnoldi's method with Gram–Schmidt done twice, which keeps the basis orthogonal to round-off,
    and the least-squares problem updated by one rotation a step. Stops, sample by sample, at
    ‖b − A x‖ ≤ target or at `memory` products.

    Args:
        matvec: v -> A v, linear; leaves (batch, ...).
        b: right-hand side, in float32 at least.
        f: the cell that `matvec` differentiates: devices that it couples stop together.
        memory: size of the Krylov space. State kept: memory·|z|.
        target: (batch,).
        active: samples to solve for; None means all.

    Returns:
        x, and the number of products that each sample needed, (batch,).
    """
    size = norm(b)
    index = jnp.arange(memory + 1)
    zero = jnp.zeros_like(size)

    def body(c: _Arnoldi) -> _Arnoldi:
        j = c.j
        w = matvec(c.basis.at(j))
        scale = norm(w)
        h = jnp.zeros_like(c.rotations[:, 0])
        for _ in range(2):
            past = jnp.where(index[:memory] <= j, c.basis.dots(w), 0)
            w = jax.tree.map(lambda w, p: w - p.astype(w.dtype), w, c.basis.combine(past))
            h = h.at[:, :memory].add(past)
        length = norm(w)
        # What is left of w is round-off: the space is complete.
        complete = length <= 10 * eps(b) * scale
        length = jnp.where(complete, 0.0, length)
        h = h.at[:, j + 1].set(length)

        h = jnp.einsum("bij,bj->bi", c.rotations, h, precision="highest")
        p, q = h[:, j], h[:, j + 1]
        radius = jnp.hypot(p, q)
        cos = jnp.where(radius > 0, p / jnp.where(radius > 0, radius, 1), 1.0)
        sin = jnp.where(radius > 0, q / jnp.where(radius > 0, radius, 1), 0.0)
        upper, lower = c.rotations[:, j], c.rotations[:, j + 1]
        cos_, sin_ = cos[:, None], sin[:, None]
        rotations = c.rotations.at[:, j].set(cos_ * upper + sin_ * lower)
        rotations = rotations.at[:, j + 1].set(cos_ * lower - sin_ * upper)
        column = jnp.where(index[:memory] < j, h[:, :memory], 0).at[:, j].set(radius)

        run = c.running
        residual = jnp.where(run, size * jnp.abs(rotations[:, j + 1, 0]), c.residual)
        keep = run[:, None, None]
        inverse = jnp.where(length > 0, 1 / jnp.where(length > 0, length, 1), 0.0)
        return _Arnoldi(
            j=j + 1,
            # After all reads of the basis, so that it is written in place: see `History`. There is
            # no place for the vector after the last.
            basis=c.basis.push(_scale(inverse, w), j + 1, finite(run & (j + 1 < memory), length)),
            rotations=jnp.where(keep, rotations, c.rotations),
            triangle=jnp.where(keep, c.triangle.at[:, :, j].set(column), c.triangle),
            residual=residual,
            running=run & ~complete & (residual > target) & (j + 1 < memory),
            products=c.products + run,
        )

    worth = (size > target) & jnp.isfinite(size)
    identity = jnp.eye(memory + 1, dtype=size.dtype) + zero[:, None, None]
    first = _scale(jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0.0), b)
    start = _Arnoldi(
        j=jnp.zeros((), jnp.int32),
        basis=History.zeros(b, memory).push(first, jnp.zeros((), jnp.int32), None),
        rotations=identity,
        triangle=zero_scalars(b, memory, memory),
        residual=size,
        running=worth if active is None else worth & active,
        products=zero.astype(jnp.int32),
    )
    c = f.repeat(body, start, lambda c: c.running)
    # Columns that were never made are zero: their unknowns are dropped.
    largest = jnp.max(jnp.abs(c.triangle), axis=(1, 2))
    unit = jnp.where(largest > 0, 1 / jnp.where(largest > 0, largest, 1), 0.0)
    rhs = (size * unit)[:, None] * c.rotations[:, :memory, 0]
    system = joined(c.triangle * unit[:, None, None], rhs, jnp.ones_like(rhs))
    # On a singular system the last pivots are round-off, larger ones the more vectors it went
    # through: the directions that they stand for are left out, which is the least-norm step.
    y = solve_small(system, 4 * memory * eps(b))
    return c.basis.combine(y), c.products


def _scale(c: jax.Array, v: PyTree) -> PyTree:
    return jax.tree.map(lambda x: per_sample(c, x).astype(x.dtype) * x, v)
