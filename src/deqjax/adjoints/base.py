"""What an adjoint is: the rule that turns the cotangent of z* into one that f's VJP accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jax import lax

from .._solution import Stats
from ..solvers.base import Solver

PyTree = Any


@dataclass(frozen=True, kw_only=True)
class Adjoint:
    """Base of all adjoints. A new one is one file: a frozen keyword dataclass with `cotangent`.

    At z* = f(z*, θ) the implicit function theorem gives, for an upstream cotangent v,

        dℓ/dθ = uᵀ ∂f/∂θ,   u = Jᵀu + v,   J = ∂f/∂z at z*.

    An adjoint of this kind implements `cotangent`, an exact or approximate u; the final VJP to θ is
    shared. An adjoint that differentiates the solver's own steps sets `differentiates_loop` and
    overrides `loop` instead.

    Attributes:
        exact: True if u solves its equation to the adjoint solver's tolerance.
    """

    name: ClassVar[str] = "adjoint"
    exact: ClassVar[bool] = False
    differentiates_loop: ClassVar[bool] = False
    takes_solver: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        jax.tree_util.register_static(cls)

    def resolve(self, forward: Solver, adjoint_solver: Solver | None) -> Adjoint:
        """This adjoint with everything that it takes over from the call filled in."""
        if adjoint_solver is not None:
            raise ValueError(
                f"adjoint_solver= has no effect with adjoint={self.name!r}, which solves no "
                "adjoint equation: leave it out or use adjoint='implicit'"
            )
        return self

    def cotangent(self, pull: Callable, v: PyTree, solve: Callable) -> tuple[PyTree, Stats]:
        """u for the upstream cotangent v.

        Args:
            pull: u -> Jᵀu, linear, from one linearisation of f at z*.
            v: leaves (batch, ...).
            solve: solve(f, u0, solver) -> (u, stats) for u = f(u), by the library's own driver and
                differentiable by this same adjoint.
        """
        raise NotImplementedError

    def loop(self, running: Callable, body: Callable, carry: PyTree, max_steps: int) -> PyTree:
        """Run `body` on `carry` while `running`, at most `max_steps` times."""
        return lax.while_loop(running, body, carry)
