"""The flow of an ordinary differential equation as a layer, over diffrax."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._arguments import as_arguments, batch_size, check_cell, checked_axis, checked_state
from .._errors import check_callable, check_integer, check_tolerance, strict, suggest
from .._failure import Watch, checked_policy
from .._solution import Solution, Stats
from .._state import wide
from ..solvers import Picard
from ._ode_samples import Samples, Traced, trace

PyTree = Any

ADJOINTS = ("recursive", "direct", "backsolve")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class ODEStats(Stats):
    """How a flow went: `deqjax.Stats`, where residual is |t1 − t|, what of the interval was left,
    rel_residual the part of it, and steps counts rejected ones too.

    Attributes:
        reconstruction: with adjoint="backsolve", ‖z̃0 − z0‖₂/‖z0‖₂ of a z̃0 that was computed
            backwards from z(t1), as the gradient's is: infinite where that solve did not arrive.
            The gradient is no better than this. It takes one more solve, which a compiler leaves
            out where nobody reads it. None with the other adjoints.
    """

    reconstruction: Any = None


@strict
def ode(
    f: Callable[..., PyTree],
    z0: PyTree,
    *args: PyTree,
    t0: Any = 0.0,
    t1: Any = 1.0,
    solver: Any = "tsit5",
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 4096,
    steps: int | None = None,
    adjoint: str = "recursive",
    batch_axis: int | None = None,
    args_axes: Any = None,
    on_failure: str | None = None,
) -> Solution:
    """z(t1) of dz/dt = f(t, z, *args), z(t0) = z0, with gradients in reverse mode.

    The gradient is that of the steps that were taken ("recursive", "direct"), exact for these; or,
    with "backsolve", an approximation: the adjoint equation solved backwards along a z that is
    computed again, backwards (Chen et al. 2018, arXiv 1806.07366). Where the flow contracts, that
    z leaves the one it should follow by exp of what the flow contracted by, and the gradient is
    wrong or absent; `stats.reconstruction` shows it.

    Gradients reach z0, args, t0, t1 and what f closes over; a backward pass solves forward once
    more. Forward mode and second derivatives are refused by JAX.

    Not for an equilibrium: where z(t) is followed until it rests, `deqjax.fixed_point` finds the
    same z with a gradient whose cost does not grow with time. Not for a stiff f with the explicit
    solvers: use "kvaerno5". Not for complex states, events or output at several times: use diffrax.

    Args:
        f: f(t, z, *args) -> dz/dt, the same pytree, shapes and dtypes as z0; t is a scalar. (The
            order of arguments of diffrax and of SciPy's `solve_ivp`.) Pure.
        z0: pytree of floating-point arrays. Arithmetic is done in float32 at least.
        *args: pytrees of arrays.
        t0: where time starts, a number or a scalar array.
        t1: where it ends; less than t0 goes backwards.
        solver: "tsit5", "dopri5", "dopri8", "bosh3", "heun", "midpoint", "euler", the implicit
            "kvaerno3" and "kvaerno5", or a solver object of diffrax.
        rtol: tolerance of each step's error, relative to |z| (default 1e-5, in float64 1e-8).
        atol: the same, absolute, in units of z. None is 0.01 rtol of the sample's own size, the
            largest entry of z0 and of (t1 − t0)·f there: then nothing depends on the units of z.
        max_steps: accepted and rejected ones. Also what "recursive" (about √max_steps states) and
            "direct" (all of them, or several times √max_steps recomputed) make room for.
        steps: None, steps are chosen by their errors; or so many equal ones, without a check.
        adjoint: "recursive", through the steps, from checkpoints; "direct", through a bounded loop;
            "backsolve", approximate, in memory that does not grow with the number of steps.
        batch_axis: None, one flow over the whole pytree; an int, independent flows along that axis
            of every leaf. Each then has its own steps and its own ending, whatever becomes of the
            others. f is called for each sample with z of size one along that axis, so that an f
            written for a batch serves.
        args_axes: which args hold a batch, as `in_axes` of `jax.vmap`, for the tuple of args: each
            None (shared by all samples) or an axis; None, all are shared. Only with batch_axis. The
            backward pass holds a gradient of the shared ones for each sample before they are
            summed: with large parameters, batch_axis=None takes less memory.
        on_failure: as in `deqjax.fixed_point`; the backward solve of "backsolve" is heard as well.

    Returns:
        `Solution` with z = z(t1) and `stats`, an `ODEStats`. A sample that does not get to t1 has
        the last finite state, a zero gradient and a status: MAX_STEPS; NONFINITE, where z0, f or
        what follows has no finite value; UNBOUNDED, where z leaves every bound before t1. A sample
        whose "backsolve" does not get back to t0 has a zero gradient too.

    Raises:
        ImportError: diffrax is missing.
        TypeError: an unknown keyword, an integer or complex state, an f whose structure or dtypes
            differ, a tolerance that is traced.
        ValueError: an unknown name, a negative tolerance, an f whose shapes differ, "euler" without
            `steps`.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from deqjax.implicit import ode
        >>> decay = lambda t, z, rate: -rate * z
        >>> sol = ode(decay, jnp.ones(2), 2.0, t1=0.5)
        >>> bool(jnp.allclose(sol.z, jnp.exp(-1.0), rtol=1e-4)), bool(sol.stats.converged)
        (True, True)
        >>> gradient = jax.grad(lambda rate: ode(decay, jnp.ones(()), rate, t1=0.5).z)(2.0)
        >>> bool(jnp.allclose(gradient, -0.5 * jnp.exp(-1.0), rtol=1e-3))
        True
    """
    check_callable("f", f)
    options = check_options(
        solver=solver,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        steps=steps,
        adjoint=adjoint,
        batch_axis=batch_axis,
        on_failure=on_failure,
    )
    axis = options["batch_axis"]
    if axis is None and args_axes is not None:
        raise ValueError("args_axes= says which args hold a batch: give batch_axis= as well")
    z0, args = checked_state(z0), as_arguments(args)
    if any(jnp.iscomplexobj(x) for x in jax.tree.leaves(z0)):
        raise TypeError("z0 is complex, which is not supported: give its two parts as two leaves")
    size = batch_size(z0, axis)
    dtype = functools.reduce(jnp.promote_types, [wide(x.dtype) for x in jax.tree.leaves(z0)])
    watch = Watch.of_call(on_failure)
    method = _flow().Method(
        solver=options["solver"],
        rtol=(1e-8 if dtype == jnp.float64 else 1e-5) if rtol is None else float(rtol),
        atol=None if atol is None else float(atol),
        max_steps=int(max_steps),
        steps=None if steps is None else int(steps),
        adjoint=adjoint,
    )
    span = _time("t0", t0, dtype), _time("t1", t1, dtype)
    traced = trace(f, span, z0, args, axis, args_axes)
    _check_field(traced, z0, axis)
    samples = Samples(traced, axis, method, dtype)

    limit = Picard(max_steps=method.max_steps)

    def hear(z, stats, what="forward solve"):
        watch.of(what).hear(stats, limit)

    z, stats = samples.solve(z0, traced.theta, hear)
    hear(z, stats)
    z = watch.mark(z, stats, limit, axis)
    if size is None:
        stats = jax.tree.map(lambda x: x[0], stats)
    return Solution(z, stats)


def check_options(
    *, solver: Any, rtol, atol, max_steps, steps, adjoint, batch_axis, on_failure
) -> dict[str, Any]:
    """Those of `ode`, with the solver as an object of diffrax; one sentence for a wrong one."""
    check_tolerance("rtol", rtol)
    check_tolerance("atol", atol)
    check_integer("max_steps", max_steps, least=1)
    check_integer("steps", steps, least=1, optional=True)
    if rtol == 0:
        raise ValueError("rtol=0 asks for steps without error: use 1e-5, or steps= for equal ones")
    if adjoint not in ADJOINTS:
        raise ValueError(f"adjoint={adjoint!r} is not a known adjoint{suggest(adjoint, ADJOINTS)}")
    if on_failure is not None:
        checked_policy(on_failure)
    return dict(
        solver=_stepper(solver, steps),
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        steps=steps,
        adjoint=adjoint,
        batch_axis=checked_axis(batch_axis),
        on_failure=on_failure,
    )


def _flow() -> Any:
    try:
        from . import _flow as found
    except ModuleNotFoundError as missing:
        raise ImportError(
            "deqjax.implicit.ode needs diffrax, which is not installed: pip install 'deqjax[ode]'"
        ) from missing
    return found


def _stepper(solver: Any, steps: int | None) -> Any:
    known, kind, euler = _flow().SOLVERS, _flow().Stepper, _flow().SOLVERS["euler"]
    if isinstance(solver, str):
        if solver not in known:
            raise ValueError(f"solver={solver!r} is not a known solver{suggest(solver, known)}")
        solver = known[solver]()
    elif not isinstance(solver, kind):
        raise TypeError(
            f"solver= takes a name ({', '.join(sorted(known))}) or a solver object of diffrax such "
            f"as diffrax.Tsit5(), not {type(solver).__name__}"
        )
    if steps is None and isinstance(solver, euler):
        raise ValueError(
            "solver='euler' has no error estimate to choose steps by: give steps=, or use 'heun'"
        )
    return solver


def _time(name: str, value: Any, dtype: Any) -> jax.Array:
    try:
        time = jnp.asarray(value, dtype)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if time.ndim:
        raise ValueError(f"{name} must be a scalar, got shape {time.shape}: map with jax.vmap")
    return time


def _check_field(traced: Traced, z0: PyTree, axis: int | None) -> None:
    try:
        check_cell(traced.out, traced.row)
    except ValueError as wrong:
        if axis is not None:
            wrong.add_note(
                "deqjax: with batch_axis, f is called for one sample at a time: args_axes=, as "
                "in_axes of jax.vmap, says which args hold a batch; f must not close over one"
            )
        raise
