"""What a solver is: a frozen dataclass of options and a rule for the next point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._closure import loop_carry
from .._configured import Configured
from .._errors import check_integer, check_tolerance
from .._measure import Measure, Tolerances
from .._state import (
    cast_like,
    norm,
    per_sample,
    round_to,
    scalar_dtype,
    select,
    subtract,
    wide,
)

PyTree = Any

DEFAULT_MAX_STEPS = 100


class Point(NamedTuple):
    """An iterate, f of it, r = f(z) − z in float32 at least, and (‖r‖, ‖f(z)‖).

    r and norms are in the solve's own unit, see `Cell`. A solver's step is given all four.
    What it does not read costs nothing: a value that no step of a compiled loop reads is not
    carried through it.
    """

    z: PyTree
    fz: PyTree
    r: PyTree
    norms: tuple[jax.Array, jax.Array]

    @classmethod
    def of(cls, z: PyTree, fz: PyTree) -> Point:
        """The point in units of one."""
        return Cell(lambda z: z).point(z, fz)

    def replacing(self, r: PyTree, change: PyTree, late: jax.Array) -> Point:
        """This point, its r written as one that may overwrite the r it differs from.

        r⁺ = r + change, so both sides of the selection are the same but for rounding. It hangs on
        `late`, (batch,), a mask that is known only after the last use of r: XLA then needs no copy
        of r.
        """
        same = jax.tree.map(jnp.add, r, change)
        return self._replace(r=select(late, self.r, same))


class Step(NamedTuple):
    """What `Solver.step` returns: the next point, the next state, and what it cost in f."""

    point: Point
    state: PyTree
    f_evals: jax.Array | int = 1


@dataclass(frozen=True, eq=False)
class Cell:
    """The equation as a solver sees it: f, callable on states with the batch on axis 0.

    Residuals, and so histories and small systems, are in units of `measure.unit`, a power of two
    for each sample: numbers of about 1, whatever the units of z. z and f(z) are as they are; what a
    solver adds to z goes through `moved` or `plus`, which take it in these units.

    A root g(z) = 0 comes as f(z) = z + slope·g(z), with the residual slope·g(z) as g gave it.

    Attributes:
        call: z -> f(z), or z -> g(z).
        collectives: named axes over which f communicates. Devices along them must take the same
            number of steps in every loop that calls f, or they would wait for each other for ever.
        frozen: where the samples that have ended wait, and (batch,) which ones go on; None if all.
        measure: see `deqjax._measure`; None is a unit of one.
        tol: the tolerances of the solve.
    """

    call: Callable
    collectives: tuple = ()
    frozen: tuple[PyTree, jax.Array] | None = None
    measure: Measure | None = None
    tol: Tolerances = Tolerances(0.0, 0.0, 0)  # noqa: RUF009 - immutable

    def __call__(self, z: PyTree) -> PyTree:
        return self._map(z, self.call(z))

    def _map(self, z: PyTree, value: PyTree) -> PyTree:
        """f(z), from what `call` gave."""
        if not self.is_root:
            return value
        return added(z, value, self.measure.slope)  # type: ignore[union-attr]

    @property
    def is_root(self) -> bool:
        return self.measure is not None and self.measure.slope is not None

    def point(self, z: PyTree, value: PyTree) -> Point:
        """The point at z, where `call` gave `value`."""
        m = self.measure
        if m is None:
            r = subtract(value, z)
            return Point(z, value, r, (norm(r), norm(value)))
        if m.slope is None:
            r = self.difference(value, z)
        else:
            value_ = jax.tree.map(lambda x: x.astype(wide(x.dtype)), value)
            r = _scaled(value_, m.slope / m.unit)
        # A problem with a yardstick of its own has no use for the length of f(z).
        length = norm(value) / m.unit if m.given is None else m.given
        return Point(z, self._map(z, value), r, (norm(r), length))

    def at(self, z: PyTree) -> Point:
        """The next point of a step: z and f(z). Samples that have ended stay where they are."""
        if self.frozen is not None:
            where, going = self.frozen
            z = select(going, z, where)
        return self.point(z, self.call(z))

    def moved(self, z: PyTree, step: PyTree) -> tuple[PyTree, Point]:
        """The point at z + step, and the step as the rounding of z + step has left it.

        z may be overwritten in place: only the sum reads it after the step is known.
        """
        if self.frozen is not None:
            step = select(self.frozen[1], step, jax.tree.map(jnp.zeros_like, step))
        step = jax.tree.map(partial(_rounded_step, self.inverse_unit), z, step)
        z = self.plus(z, step)
        if self.frozen is not None:
            z = select(self.frozen[1], z, self.frozen[0])
        return step, self.point(z, self.call(z))

    def plus(self, z: PyTree, step: PyTree) -> PyTree:
        """z + step, in the dtypes of z."""
        return jax.tree.map(
            lambda x, d: (x.astype(d.dtype) + d).astype(x.dtype), z, self._in_z(step)
        )

    def difference(self, new: PyTree, old: PyTree) -> PyTree:
        """new − old, in units."""
        # Scaled before and not after: of a difference of two arrays XLA makes one, and all who read
        # it do so; a multiple of one array it computes anew in each of their kernels.
        return subtract(self._in_units(new), self._in_units(old))

    def linearised(self, z: PyTree) -> Callable[[PyTree], PyTree]:
        """v -> (I − J) v, minus the derivative of the residual at z, in float32 at least."""
        _, jacobian = jax.linearize(self.call, z)

        def product(v):
            jv = jacobian(cast_like(v, z))
            if not self.is_root:
                return subtract(v, jv)
            jv = jax.tree.map(lambda x: x.astype(wide(x.dtype)), jv)
            return _scaled(jv, -self.measure.slope)  # type: ignore[union-attr]

        return product

    def limit(self, point: Point) -> jax.Array:
        """What the residual may be for the solve to have converged, (batch,)."""
        tol, length = self.tol, point.norms[1]
        if self.measure is not None:
            length, tol = self.measure.limit(length, tol)
        return tol.atol + tol.rtol * length

    @property
    def inverse_unit(self) -> jax.Array | None:
        return None if self.measure is None else 1 / self.measure.unit

    def _in_z(self, step: PyTree) -> PyTree:
        return step if self.measure is None else _scaled(step, self.measure.unit)

    def _in_units(self, z: PyTree) -> PyTree:
        return jax.tree.map(partial(_times, self.inverse_unit), z)

    def anywhere(self, mask: jax.Array) -> jax.Array:
        """Whether any sample is in the mask, on any device that f communicates with."""
        found = jnp.any(mask)
        if self.collectives:
            found = lax.pmax(found.astype(jnp.int32), self.collectives) > 0
        return found

    def repeat(self, body: Callable, carry: PyTree, unfinished: Callable) -> PyTree:
        """Apply `body` to `carry` while any sample is `unfinished(carry)`; body masks the others.

        For loops inside a step: line searches, Krylov spaces.
        """
        carry = loop_carry(body, carry)
        return lax.while_loop(lambda c: self.anywhere(unfinished(c)), body, carry)


def _times(c: jax.Array | None, x: jax.Array) -> jax.Array:
    """c·x in the dtype of arithmetic; None is one."""
    x = x.astype(wide(x.dtype))
    return x if c is None else x * per_sample(c, x).astype(x.dtype)


def _rounded_step(inverse_unit, z, step):
    """(z + step) − z in units, with the sum rounded to z's dtype: a unit is a power of two, and
    rounding does not mind it."""
    wide_z = _times(inverse_unit, z).astype(step.dtype)
    return round_to(z.dtype, wide_z + step) - wide_z


def _scaled(a: PyTree, c: jax.Array) -> PyTree:
    return jax.tree.map(lambda x: per_sample(c, x).astype(x.dtype) * x, a)


def added(z: PyTree, value: PyTree, slope: jax.Array) -> PyTree:
    """z + slope·value, in the dtypes of z."""

    def leaf(x, y):
        y = y.astype(wide(y.dtype))
        return (x.astype(y.dtype) + per_sample(slope, y).astype(y.dtype) * y).astype(x.dtype)

    return jax.tree.map(leaf, z, value)


@dataclass(frozen=True, kw_only=True)
class Solver(Configured):
    """Base of all solvers. A new one is one file: a frozen dataclass with `init` and `step`.

    The driver owns the loop, the stop test, the best iterate and the freezing of finished samples;
    a solver owns only its update. All states that a solver sees carry the batch on axis 0, and all
    its scalars are per sample, (batch,): see `deqjax._state`.

    Attributes:
        rtol: relative tolerance; None means 1e-5 in float32, 1e-8 in float64, 2e-2 in bfloat16 and
            4e-3 in float16 (the narrowest dtype of the state decides).
        atol: absolute tolerance, in the units of z. None means 0, with 1e-7 * rtol of the largest
            size that the problem has shown on top of rtol: enough to stop at z* = 0, and free of
            units.
        max_steps: None means 100.
    """

    rtol: float | None = None
    atol: float | None = None
    max_steps: int | None = None

    name: ClassVar[str] = "solver"
    # Whether a step takes derivatives of f (`Cell.linearised`), as far as is known.
    differentiates: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_tolerance("rtol", self.rtol)
        check_tolerance("atol", self.atol)
        check_integer("max_steps", self.max_steps, least=0, optional=True)

    def init(self, point: Point, max_steps: int) -> PyTree:
        """The state before the first step."""
        raise NotImplementedError

    def resume(self, state: PyTree, point: Point, k: jax.Array) -> PyTree:
        """An earlier solve's state, with whatever in it depends on the point made anew.

        k: int32, how many steps made the state.
        """
        return state

    def step(
        self, f: Cell, point: Point, state: PyTree, k: jax.Array, active: jax.Array | None
    ) -> Step:
        """One update: choose z⁺, evaluate f there, learn from the difference.

        Args:
            f: z -> f(z).
            point: the current iterate and its value.
            state: from `init` or the previous step.
            k: int32, how many steps were taken before.
            active: (batch,) bool, samples still running; None if all are. Only history pushes need
                it, everything else is frozen by the driver.
        """
        raise NotImplementedError

    def done(self, residual: jax.Array, yardstick: jax.Array, tol: Tolerances) -> jax.Array:
        """‖f(z) − z‖ ≤ atol + rtol·yardstick, per sample; ‖f(z)‖ as a rule (`deqjax._measure`)."""
        return residual <= tol.atol + tol.rtol * yardstick

    def tolerances(self, z: PyTree) -> Tolerances:
        """This solver's tolerances for a state like z, defaults filled in."""
        rtol = self.rtol
        if rtol is None:
            rtol = max(_default_rtol(x.dtype) for x in jax.tree.leaves(z))
        max_steps = DEFAULT_MAX_STEPS if self.max_steps is None else self.max_steps
        roundoff = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(z)) / 2
        if self.atol is None:
            return Tolerances(rtol, 0.0, max_steps, floor=1e-7 * rtol, roundoff=roundoff)
        return Tolerances(rtol, self.atol, max_steps, roundoff=roundoff)

    def first_guess(self, z0: PyTree) -> PyTree:
        """Where to start, in the caller's layout."""
        return z0

    def phases(self) -> tuple[tuple[Solver, int | None], ...]:
        """The solvers that take the steps in turn, and how many each (None: all that are left)."""
        return ((self, None),)

    def batch_sizes(self, batch: int) -> tuple[int, ...]:
        """Smaller batches to gather the unfinished samples into, in turn."""
        return ()

    def check_call(self, *, batched: bool, exact_modes: str | None) -> None:
        """Refuse, in one sentence, a call that this solver does not go with.

        exact_modes: what in the call asks for other derivatives than a rule for reverse mode gives.
        """

    def unrolled(self) -> Solver:
        """This solver with steps that reverse mode goes through; refused where a step runs loops
        of unknown length."""
        return self

    @property
    def learns_slopes(self) -> bool:
        """Whether it finds the slope of the residual by itself, so that a root's may be given a
        first guess of it (`deqjax._root`)."""
        return True

    def for_adjoint(self) -> Solver:
        """The member of this solver's family for the linear equation u = Jᵀu + v."""
        return self

    def with_options(self, **options) -> Solver:
        """A copy in which every option given that is not None replaces the solver's own."""
        return replace(self, **{k: v for k, v in options.items() if v is not None})


def no_reverse_mode(solver: Solver) -> ValueError:
    """What `Solver.unrolled` raises."""
    return ValueError(
        "adjoint='unrolled' cannot differentiate the loops inside a step of "
        f"{solver.name!r}, whose length is not known: use adjoint='implicit', or 'anderson'"
    )


def _default_rtol(dtype) -> float:
    precision = {2: 1e-5, 4: 1e-5, 8: 1e-8}
    if dtype == jnp.bfloat16:
        return 2e-2
    if dtype == jnp.float16:
        return 4e-3
    return precision[jnp.finfo(dtype).dtype.itemsize]


def eps(z: PyTree) -> float:
    """Unit round-off of the per-sample scalars for z."""
    return float(jnp.finfo(scalar_dtype(z)).eps)
