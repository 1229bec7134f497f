"""A cell applied a number of times: what a stack computes where a solve would find z*."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

from .._errors import check_integer
from .._solution import Solution, Stats
from .._state import norm, subtract, to_front

PyTree = Any


def checked_checkpoint(checkpoint: str) -> str:
    if checkpoint not in ("none", "sqrt"):
        raise ValueError(f"checkpoint must be 'none' or 'sqrt', got {checkpoint!r}")
    return checkpoint


def stacked(
    f: Callable[[PyTree], PyTree],
    z0: PyTree,
    depth: int,
    *,
    batch_axis: int | None,
    checkpoint: str,
    scan: bool,
) -> Solution:
    """f applied `depth` times to z0. Residuals are those of the last application."""
    check_integer("depth", depth, least=1)
    step = lambda pair: (f(pair[0]), pair[0])
    z, previous = _repeated(step, (z0, z0), depth, checkpoint, scan)
    front, before = to_front(z, batch_axis), to_front(previous, batch_axis)
    stats = Stats.unsolved(depth, norm(subtract(front, before)), norm(front))
    if batch_axis is None:
        stats = jax.tree.map(lambda s: s[0], stats)
    return Solution(z=z, stats=stats)


def _repeated(step, carry: PyTree, times: int, checkpoint: str, scan: bool) -> PyTree:
    def repeat(step, carry, times):
        return jax.lax.scan(lambda carry, _: (step(carry), None), carry, length=times)[0]

    if checkpoint == "none" and scan:
        return repeat(step, carry, times)
    if checkpoint == "none":
        for _ in range(times):
            carry = step(carry)
        return carry
    # Loops and not copies of the cell: only they keep a compiler from computing groups ahead of
    # their turn, or from keeping what it should compute again (XLA's CPU back end does both).
    root = math.isqrt(times)
    # Groups of a size that comes out even, if one near the root does.
    size = next((k for k in range(root, root // 2, -1) if times % k == 0), root)
    groups, rest = divmod(times, size)
    carry = repeat(jax.checkpoint(lambda carry: repeat(step, carry, size)), carry, groups)
    return repeat(jax.checkpoint(step), carry, rest) if rest else carry
