"""The equilibrium of a Flax Linen cell, as a Linen module."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .._failure import checked_policy
from .._fixed_point import fixed_point
from .._options import choose
from .._solution import Solution
from ..adjoints import Adjoint
from ..solvers import Solver
from .deq import SAFEGUARDED


class DEQ(nn.Module):
    """z* = cell(z*, x) for a Linen cell with `cell(z, x) -> z`; the result is a `Solution`.

    The parameters of the cell are made by one call when the module is initialised. Every evaluation
    in a solve sees the same variables and the same random keys: each stream that the caller passes
    (dropout, say) is drawn from once per solve, so the equation stays one equation. Collections
    other than the parameters (running statistics, what the cell sows) are fixed during the solve;
    those that the caller made mutable are then updated by one call at z*, which no gradient enters.

    Compute what does not depend on z outside and pass it in x, any pytree of arrays. The cell must
    own its submodules: Flax refuses one that it shares with another module.

    Attributes:
        cell: the module f.
        solver, adjoint, adjoint_solver, rtol, atol, max_steps, on_failure: as in
            `deqjax.fixed_point`; the default adjoint is `deqjax.nn.SAFEGUARDED`.
        batch_axis: independent samples along this axis of z (default 0); None, one equation.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from deqjax.nn.linen import DEQ
        >>> class Cell(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, z, x):
        ...         small = nn.initializers.normal(0.1)
        ...         return jnp.tanh(nn.Dense(z.shape[-1], kernel_init=small)(z) + x)
        >>> deq, x = DEQ(Cell(), solver="broyden"), jnp.ones((2, 4))
        >>> sol = deq.apply(deq.init(jax.random.key(0), x), x)
        >>> sol.z.shape, bool(sol.stats.converged.all())
        ((2, 4), True)
    """

    cell: nn.Module
    solver: str | Solver = "anderson"
    adjoint: str | Adjoint = SAFEGUARDED
    adjoint_solver: str | Solver | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int | None = None
    batch_axis: int | None = 0
    on_failure: str | None = None

    def __post_init__(self):
        # Wrong options fail here, in one sentence, and not at the first call.
        self._choose()
        if self.on_failure is not None:
            checked_policy(self.on_failure)
        super().__post_init__()

    def __call__(self, x: Any, z0: Any = None) -> Solution:
        """Solve for the input x, from z0; None starts at zeros shaped like x."""
        if z0 is None:
            z0 = jax.tree.map(jnp.zeros_like, x)
        if self.is_initializing():
            self.cell(z0, x)
        cell, variables = self.cell.unbind()
        scope = self.scope
        assert scope is not None  # an unbound module was refused above
        keys = {name: self.make_rng(name) for name in scope.rngs}
        mutable = scope.mutable or []

        def call(z, x):
            # `apply` restarts the streams: the same keys, so the same masks, at every step.
            return cell.apply(variables, z, x, rngs=keys, mutable=mutable)

        solver, adjoint = self._choose()
        solution = fixed_point(
            lambda z, x: call(z, x)[0],
            z0,
            x,
            solver=solver,
            adjoint=adjoint,
            batch_axis=self.batch_axis,
            on_failure=self.on_failure,
        )
        if mutable and not self.is_initializing():
            _, updates = call(jax.lax.stop_gradient(solution.z), x)
            for kind in updates.keys() - {"params"}:
                for name, value in updates[kind].items():
                    self.cell.put_variable(kind, name, value)
        return solution

    def _choose(self) -> tuple[Solver, Adjoint]:
        return choose(
            solver=self.solver,
            adjoint=self.adjoint,
            adjoint_solver=self.adjoint_solver,
            rtol=self.rtol,
            atol=self.atol,
            max_steps=self.max_steps,
        )
