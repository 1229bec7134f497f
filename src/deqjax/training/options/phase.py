"""What a training step computes."""

from __future__ import annotations

from typing import Any, NamedTuple

from ...solvers.base import DEFAULT_MAX_STEPS


class Phase(NamedTuple):
    """What a training step computes. Each that occurs in a run is compiled once.

    Attributes:
        depth: a stack of so many applications; None, the solve.
        adjoint: the gradient of the solve; None, the model's own.
        fewer_steps: how many solver steps fewer than the model's own `max_steps` are allowed.
    """

    depth: int | None = None
    adjoint: str | None = None
    fewer_steps: int = 0

    def keywords(self, max_steps: int | None) -> dict[str, Any]:
        """For the call of a `DEQ` whose own limit is `max_steps`; None is a solver's default."""
        if self.fewer_steps:
            max_steps = max(1, (max_steps or DEFAULT_MAX_STEPS) - self.fewer_steps)
        return dict(depth=self.depth, adjoint=self.adjoint, max_steps=max_steps)
