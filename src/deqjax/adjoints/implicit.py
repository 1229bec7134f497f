"""The exact gradient by the implicit function theorem."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from .._errors import check_tolerance
from .._solution import Stats, Status
from .._state import select, times
from ..solvers import Solver, as_solver
from ..solvers.base import DEFAULT_MAX_STEPS
from .base import Adjoint
from .tail import Tail


@dataclass(frozen=True, kw_only=True)
class Implicit(Adjoint):
    """Exact: solves u = Jᵀu + v by a fixed-point solver, to that solver's tolerance.

    The adjoint equation is itself a fixed point and goes through `fixed_point`'s own machinery:
    same driver, same solvers, same stop test and per-sample freezing, same statistics (see
    `adjoint_probe`), and, since that machinery is differentiable, right to any order in reverse
    mode. One linearisation of f at z* serves all steps. Memory does not grow with the number of
    steps. (Bai, Kolter and Koltun 2019, Theorem 1.)

    If the adjoint solve fails, the best u it saw is used, at worst u = v, which is 'jfb'.

    The equation is linear, and its stop test is that of linear solvers, ‖Jᵀu + v − u‖ ≤ rtol·‖v‖:
    near a singular I − J, where u is long, a residual relative to u would say nothing. Each sample
    has its own v and is solved in units of it: a loss of 1e-20, or a sample of such a weight, has
    as good a gradient as any, in float32 too. `Stats.gain` reports ‖u‖/‖v‖.

    Attributes:
        solver: a name or a solver ('gmres' among them); None means the forward solver's family. If
            it leaves rtol at None, it is that of the forward solve; max_steps is its own, 100 if
            None. Its atol is 0 if None: v is as large as the loss makes it, which has nothing to do
            with z, so that an absolute tolerance would take a small loss for a solved equation.
        max_gain: None, exact; or the largest ‖u‖/‖v‖ of a sample, whose u is scaled down to it. An
            approximation, reported as `Status.LIMITED`: it bounds what one sample near a singular
            I − J can do to a gradient, as clipping does for all samples together.
        unconverged: what becomes of a sample whose forward solve did not converge. "exact" solves
            its adjoint at the z that there is; where that is no equilibrium but a near miss (the
            smallest residual that is not zero is where I − J is singular), its u is long and
            belongs to nothing. The others are approximations (`Status.LIMITED`): "jfb" takes u = v,
            "tail" back-propagates through a few more applications of f (`Tail`, at its default, at
            the cost of as many evaluations and pull-backs), "zero" gives it the cotangent zero.
            None of them helps where a derivative of f is NaN at the sample: in what all samples
            share, 0 · NaN is NaN.
    """

    solver: str | Solver | None = None
    max_gain: float | None = None
    unconverged: str = "exact"

    name = "implicit"
    exact = True

    def __post_init__(self):
        super().__post_init__()
        if self.solver is not None:
            object.__setattr__(self, "solver", as_solver(self.solver, "Implicit(solver)"))
        check_tolerance("max_gain", self.max_gain)
        if self.unconverged not in ("exact", "jfb", "tail", "zero"):
            raise ValueError(
                f"unconverged must be 'exact', 'jfb', 'tail' or 'zero', got {self.unconverged!r}"
            )
        if self.max_gain is not None and self.max_gain < 1:
            raise ValueError(f"max_gain must be at least 1, where u = v; got {self.max_gain!r}")

    def resolve(self, forward, adjoint_solver):
        if adjoint_solver is not None and self.solver is not None:
            raise ValueError(
                "the adjoint's solver is given twice: by adjoint=Implicit(solver=...) and by "
                "adjoint_solver=...; keep one"
            )
        given = adjoint_solver or self.solver
        if given is None:
            solver, own = forward.for_adjoint(), {}
        else:
            solver = as_solver(given)
            own = {k: v for k in Solver.options() if (v := getattr(solver, k)) is not None}
        # Where only the forward atol counts, it says how many digits are wanted.
        rtol = (forward.atol or 0.0) if forward.rtol == 0 else forward.rtol
        taken = dict(rtol=rtol, max_steps=DEFAULT_MAX_STEPS, atol=0.0) | own
        return replace(self, solver=solver.with_options(**taken))

    def linear_solver(self, forward):
        assert isinstance(self.solver, Solver), "resolve() has filled it in"
        return self.solver

    def check_call(self, *, batched, exact_modes):
        if isinstance(self.solver, Solver):
            self.solver.check_call(batched=batched, exact_modes=exact_modes)

    def batch_sizes(self, batch):
        return self.solver.batch_sizes(batch) if isinstance(self.solver, Solver) else ()

    def pull_back(self, cell, theta, end, v, solve):
        """The adjoint of the samples that converged and, where asked for, a tail of the others."""
        if self.unconverged not in ("tail", "zero") or end.converged is None:
            return super().pull_back(cell, theta, end, v, solve)
        none = jax.tree.map(jnp.zeros_like, v)
        found = super().pull_back(cell, theta, end, select(end.converged, v, none), solve)
        theta_bar, stats = found
        if self.unconverged == "tail":
            others = select(end.converged, none, v)
            more, _ = Tail().pull_back(cell, theta, end, others, solve)
            theta_bar = jax.tree.map(jnp.add, theta_bar, more)
        return theta_bar, _limited(stats, ~end.converged)

    def cotangent(self, pull, v, solve, end):
        """u = Jᵀu + v, started at v."""
        assert isinstance(self.solver, Solver), "resolve() has filled it in"
        u, stats = solve(lambda u: jax.tree.map(jnp.add, pull(u), v), v, self.solver)
        limited = jnp.zeros_like(stats.converged)
        if self.max_gain is not None:
            limited = stats.gain > self.max_gain
            u = times(u, jnp.where(limited, self.max_gain / stats.gain, 1))
        if self.unconverged == "jfb" and end.converged is not None:
            limited |= ~end.converged
            u = select(end.converged, u, v)
        return u, _limited(stats, limited)


def _limited(stats: Stats, where: jax.Array) -> Stats:
    """The report, of samples of which an approximation was taken."""
    status = jnp.where(where, int(Status.LIMITED), stats.status).astype(jnp.int32)
    return replace(stats, status=status, converged=stats.converged & ~where)
