"""Solvers by name. A new one: one file here and one line in `SOLVERS`."""

from __future__ import annotations

from .._errors import by_name
from .anderson import Anderson
from .base import Cell, Point, Solver, Step
from .broyden import Broyden
from .compose import Compacted, WarmStart
from .external import as_external
from .gmres import GMRES
from .newton_krylov import NewtonKrylov
from .picard import Picard

SOLVERS: dict[str, type[Solver]] = {
    s.name: s for s in (Picard, Anderson, Broyden, NewtonKrylov, GMRES)
}


def as_solver(given: str | Solver, keyword: str = "solver") -> Solver:
    """The solver that a name or an object stands for."""
    example = "deqjax.Anderson(memory=6), or a jaxopt or optimistix solver"
    return by_name(as_external(given, keyword), Solver, SOLVERS, keyword, example)


__all__ = [
    "GMRES",
    "SOLVERS",
    "Anderson",
    "Broyden",
    "Cell",
    "Compacted",
    "NewtonKrylov",
    "Picard",
    "Point",
    "Solver",
    "Step",
    "WarmStart",
    "as_solver",
]
