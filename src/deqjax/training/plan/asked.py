"""What a command asks of a plan, and how it is answered."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

from ..options import OptionError, SolverOptions
from ._plan import Plan, largest
from .report import largest_text, report


@dataclass(frozen=True)
class Asked:
    """What is printed of a plan."""

    forward_steps: float | None = None
    """mean steps of the forward solves, for the totals; the solver's limit if not given"""
    adjoint_steps: float | None = None
    """mean steps of the adjoint solves; the solver's limit if not given"""
    largest_batch: bool = False
    """look for the largest global batch that fits, by compiling again and again"""
    evaluations: bool = True
    """compile f and its pull-back alone as well"""
    json: bool = False
    """print everything as JSON instead"""

    def check(self) -> None:
        if min(given or 0.0 for given in (self.forward_steps, self.adjoint_steps)) < 0:
            raise OptionError("--forward-steps and --adjoint-steps must not be negative")


def show(of: Callable[[int | None, bool], Plan], batch: int | None, asked: Asked) -> None:
    """Print a plan, as a report or as JSON.

    Args:
        of: (global batch or None, whether to compile f alone as well) -> the plan.
        batch: the one to begin with; None, its own.
    """
    asked.check()
    found = of(batch, asked.evaluations)
    most = found.max_steps
    if most is None:
        most = (found.solver or SolverOptions()).max_steps
    given = asked.forward_steps, asked.adjoint_steps
    forward, adjoint = (float(most if steps is None else steps) for steps in given)
    if not asked.json:
        print(report(found, forward, adjoint), flush=True)
    best = None
    if asked.largest_batch:
        if found.memory.capacity == float("inf"):
            raise OptionError("--largest-batch needs a chip of known memory, not cpu")

        def again(batch: int) -> Plan:
            print(f"compiling for a batch of {batch:,} ...", file=sys.stderr, flush=True)
            return of(batch, False)

        best = largest(found, again)
        if not asked.json:
            print("\n" + largest_text(best, found.shards * found.options.accumulate))
    if asked.json:
        data = found.json(forward, adjoint)
        if best is not None:
            data["largest_batch"] = dict(vars(best))
        print(json.dumps(data, indent=1))
