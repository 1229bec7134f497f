"""What a residual is measured against: the one place that knows when a small one is a solution.

A solver can make any relative residual small by running away: z + 1 is as close to z as one likes
at a z that is large enough. So the yardstick of a stop test belongs to the problem and not to the
iterate. It is

- ‖v‖ for a linear equation u = Jᵀu + v, as everywhere in linear algebra;
- for z = f(z), ‖f(z)‖, but not more than `REACH` times the largest size S that the problem has
  shown, ‖f(z₀)‖ and the residuals on the way: a residual must have been brought down;
- for g(z) = 0, what g changes by when the unknowns change by as much as they are
  (`root_yardstick`).

And a residual counts as no smaller than the rounding of the z that it was computed at, where that
z is beyond `REACH` times S.

Everything is per sample and in units of the sample's own (`unit`), a power of two, so that nothing
here or in a solver depends on the units of z, g or the loss, to the last bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ._state import largest, scalar_dtype

PyTree = Any

# How many times S a solution may be long and still be tested against its own length. In float32 at
# the default rtol, f(z) = Jz + b with |z*| = 1000 |b| rounds at 6e-5 |b|, and is asked for 1e-3.
REACH = 100.0
# A residual that is tested against a length beyond S must have come down to this part of S, and
# to a tenth of it unless rtol asks for less than that at ten times S.
BROUGHT_DOWN = 0.1
# The least part of ‖f(z)‖ that a residual is, for it to be more than rounding.
SEEN = 1e-2


class Tolerances(NamedTuple):
    """rtol, atol and max_steps of a solve, and what else its stop test needs to know.

    Attributes:
        floor: what a residual may always be, relative to S: it ends a solve at z* = 0.
        roundoff: unit round-off of the narrowest dtype in the state.
    """

    rtol: float
    atol: float
    max_steps: int
    floor: float = 0.0
    roundoff: float = 0.0

    @property
    def attainable(self) -> Tolerances:
        """These, for what rounding alone decides: a residual may be asked to be zero, and be it,
        where its rounding never is."""
        return self._replace(rtol=self.roundoff**0.5) if self.rtol == self.atol == 0 else self

    @property
    def reach(self) -> float:
        """How many times S the yardstick may be."""
        if self.rtol == 0:
            return REACH
        return max(
            1.0, min(REACH, max(10.0, 0.1 * BROUGHT_DOWN / self.rtol), BROUGHT_DOWN / self.rtol)
        )


class Measure(NamedTuple):
    """Of one solve; all (batch,).

    Attributes:
        unit: a power of two. Residuals and norms are in it.
        shown: S, in units; negative once the residual has fallen, and fixed from then on.
        given: the yardstick of a problem that has one of its own, in units; None is ‖f(z)‖.
        slope: for g(z) = 0: f(z) = z + slope·g(z) is what a solver sees. None for z = f(z).
    """

    unit: jax.Array
    shown: jax.Array
    given: jax.Array | None = None
    slope: jax.Array | None = None

    @property
    def size(self) -> jax.Array:
        """S, (batch,)."""
        return self.shown if self.given is not None else jnp.abs(self.shown)

    def limit(self, length: jax.Array, tol: Tolerances) -> tuple[jax.Array, Tolerances]:
        """(yardstick, tolerances) for `Solver.done` at a point whose f(z) is so long, in units."""
        absolute: Any = tol.floor * self.size
        if tol.atol:
            absolute = tol.atol / self.unit
            if self.slope is not None:
                absolute *= jnp.abs(self.slope)
        tol = tol._replace(atol=absolute)
        if self.given is not None:
            return self.given, tol
        return jnp.minimum(length, tol.reach * self.size), tol

    def resolved(self, residual: jax.Array, length: jax.Array, tol: Tolerances) -> jax.Array:
        """The residual, but no less than the rounding of a z that has run away."""
        if self.given is not None:
            return residual
        rounding = jnp.where(self.inflated(length, tol), tol.roundoff * length, 0)
        return jnp.maximum(residual, rounding)

    def inflated(self, length: jax.Array, tol: Tolerances) -> Any:
        """Whether f(z) is longer than it may be to count."""
        return False if self.given is not None else length > tol.reach * self.size

    def lost(self, length: jax.Array, tol: Tolerances) -> Any:
        """Whether z is so large that a residual of size S would vanish in its rounding."""
        return False if self.given is not None else tol.roundoff * length > self.size

    def seen(
        self,
        before: jax.Array,
        residual: jax.Array,
        length: jax.Array,
        active: jax.Array,
        tol: Tolerances,
    ) -> Measure:
        """S with a residual that was met on the way, the one `before` it known.

        Only while residuals rise from the start, away from an unstable equilibrium: once they have
        fallen, a large one is an excursion of the solver's and not the problem's. Not where it is
        small beside its z (rounding); and a single step counts for ten times S.
        """
        if self.given is not None:
            return self
        rising = (self.shown > 0) & active & (residual >= 0.99 * before)
        true = rising & (residual >= max(SEEN, tol.roundoff**0.5) * length) & (residual < jnp.inf)
        raised = jnp.minimum(jnp.maximum(residual, self.size), 10 * self.size)
        size = jnp.where(true, raised, self.size)
        return self._replace(shown=jnp.where(rising, size, -size))


def power_of_two(size: jax.Array, least: float | None = None) -> jax.Array:
    """A power of two near size; 1 for 0, and for what is not finite. No gradient flows through it.

    least: sizes below it count as it, and those above its inverse as that; None is a bound whose
    square is a number, so that states may still grow or shrink.
    """
    kept = jnp.finfo(size.dtype)
    bound = float(kept.tiny) ** 0.47 if least is None else least
    size = lax.stop_gradient(size)
    size = jnp.where(
        (size > 0) & (size < jnp.inf), jnp.minimum(jnp.maximum(size, bound), 1 / bound), 1
    )
    return lax.reduce_precision(size, kept.nexp, 0)


def unit_of(z: PyTree, value: PyTree, *, linear: bool = False) -> jax.Array:
    """The unit of a problem with z and f(z): near their largest entry in each sample, (batch,).

    linear: of u = Jᵀu + v, with z = v, whose numbers stay about as they start.
    """
    # Of both at once: z is often zeros, v is ones where a loss is a sum, and XLA would spend a
    # second on the largest entry of a large constant when it compiles.
    both = jax.tree.map(lambda x, y: jnp.maximum(jnp.abs(x), jnp.abs(y)), z, value)
    size = largest(lax.stop_gradient(both)).astype(scalar_dtype(z))
    return power_of_two(size, 4 * float(jnp.finfo(size.dtype).tiny) if linear else None)
