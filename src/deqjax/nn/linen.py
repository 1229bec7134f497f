"""The equilibrium of a Flax Linen cell, as a Linen module."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from .._failure import checked_policy
from .._fixed_point import fixed_point
from .._options import choose
from .._solution import Solution, Stats
from ..adjoints import Adjoint
from ..solvers import Solver
from ._stacked import checked_checkpoint, stacked
from .deq import SAFEGUARDED, cast


class DEQ(nn.Module):
    """z* = cell(z*, x) for a Linen cell with `cell(z, x) -> z`; the result is a `Solution`.

    The parameters of the cell are made by one call when the module is initialised. Every evaluation
    in a solve sees the same variables and the same random keys: each stream that the caller passes
    (dropout, say) is drawn from once per solve, so the equation stays one equation. Collections
    other than the parameters (running statistics, what the cell sows) are fixed during the solve;
    those that the caller made mutable are then updated by one call at z*, which no gradient enters.

    As in `deqjax.nn.DEQ`, the cell may have two methods more: `inject(x) -> context`, everything
    that does not depend on z, computed once per solve, which the cell then gets for x; and
    `initial_state(x) -> z0`. The cell must own its submodules: Flax refuses one that it shares with
    another module.

    Attributes:
        cell: the module f.
        solver, adjoint, adjoint_solver, rtol, atol, max_steps, on_failure: as in
            `deqjax.fixed_point`; the default adjoint is `deqjax.nn.SAFEGUARDED`.
        batch_axis: independent samples along this axis of z (default 0); None, one equation.
        dtype, checkpoint, scan: as in `deqjax.nn.DEQ`.

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
    dtype: Any = None
    checkpoint: str = "none"
    scan: bool = False

    def __post_init__(self):
        # Wrong options fail here, in one sentence, and not at the first call.
        _chosen(self)
        checked_checkpoint(self.checkpoint)
        if self.on_failure is not None:
            checked_policy(self.on_failure)
        super().__post_init__()

    def __call__(
        self,
        x: Any,
        z0: Any = None,
        *,
        depth: int | None = None,
        context: Any = None,
        adjoint: str | Adjoint | None = None,
        max_steps: int | None = None,
        resume: Any = None,
        trace: bool = False,
        adjoint_probe: Stats | None = None,
        stability: int | None = None,
    ) -> Solution:
        """Solve for the input x, from z0; None asks the cell, or means zeros shaped like x. The
        others are those of `deqjax.nn.DEQ.__call__`."""
        if z0 is None:
            z0 = self.cell.initial_state(x) if hasattr(self.cell, "initial_state") else _zeros(x)
        if context is None:
            context = self.cell.inject(x) if hasattr(self.cell, "inject") else x
        if self.is_initializing():
            self.cell(z0, context)
        cell, variables = self.cell.unbind()
        scope = self.scope
        assert scope is not None  # an unbound module was refused above
        keys = {name: self.make_rng(name) for name in scope.rngs}
        mutable = scope.mutable or []
        low = cast((variables, context), self.dtype)

        def call(z, variables, context):
            # `apply` restarts the streams: the same keys, so the same masks, at every step.
            return cell.apply(variables, z, context, rngs=keys, mutable=mutable)

        def f(z, context):
            new = call(cast(z, self.dtype), low[0], context)[0]
            return (
                new if self.dtype is None else jax.tree.map(lambda x, y: x.astype(y.dtype), new, z)
            )

        if depth is None:
            solver, gradient = _chosen(self)
            solution = fixed_point(
                f,
                z0,
                low[1],
                solver=solver.with_options(max_steps=max_steps),
                adjoint=gradient if adjoint is None else adjoint,
                batch_axis=self.batch_axis,
                resume=resume,
                trace=trace,
                on_failure=self.on_failure,
                adjoint_probe=adjoint_probe,
                stability=stability,
            )
        else:
            how: Any = dict(checkpoint=self.checkpoint, scan=self.scan)
            apply = lambda z: f(z, low[1])
            solution = stacked(apply, z0, depth, batch_axis=self.batch_axis, **how)
        if mutable and not self.is_initializing():
            _, updates = call(jax.lax.stop_gradient(solution.z), variables, context)
            for kind in updates.keys() - {"params"}:
                for name, value in updates[kind].items():
                    self.cell.put_variable(kind, name, value)
        return solution


# Not a method: Linen wraps those, and a module that is being made has no scope yet.
def _chosen(deq: DEQ) -> tuple[Solver, Adjoint]:
    return choose(
        solver=deq.solver,
        adjoint=deq.adjoint,
        adjoint_solver=deq.adjoint_solver,
        rtol=deq.rtol,
        atol=deq.atol,
        max_steps=deq.max_steps,
    )


def _zeros(x: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, x)
