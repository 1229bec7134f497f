"""The options of a solve, and the choice of solver and gradient, in one place for all entries."""

from __future__ import annotations

from typing import Any, TypedDict

from ._solution import Stats
from .adjoints import Adjoint, as_adjoint
from .solvers import Solver, as_solver


class Options(TypedDict, total=False):
    """The keywords of `fixed_point`, which says what they mean."""

    solver: str | Solver
    adjoint: str | Adjoint
    adjoint_solver: str | Solver | None
    rtol: float | None
    atol: float | None
    max_steps: int | None
    batch_axis: int | None
    forward_mode: bool
    trace: bool
    resume: Any
    scale: Any
    on_failure: str | None
    adjoint_probe: Stats | None
    stability: int | None


DEFAULTS: Any = dict.fromkeys(Options.__annotations__) | dict(
    solver="anderson", adjoint="implicit", forward_mode=False, trace=False
)


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
