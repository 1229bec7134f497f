"""What an adjoint is: the rule that turns the cotangent of z* into one that f's VJP accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
from jax import lax

from .._configured import Configured
from .._solution import Stats
from ..solvers.base import Solver

PyTree = Any


class Ending(NamedTuple):
    """What the backward pass knows of the forward solve.

    Attributes:
        z: the solution, leaves (batch, ...).
        state: the solver's own state at the end; None unless the adjoint sets `keeps_state`.
        steps: how many steps made that state, earlier solves included, (batch,); None like `state`.
        best_step: the one of these that led to z; None like `state`.
        converged: whether z met the stop test, (batch,).
    """

    z: PyTree
    state: PyTree = None
    steps: jax.Array | None = None
    best_step: jax.Array | None = None
    converged: jax.Array | None = None


@dataclass(frozen=True, kw_only=True)
class Adjoint(Configured):
    """Base of all adjoints. A new one is one file: a frozen keyword dataclass with `cotangent`.

    At z* = f(z*, θ) the implicit function theorem gives, for an upstream cotangent v,

        dℓ/dθ = uᵀ ∂f/∂θ,   u = Jᵀu + v,   J = ∂f/∂z at z*.

    An adjoint of this kind implements `cotangent`, an exact or approximate u; the final VJP to θ is
    shared. One that needs another path to θ overrides `pull_back`. An adjoint that differentiates
    the solver's own steps sets `differentiates_loop` and overrides `loop` instead.

    Attributes:
        exact: True if u solves its equation to a solver's tolerance: `forward_mode` is for these.
        keeps_state: the backward pass needs the solver's state at the end (its history).
        differentiates_loop: see above.
        can_fail: what it reports is no solve of the library's driver, which speaks for itself, and
            a status other than CONVERGED is a failure.
    """

    name: ClassVar[str] = "adjoint"
    exact: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = False
    differentiates_loop: ClassVar[bool] = False
    can_fail: ClassVar[bool] = False

    def resolve(self, forward: Solver, adjoint_solver: Solver | None) -> Adjoint:
        """This adjoint with everything that it takes over from the call filled in."""
        if adjoint_solver is not None:
            raise ValueError(
                f"adjoint_solver= has no effect with adjoint={self.name!r}, which solves no "
                "adjoint equation: leave it out or use adjoint='implicit'"
            )
        return self

    def check_call(self, *, batched: bool, exact_modes: str | None) -> None:
        """Refuse, in one sentence, a call that this adjoint's own solver does not go with."""

    def batch_sizes(self, batch: int) -> tuple[int, ...]:
        """The parts of the batch on which that solver evaluates f, see `Solver.batch_sizes`."""
        return ()

    def linear_solver(self, forward: Solver) -> Solver:
        """The solver of the tangent equation and its transpose under `forward_mode`, for an adjoint
        that is exact."""
        return forward.for_adjoint()

    def forward_solver(self, solver: Solver) -> Solver:
        """The solver of the forward pass, if this adjoint needs a particular one."""
        return solver

    def pull_back(
        self, cell: Callable, theta: PyTree, end: Ending, v: PyTree, solve: Callable
    ) -> tuple[PyTree, Stats]:
        """The cotangent of θ for the cotangent v of z*: θ̄ = uᵀ ∂f/∂θ.

        Args:
            cell: cell(z, theta) -> f(z).
            theta: what f depends on besides z.
            end: see `Ending`.
            v: leaves (batch, ...).
            solve: as in `cotangent`.
        """
        _, pull = jax.vjp(lambda z: cell(z, theta), end.z)
        given: Any = self.cotangent(lambda u: pull(u)[0], v, solve, end)
        form = lambda tree: (jax.tree.structure(tree), [x.shape for x in jax.tree.leaves(tree)])
        if not isinstance(given, tuple) or len(given) != 2 or form(given[0]) != form(v):
            name = f"{type(self).__name__}.cotangent"
            raise TypeError(f"{name} must return (u, stats), with a u of the form of v")
        u, stats = given
        _, pull_theta = jax.vjp(lambda theta: cell(end.z, theta), theta)
        return pull_theta(u)[0], stats

    def cotangent(
        self, pull: Callable, v: PyTree, solve: Callable, end: Ending
    ) -> tuple[PyTree, Stats]:
        """u for the upstream cotangent v.

        Args:
            pull: u -> Jᵀu, linear, from one linearisation of f at z*.
            v: leaves (batch, ...).
            solve: solve(f, u0, solver) -> (u, stats) for u = f(u) = Jᵀu + v, by the library's own
                driver, with residuals relative to ‖v‖, and differentiable by this same adjoint.
            end: see `Ending`.
        """
        raise NotImplementedError

    def loop(self, running: Callable, body: Callable, carry: PyTree, max_steps: int) -> PyTree:
        """Run `body` on `carry` while `running`, at most `max_steps` times."""
        return lax.while_loop(running, body, carry)
