"""The exact gradient by the implicit function theorem."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from ..solvers import Solver, as_solver
from .base import Adjoint


@dataclass(frozen=True, kw_only=True)
class Implicit(Adjoint):
    """Exact: solves u = Jᵀu + v by a fixed-point solver, to that solver's tolerance.

    The adjoint equation is itself a fixed point and goes through `fixed_point`'s own machinery:
    same driver, same solvers, same stop test and per-sample freezing, same statistics (see
    `adjoint_probe`), and, since that machinery is differentiable, right to any order in reverse
    mode. One linearisation of f at z* serves all steps. Memory does not grow with the number of
    steps. (Bai, Kolter and Koltun 2019, Theorem 1.)

    If the adjoint solve fails, the best u it saw is used, at worst u = v, which is 'jfb'.

    u is linear in v, which is divided by the size of its largest entry over all samples and u
    multiplied by it: a loss of size 1e-20 has as good a gradient as any, in float32 too. A sample
    whose own v is 1e-14 times the largest is below what float32 squares hold, and gets u = v.

    Attributes:
        solver: a name or a solver ('gmres' among them); None means the forward solver's family.
            If it leaves rtol or max_steps at None, they are those of the forward solve. Its atol is
            then 0: the equation is linear in v, whose size is that of the loss and has nothing to
            do with that of z, so that an absolute tolerance would take a small loss for a solved
            equation.
    """

    solver: str | Solver | None = None

    name = "implicit"
    exact = True

    def __post_init__(self):
        if self.solver is not None:
            object.__setattr__(self, "solver", as_solver(self.solver, "Implicit(solver)"))

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
        taken = dict(rtol=rtol, max_steps=forward.max_steps, atol=0.0) | own
        return replace(self, solver=solver.with_options(**taken))

    @property
    def leaves_samples_behind(self):
        return isinstance(self.solver, Solver) and self.solver.leaves_samples_behind

    @property
    def any_size(self):
        """Not where a tolerance is absolute."""
        absolute = isinstance(self.solver, Solver) and self.solver.atol != 0
        return super().any_size and not absolute

    def batch_sizes(self, batch):
        return self.solver.batch_sizes(batch) if isinstance(self.solver, Solver) else ()

    def cotangent(self, pull, v, solve, end):
        """u = Jᵀu + v, started at v."""
        assert isinstance(self.solver, Solver), "resolve() has filled it in"
        return solve(lambda u: jax.tree.map(jnp.add, pull(u), v), v, self.solver)
