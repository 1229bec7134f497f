"""Solvers by name. A new one: one file here and one line in `SOLVERS`."""

from __future__ import annotations

from .._errors import by_name
from .anderson import Anderson
from .base import Solver
from .broyden import Broyden
from .picard import Picard

SOLVERS: dict[str, type[Solver]] = {s.name: s for s in (Picard, Anderson, Broyden)}


def as_solver(given: str | Solver, keyword: str = "solver") -> Solver:
    """The solver that a name or an object stands for."""
    return by_name(given, Solver, SOLVERS, keyword, "deqjax.Anderson(memory=6)")


__all__ = ["SOLVERS", "Anderson", "Broyden", "Picard", "Solver", "as_solver"]
