"""The choice of solver and gradient, made in one place for every entry point."""

from __future__ import annotations

from .adjoints import Adjoint, as_adjoint
from .solvers import Solver, as_solver


def choose(
    *,
    solver: str | Solver,
    adjoint: str | Adjoint,
    adjoint_solver: str | Solver | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
) -> tuple[Solver, Adjoint]:
    """The solver with its options final, and the adjoint with its own solver filled in.

    Raises one sentence for whatever is wrong. The arguments are those of `fixed_point`.
    """
    forward = as_solver(solver).with_options(rtol=rtol, atol=atol, max_steps=max_steps)
    backward = None if adjoint_solver is None else as_solver(adjoint_solver, "adjoint_solver")
    gradient = as_adjoint(adjoint).resolve(forward, backward)
    return gradient.forward_solver(forward), gradient
