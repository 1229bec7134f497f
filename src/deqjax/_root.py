"""g(z) = 0 as a fixed point: its slope and its yardstick, both measured on g itself.

g has units of its own, so neither z nor z + g(z) says whether a ‖g‖ is small, nor how long a first
step should be. Both come from what g changes by when the unknowns change by as much as they are,

    ‖g(z + δ s∘z) − g(z)‖ / δ ≈ ‖G (s∘z)‖,    G = ∂g/∂z,

with a small δ and weights s from ½ to 1½. Where g is a sum of terms that cancel at the root, it is
about the size of these terms: for g(z) = Az − b it is ‖Az‖ ≈ ‖b‖. A norm of g beside it is free of
the units of z and of g, and does not depend on how far from the root a solve was started, as
‖g(z₀)‖ does, which is what PETSc's relative test compares with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._measure import Measure, power_of_two
from ._state import safe_norm, subtract, wide

PyTree = Any

# As long as z and g agree to this factor in their units, f(z) = z + g(z) is taken as it is.
SAME_UNITS = 8.0


class Root(NamedTuple):
    """What is known of g at z0.

    Attributes:
        slope: f(z) = z + slope·g(z), a power of two, (batch,).
        size: what slope·g is compared with, (batch,).
        value: g(z0).
    """

    slope: jax.Array
    size: jax.Array
    value: PyTree


# Evaluations of g that `balanced` and `measured` take.
BALANCED, MEASURED = 2, 2


def balanced(g: Callable, z0: PyTree, learns: bool) -> Root:
    """How a solve from z0 sees g. learns: whether the solver finds the slope of its steps by
    itself, so that a first guess of it is welcome; Picard's z + g(z) is z + g(z)."""
    value = g(z0)
    change, length = _change(g, z0, value)
    ratio = length / jnp.where(change > 0, change, 1)
    known = (change > 0) & (ratio > 0) & (ratio < jnp.inf)
    known &= (ratio > SAME_UNITS) | (ratio < 1 / SAME_UNITS)
    slope = jnp.where(known & learns, power_of_two(ratio), 1)
    return Root(slope, change * slope, value)


def measured(g: Callable, z: PyTree, measure: Measure) -> jax.Array:
    """The yardstick at z, in the solve's unit."""
    change, _ = _change(g, z, g(z))
    assert measure.slope is not None
    return jnp.where(change < jnp.inf, change * measure.slope / measure.unit, jnp.inf)


def _change(g: Callable, z: PyTree, value: PyTree) -> tuple[jax.Array, jax.Array]:
    """‖g(z + δ s∘z) − g(z)‖ / δ, infinite where g is not finite there, and ‖s∘z‖."""
    z = lax.stop_gradient(z)
    roundoff = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(z))
    delta = 2.0 ** round(math.log2(roundoff) / 2)
    part = jax.tree.map(lambda x: _weights(x) * x.astype(wide(x.dtype)), z)
    moved = jax.tree.map(lambda x, d: (x.astype(d.dtype) + delta * d).astype(x.dtype), z, part)
    change = safe_norm(subtract(g(moved), value)) / delta
    return jnp.where(jnp.isfinite(change), change, jnp.inf), safe_norm(part)


def _weights(x: jax.Array) -> jax.Array:
    """½ to 1½ in the order of the entries: smooth, so that the terms of a differential operator
    are seen at their own size, and not constant, since g may be homogeneous."""
    shape = (1, *x.shape[1:])
    n, index = math.prod(shape), jnp.zeros(shape, jnp.float32)
    if n == 1:
        return index.astype(wide(jnp.finfo(x.dtype).dtype)) + 1
    stride = n
    for axis in range(1, x.ndim):
        stride //= x.shape[axis]
        index += stride * lax.broadcasted_iota(jnp.float32, shape, axis)
    return (0.5 + index / (n - 1)).astype(wide(jnp.finfo(x.dtype).dtype))
