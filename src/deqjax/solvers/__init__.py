"""Solvers by name. A new one: one file here and one line in `SOLVERS`."""

from __future__ import annotations

from .._errors import suggest
from .anderson import Anderson
from .base import Solver
from .broyden import Broyden
from .picard import Picard

SOLVERS: dict[str, type[Solver]] = {s.name: s for s in (Picard, Anderson, Broyden)}


def as_solver(given: str | Solver, keyword: str = "solver") -> Solver:
    """The solver that a name or an object stands for."""
    if isinstance(given, Solver):
        return given
    if isinstance(given, str):
        if given not in SOLVERS:
            raise ValueError(f"{keyword}={given!r} is not a solver{suggest(given, SOLVERS)}")
        return SOLVERS[given]()
    if isinstance(given, type) and issubclass(given, Solver):
        raise TypeError(f"{keyword}= needs an object: write {given.__name__}()")
    raise TypeError(
        f"{keyword}= takes a name ({', '.join(sorted(SOLVERS))}) or a deqjax solver such as "
        f"deqjax.Anderson(memory=6), not {type(given).__name__}"
    )


__all__ = ["SOLVERS", "Anderson", "Broyden", "Picard", "Solver", "as_solver"]
