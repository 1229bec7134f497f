"""The flow of a Flax NNX cell, as a module."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from .._solution import Solution
from ..implicit.ode import check_options, ode
from .deq import _frozen

PyTree = Any


class NeuralODE(nnx.Module):
    """z(t1) of dz/dt = cell(t, z, context), z(0) = x: a residual network of continuous depth.

    Chen, Rubanova, Bettencourt and Duvenaud 2018, arXiv 1806.07366. The cell is any NNX module with
    `cell(t, z, context) -> dz/dt`. Two methods are optional, as for `DEQ`: `cell.inject(x) ->
    context`, what does not depend on z (default: None, the flow sees its start alone); and
    `cell.initial_state(x) -> z0` (default: x itself, whose shape dz/dt must have).

    The parameters are those of the call throughout a solve. A cell that changes its own state
    (running statistics, random counters) is not for this module: what it would change is dropped.

    Not where the flow is followed until it rests: `DEQ` gives that point by fewer evaluations, with
    an exact gradient in constant memory.

    Args:
        cell: the module.
        t1: where time ends; it starts at 0.
        solver: as in `deqjax.implicit.ode`.
        rtol: as there.
        atol: as there.
        max_steps: as there.
        steps: as there.
        adjoint: as there; "backsolve" is an approximation.
        batch_axis: independent samples along this axis of z and of the context (default 0), each
            with its own steps. The backward pass then holds a gradient of the parameters for each
            sample; None, one flow of the whole batch, does not.
        on_failure: as in `deqjax.fixed_point`.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import NeuralODE
        >>> class Field(nnx.Module):
        ...     def __init__(self, d, rngs):
        ...         self.linear = nnx.Linear(d, d, rngs=rngs)
        ...     def __call__(self, t, z, context):
        ...         return jnp.tanh(self.linear(z))
        >>> flow = NeuralODE(Field(3, nnx.Rngs(0)), max_steps=64)
        >>> sol = flow(jnp.ones((2, 3)))
        >>> sol.z.shape, bool(sol.stats.converged.all())
        ((2, 3), True)
    """

    def __init__(
        self,
        cell: nnx.Module,
        *,
        t1: float = 1.0,
        solver: Any = "tsit5",
        rtol: float | None = None,
        atol: float | None = None,
        max_steps: int = 4096,
        steps: int | None = None,
        adjoint: str = "recursive",
        batch_axis: int | None = 0,
        on_failure: str | None = None,
    ):
        self.options = check_options(
            solver=solver,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
            steps=steps,
            adjoint=adjoint,
            batch_axis=batch_axis,
            on_failure=on_failure,
        )
        self.t1, self.cell = t1, cell

    def __call__(self, x: PyTree, *, z0: PyTree | None = None, t1: Any = None) -> Solution:
        """Follow the flow for the input x.

        Args:
            x: what `cell.inject` and `cell.initial_state` take, or the start itself.
            z0: where to start; None asks the cell, or means x.
            t1: another end than the module's, for this call; it may be traced.
        """
        inject = getattr(self.cell, "inject", None)
        start = getattr(self.cell, "initial_state", None)
        context = None if inject is None else inject(x)
        if z0 is None:
            z0 = x if start is None else start(x)
        graph, weights = nnx.split(self.cell)

        def f(t, z, weights, context):
            return nnx.merge(graph, weights, copy=True)(t, z, context)

        axis = self.options["batch_axis"]
        return ode(
            f,
            z0,
            *_frozen((weights, context)),
            t1=self.t1 if t1 is None else t1,
            args_axes=None if axis is None else (None, jax.tree.map(lambda _: axis, context)),
            **self.options,
        )
