"""The equilibrium of a Flax NNX cell, as a module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .._failure import checked_policy
from .._fixed_point import fixed_point
from .._options import choose
from .._solution import Solution, Stats
from ..adjoints import Adjoint, Implicit
from ..solvers import Solver
from ._stacked import checked_checkpoint, stacked

PyTree = Any


# What a first DEQ trains with, see `DEQ` and docs/first_deq.md.
SAFEGUARDED = Implicit(max_gain=10.0, unconverged="jfb")


class ModuleEquation(NamedTuple):
    """z = f(z, *args) from z0, with the module's own options of `fixed_point`."""

    f: Callable[..., PyTree]
    z0: PyTree
    args: tuple
    options: dict[str, Any]


class DEQ(nnx.Module):
    """z* = cell(z*, context), with context = cell.inject(x): an infinitely deep, weight-tied stack.

    The cell is any NNX module with `cell(z, context) -> z`. Two methods are optional:
    `cell.inject(x) -> context`, everything that does not depend on z, computed once per solve
    (default: context = x); and `cell.initial_state(x) -> z0` (default: zeros shaped like x).

    Every evaluation in a solve sees the same parameters and the same random keys, so a dropout mask
    inside the cell is drawn once per solve: the equation stays one equation. When the cell holds
    state besides parameters (random counters, running statistics), it is updated by one call at z*
    after the solve; XLA drops what that call computes beyond the update.

    A cell that normalises over the batch, such as one with BatchNorm in train mode, computes each
    sample from all of them. The samples are then one equation together and not a batch of
    independent ones: `batch_axis=None` is right, for the solution and for its gradient. In eval
    mode, with running statistics, they are independent again.

    The gradient is the same in train and in eval mode: the mode changes the cell, not the adjoint.
    By default it is `SAFEGUARDED`, the implicit one with two limits, `Implicit(max_gain=10.0,
    unconverged="jfb")`: a sample whose ‖u‖ would be more than ten times ‖v‖ has it scaled down, and
    one whose own solve did not converge gets u = v. Both are near a fold of f, where one sample in
    a hundred can be the whole gradient, and a few such steps undo a training (the page "Your first
    DEQ" has the figures). Samples that converged with a smaller gain have the exact gradient, and
    the adjoint's report says `Status.LIMITED` for the others. `adjoint="implicit"` is exact for
    all.

    Args:
        cell: the module f.
        solver: as in `deqjax.fixed_point`.
        adjoint: as in `deqjax.fixed_point`; the default is not the exact one but `SAFEGUARDED`, see
            below.
        adjoint_solver: as in `deqjax.fixed_point`.
        rtol: as in `deqjax.fixed_point`.
        atol: as in `deqjax.fixed_point`.
        max_steps: as in `deqjax.fixed_point`.
        on_failure: as in `deqjax.fixed_point`.
        batch_axis: independent samples along this axis of z (default 0); None, one equation.
        dtype: compute f in it, such as `jnp.bfloat16`, with parameters and context cast once per
            solve; z, its residuals and the solver stay in the dtype of z0. A residual cannot fall
            much below that precision, 0.004 in bfloat16: ask for no smaller rtol.
        checkpoint: what back-propagation through a stack (`depth`) keeps: "none", everything;
            "sqrt", the state of every √depth-th application, and the others are computed again
            (Chen et al. 2016, arXiv 1604.06174). A solve keeps neither.
        scan: make a stack (`depth`) a loop over one application and not copies of it: it compiles
            in the time of one. The values are the same to rounding.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import DEQ
        >>> class Cell(nnx.Module):
        ...     def __init__(self, d, rngs):
        ...         small = nnx.initializers.normal(0.1)
        ...         self.linear = nnx.Linear(d, d, kernel_init=small, rngs=rngs)
        ...     def __call__(self, z, x):
        ...         return jnp.tanh(self.linear(z) + x)
        >>> deq = DEQ(Cell(4, nnx.Rngs(0)), solver="broyden")
        >>> sol = deq(jnp.ones((2, 4)))
        >>> sol.z.shape, bool(sol.stats.converged.all())
        ((2, 4), True)
    """

    def __init__(
        self,
        cell: nnx.Module,
        *,
        solver: str | Solver = "anderson",
        adjoint: str | Adjoint = SAFEGUARDED,
        adjoint_solver: str | Solver | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
        on_failure: str | None = None,
        batch_axis: int | None = 0,
        dtype: Any = None,
        checkpoint: str = "none",
        scan: bool = False,
    ):
        # Wrong options fail here, in one sentence, and not at the first call.
        self.solver, self.adjoint = choose(
            solver=solver,
            adjoint=adjoint,
            adjoint_solver=adjoint_solver,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
        )
        self.on_failure = None if on_failure is None else checked_policy(on_failure)
        self.batch_axis = batch_axis
        self.dtype, self.checkpoint, self.scan = dtype, checked_checkpoint(checkpoint), scan
        self.cell = cell

    def __call__(
        self,
        x: PyTree,
        *,
        z0: PyTree | None = None,
        depth: int | None = None,
        context: PyTree = None,
        adjoint: str | Adjoint | None = None,
        max_steps: int | None = None,
        resume: Any = None,
        trace: bool = False,
        adjoint_probe: Stats | None = None,
        stability: int | None = None,
    ) -> Solution:
        """Solve for the input x.

        Args:
            x: what `cell.inject` takes, or the context itself.
            z0: where to start; None asks the cell, or means zeros like x.
            depth: None solves. An int stacks the cell that many times from z0 instead, with plain
                back-propagation: the warm-up of DEQ training, and the weight-tied baseline. The
                statistics then say how far that stack is from an equilibrium.
            context: what `cell.inject(x)` has returned, where the caller needs it as well.
            adjoint: another gradient than the module's, for this call.
            max_steps: another limit than the module's, for this call: effort as a knob.
            resume: as in `deqjax.fixed_point`.
            trace: as in `deqjax.fixed_point`.
            adjoint_probe: as in `deqjax.fixed_point`.
            stability: as in `deqjax.fixed_point`.
        """
        if z0 is None:
            z0 = self._initial_state(x)
        inject = getattr(self.cell, "inject", None)
        if context is None:
            context = x if inject is None else inject(x)
        f, arrays = self._function(context)
        if depth is None:
            solution = fixed_point(
                f,
                z0,
                arrays,
                solver=self.solver.with_options(max_steps=max_steps),
                adjoint=self.adjoint if adjoint is None else adjoint,
                batch_axis=self.batch_axis,
                resume=resume,
                trace=trace,
                on_failure=self.on_failure,
                adjoint_probe=adjoint_probe,
                stability=stability,
            )
        else:
            apply = lambda z: f(z, arrays)
            how: Any = dict(checkpoint=self.checkpoint, scan=self.scan)
            solution = stacked(apply, z0, depth, batch_axis=self.batch_axis, **how)
        if _has_other_state(nnx.state(self.cell)):
            self.cell(*jax.lax.stop_gradient((solution.z, context)))
        return solution

    def function(self, context: PyTree) -> Callable[[PyTree], PyTree]:
        """The f(z) that the next call with this context solves, as its solver sees it.

        A snapshot: weights, random keys, running statistics and the mode are those of now. What
        later happens to the module (an optimiser's step, a call that draws new keys, `eval()`) does
        not change f, so make f before the call whose equation is meant.

        Examples:
            >>> import jax.numpy as jnp
            >>> from flax import nnx
            >>> from deqjax.nn import DEQ
            >>> class Half(nnx.Module):
            ...     def __init__(self):
            ...         self.scale = nnx.Param(jnp.array(0.5))
            ...     def __call__(self, z, x):
            ...         return self.scale[...] * z + x
            >>> deq = DEQ(Half())
            >>> f = deq.function(jnp.ones((2, 3)))
            >>> deq.cell.scale[...] = 0.9
            >>> float(f(jnp.ones((2, 3)))[0, 0])
            1.5
        """
        f, arrays = self._function(context)
        return lambda z: f(z, arrays)

    def equation(self, x: PyTree, *, z0: PyTree | None = None) -> ModuleEquation:
        """What a call with x solves, as arguments of `fixed_point` and of diagnostics, which take
        (deq, x) themselves. A snapshot, like `function`.

        Examples:
            >>> import deqjax, jax.numpy as jnp
            >>> from flax import nnx
            >>> from deqjax.nn import DEQ
            >>> class Cell(nnx.Module):
            ...     def __init__(self):
            ...         self.scale = nnx.Param(jnp.array(0.5))
            ...     def __call__(self, z, x):
            ...         return self.scale[...] * jnp.tanh(z) + x
            >>> f, z0, args, options = DEQ(Cell(), rtol=1e-4).equation(jnp.ones((2, 3)))
            >>> deqjax.fixed_point(f, z0, *args, **options).z.shape
            (2, 3)
        """
        inject = getattr(self.cell, "inject", None)
        f, weights, arrays = self._parts(x if inject is None else inject(x))
        start = self._initial_state(x) if z0 is None else z0
        options: dict[str, Any] = dict(solver=self.solver, batch_axis=self.batch_axis)
        options |= {name: getattr(self.solver, name) for name in Solver.options()}
        return ModuleEquation(f, start, (weights, arrays), options)

    def _function(self, context: PyTree) -> tuple[Callable, list[jax.Array]]:
        """f(z, arrays), and the arrays of the context."""
        f, weights, arrays = self._parts(context)
        return lambda z, arrays: f(z, weights, arrays), arrays

    def _parts(self, context: PyTree) -> tuple[Callable, PyTree, list[jax.Array]]:
        """f(z, weights, arrays), the cell's state, and the arrays of the context.

        They are arguments of f, so that a solver can pick samples from them; whatever else is in
        the context (a length, a name) stays as it is.
        """
        graph, state = nnx.split(self.cell)
        # Variables are references to values: f is the equation of the values of now.
        state, context = _frozen((state, context))
        leaves, form = jax.tree.flatten(context)
        is_array = [isinstance(x, jax.Array) for x in leaves]
        arrays = [x for x, a in zip(leaves, is_array, strict=True) if a]
        weights, arrays = cast((state, arrays), self.dtype)

        def f(z, weights, arrays):
            given = iter(arrays)
            filled = [next(given) if a else x for x, a in zip(leaves, is_array, strict=True)]
            cell = nnx.merge(graph, weights, copy=True)
            new = cell(cast(z, self.dtype), jax.tree.unflatten(form, filled))
            return new if self.dtype is None else _like(new, z)

        return f, weights, arrays

    def _initial_state(self, x: PyTree) -> PyTree:
        initial_state = getattr(self.cell, "initial_state", None)
        return jax.tree.map(jnp.zeros_like, x) if initial_state is None else initial_state(x)


def _frozen(tree: PyTree) -> PyTree:
    """The same values in new Variables, none of which can be changed in place any more."""

    def value(x):
        if isinstance(x, np.ndarray):
            return x.copy()
        return x[...] if isinstance(x, jax.Ref) else x

    return jax.tree.map(value, tree)


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """Floating-point leaves in `dtype`; None leaves all as they are."""
    if dtype is None:
        return tree
    real = lambda x: hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    return jax.tree.map(lambda x: x.astype(dtype) if real(x) else x, tree)


def _like(tree: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, other)


def _has_other_state(state: PyTree) -> bool:
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return any(not isinstance(x, nnx.Param) for x in leaves)
