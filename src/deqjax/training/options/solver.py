"""Options of the solves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..._options import choose
from ...adjoints import ADJOINTS, Implicit
from ...solvers import SOLVERS, as_solver
from .errors import OptionError


def _named(default: str, what: str, known: Iterable[str]) -> Any:
    """A field whose help lists the names that there are."""
    *most, last = known
    return field(default=default, metadata={"help": f"{what}: {', '.join(most)} or {last}"})


@dataclass(frozen=True)
class SolverOptions:
    """How equilibria and their gradients are computed."""

    solver: str = _named("anderson", "forward solver", SOLVERS)
    adjoint: str = _named("implicit", "gradient", ADJOINTS)
    adjoint_solver: str | None = None
    """solver of the implicit adjoint; the forward one if not given"""
    rtol: float = 1e-3
    """a solve has converged when its residual is at most atol + rtol * |f(z)|"""
    atol: float = 1e-8
    """see rtol"""
    max_steps: int = 30
    """solver steps after which a solve stops unconverged, forward and adjoint"""
    max_gain: float | None = None
    """largest |u|/|v| that the adjoint of a sample may have: beyond it u is scaled down, an
    approximation that keeps one sample near a singular I - J from being the whole gradient"""

    def check(self) -> None:
        choose(**self.keywords())

    def keywords(self) -> dict[str, Any]:
        """For `deqjax.nn.DEQ` and `deqjax.fixed_point`."""
        options = dict(vars(self))
        max_gain, own = options.pop("max_gain"), options.pop("adjoint_solver")
        if self.adjoint != "implicit":
            if max_gain is not None:
                raise OptionError(f"--max-gain goes with adjoint=implicit, not {self.adjoint}")
            return options | dict(adjoint_solver=own)
        solver = as_solver(self.solver).for_adjoint() if own is None else as_solver(own)
        # In training both passes have the same budget.
        solver = solver.with_options(max_steps=self.max_steps)
        return options | dict(adjoint=Implicit(solver=solver, max_gain=max_gain))
