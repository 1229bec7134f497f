"""Solvers made of solvers: a warm start before one, compaction around one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .._errors import check_integer
from .base import Solver


@dataclass(frozen=True)
class Wrapper(Solver):
    """A solver that runs another one: everything but its purpose is the other's."""

    solver: str | Solver = "anderson"

    def __post_init__(self):
        inner = _solver(self.solver, f"{type(self).__name__}(solver)")
        # Tolerances given to either are those of both.
        given = {k: getattr(self, k) for k in Solver.options()}
        inner = inner.with_options(**given)
        object.__setattr__(self, "solver", inner)
        for name in given:
            object.__setattr__(self, name, getattr(inner, name))
        super().__post_init__()

    @property
    def inner(self) -> Solver:
        assert isinstance(self.solver, Solver)
        return self.solver

    def done(self, residual, f_norm, tol):
        return self.inner.done(residual, f_norm, tol)

    def first_guess(self, z0):
        return self.inner.first_guess(z0)

    def phases(self):
        return self.inner.phases()

    def batch_sizes(self, batch):
        return self.inner.batch_sizes(batch)

    def check_call(self, *, batched, exact_modes):
        self.inner.check_call(batched=batched, exact_modes=exact_modes)

    def unrolled(self):
        return replace(self, solver=self.inner.unrolled())

    @property
    def differentiates(self):
        return any(solver.differentiates for solver, _ in self.phases())

    @property
    def learns_slopes(self):
        return all(solver.learns_slopes for solver, _ in self.phases())

    def for_adjoint(self):
        return replace(self, solver=self.inner.for_adjoint())


@dataclass(frozen=True)
class WarmStart(Wrapper):
    """Start a solve better: from a cheap solver's last iterate, or from a function's guess.

    Args:
        solver: the solver that finishes; a name or an object.
        start: a solver (a name or an object) that goes first, for at most `steps` steps; or a
            function z0 -> z0', such as a learned initialiser closed over its input. No gradient
            reaches the function through the solve, since z* does not depend on z0: train it with
            a loss of its own, ‖start(z0) − z*‖² say.
        steps: steps of a solver that goes first; they count towards max_steps.

    To start from an earlier solution pass `z0=sol.z`, and `resume=sol.state` to use its history.

    Examples:
        >>> import jax.numpy as jnp, deqjax
        >>> solver = deqjax.WarmStart("broyden", start="picard", steps=3)
        >>> sol = deqjax.fixed_point(jnp.cos, jnp.zeros(2), solver=solver)
        >>> bool(sol.stats.converged)
        True
    """

    start: str | Solver | Callable = "picard"
    steps: int = 3

    name = "warm_start"

    def __post_init__(self):
        super().__post_init__()
        check_integer("steps", self.steps, least=1)
        if isinstance(self.start, type) or not callable(self.start):
            object.__setattr__(self, "start", _solver(self.start, "WarmStart(start)"))

    def first_guess(self, z0):
        z0 = self.inner.first_guess(z0)
        return z0 if isinstance(self.start, Solver) else self.start(z0)  # type: ignore[operator]

    def unrolled(self):
        start = self.start.unrolled() if isinstance(self.start, Solver) else self.start
        return replace(super().unrolled(), start=start)

    def phases(self):
        first = ((self.start, self.steps),) if isinstance(self.start, Solver) else ()
        return (*first, *self.inner.phases())

    def for_adjoint(self):
        return self.inner.for_adjoint()


@dataclass(frozen=True)
class Compacted(Wrapper):
    """Cost follows the mean sample and not the slowest: finished samples are left behind.

    As soon as the unfinished samples fit into the next smaller batch they are gathered into it, and
    f is evaluated on that batch alone, inside one compiled program. Every sample takes the steps
    that it would take without, up to the rounding of other matrix shapes. The same holds in the
    adjoint solve.

    Needs `batch_axis`, and an f whose samples are independent and which accepts any batch size: all
    that has one row a sample goes through `*args` (which of them do is found out by tracing). One
    last evaluation on the whole batch checks that; where it disagrees (f draws random masks, or
    takes statistics over the batch), the status is `Status.INCONSISTENT`.

    Compile time grows with the number of stages, since each has a loop of its own. Do not use it
    where all samples converge alike.

    Args:
        solver: the solver to run; a name or an object.
        stages: how often the batch is halved; or the batch sizes, as a decreasing tuple.

    Examples:
        >>> import jax.numpy as jnp, deqjax
        >>> f = lambda z, x: jnp.tanh(0.9 * z + x)
        >>> x = jnp.linspace(0.0, 3.0, 16)[:, None]
        >>> solver = deqjax.Compacted("picard", stages=2)
        >>> sol = deqjax.fixed_point(f, jnp.zeros_like(x), x, solver=solver, batch_axis=0)
        >>> bool(sol.stats.converged.all())
        True
    """

    stages: int | tuple[int, ...] = 3

    name = "compacted"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.stages, tuple | list):
            object.__setattr__(self, "stages", tuple(self.stages))
            for size in self.stages:
                check_integer("every batch size in stages", size, least=1)
            if list(self.stages) != sorted(set(self.stages), reverse=True):
                raise ValueError(
                    f"stages must be decreasing batch sizes, such as (32, 8); got {self.stages}"
                )
        else:
            check_integer("stages", self.stages, least=0)

    def check_call(self, *, batched, exact_modes):
        super().check_call(batched=batched, exact_modes=exact_modes)
        if not self.stages:
            return
        if not batched:
            raise ValueError(
                "Compacted() leaves finished samples behind, but batch_axis=None is one equation: "
                "pass batch_axis, or the solver without Compacted()"
            )
        if exact_modes:
            raise ValueError(
                f"Compacted() does not go with {exact_modes}: pass the solver without Compacted()"
            )

    def batch_sizes(self, batch):
        stages: Any = self.stages
        sizes = stages if isinstance(stages, tuple) else [batch >> i + 1 for i in range(stages)]
        return tuple(n for n in sizes if 0 < n < batch)


def _solver(given, keyword: str) -> Solver:
    from . import as_solver  # the package imports this file

    return as_solver(given, keyword)
