"""One flow dz/ds = F(s, z, θ) from s = 0 to 1, stepped by diffrax, and how it ended.

The only file that imports diffrax; `ode` imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import lax

from .._solution import Status
from .._state import norm as length
from .._state import to_front
from ._equal_steps import EqualSteps

PyTree = Any
Field = Callable[[jax.Array, PyTree, Any], PyTree]

Stepper = diffrax.AbstractSolver
SOLVERS = {
    "euler": diffrax.Euler,
    "midpoint": diffrax.Midpoint,
    "heun": diffrax.Heun,
    "bosh3": diffrax.Bosh3,
    "tsit5": diffrax.Tsit5,
    "dopri5": diffrax.Dopri5,
    "dopri8": diffrax.Dopri8,
    "kvaerno3": diffrax.Kvaerno3,
    "kvaerno5": diffrax.Kvaerno5,
}

# Of the steps of an adaptive solve: the default absolute tolerance, relative to rtol and the size
# of z0 and of dz/ds there.
ATOL = 1e-2
# A state so many times larger than z0 and dz/ds there, at a step that cannot be shortened, has left
# every bound.
GROWN = 1e3


@dataclass(frozen=True)
class Method:
    """How a flow is stepped; hashable.

    Attributes:
        solver: diffrax's.
        rtol: of the local error of a step, per sample.
        atol: the same, in units of z; None is `ATOL` of what rtol allows.
        max_steps: rejected ones included.
        steps: None, steps are chosen; or so many equal ones.
        adjoint: "recursive", "direct" or "backsolve".
    """

    solver: Any
    rtol: float
    atol: float | None
    max_steps: int
    steps: int | None
    adjoint: str


class Ended(NamedTuple):
    """Where a flow ended; scalars of one sample.

    Attributes:
        z: the last finite state.
        left: of the interval, the part that was not covered.
        status: a `Status`.
        steps: accepted and rejected ones.
        f_evals: evaluations of F; of an implicit solver only those outside of its Newton steps.
    """

    z: PyTree
    left: jax.Array
    status: jax.Array
    steps: jax.Array
    f_evals: jax.Array


def flow(
    field: Field,
    z0: PyTree,
    theta: PyTree,
    method: Method,
    *,
    differentiable: bool = False,
    steered_by: Callable[[PyTree], PyTree] = lambda z: z,
) -> Ended:
    """Step from s = 0 to 1, or as far as it goes. No gradient flows through the choice of steps.

    Args:
        field: F(s, z, theta).
        z0: leaves of one floating dtype.
        theta: pytree of arrays.
        method: see there.
        differentiable: step so that reverse mode goes through, in the way of `method.adjoint`.
        steered_by: the part of the state whose error chooses the steps.
    """
    dtype = jnp.result_type(*jax.tree.leaves(z0))
    zero = jnp.zeros((), dtype)
    slope = lax.stop_gradient(field(zero, z0, theta))
    # A sample that cannot start is held at zero and ends at once: NaN would go on to max_steps.
    starts = _finite(z0) & _finite(slope)
    held = lambda z: jax.tree.map(lambda x: jnp.where(starts, x, 0), z)
    guarded = lambda s, z, theta: held(field(s, z, theta))
    size = jnp.maximum(_largest(steered_by(held(z0))), _largest(steered_by(held(slope))))

    eps = float(jnp.finfo(dtype).eps)
    if method.steps is not None:
        controller = EqualSteps(method.steps)
    else:
        atol = ATOL * method.rtol * size + jnp.finfo(dtype).tiny
        controller = diffrax.PIDController(
            rtol=method.rtol,
            atol=atol if method.atol is None else method.atol,
            dtmin=4 * eps,
            force_dtmin=False,
            norm=lambda error: _rms(steered_by(error)),
        )
    adjoints = {
        "recursive": diffrax.RecursiveCheckpointAdjoint,
        "direct": diffrax.DirectAdjoint,
    }
    adjoint = adjoints[method.adjoint] if differentiable else diffrax.ForwardMode
    sol = diffrax.diffeqsolve(
        diffrax.ODETerm(guarded),
        method.solver,
        zero,
        zero + 1,
        None,
        held(z0),
        theta,
        stepsize_controller=controller,
        adjoint=adjoint(),
        max_steps=method.max_steps if method.steps is None else method.steps,
        throw=False,
    )
    assert sol.ys is not None and sol.ts is not None
    z, s = jax.tree.map(lambda x: x[0], (sol.ys, sol.ts))
    steps = sol.stats["num_steps"].astype(jnp.int32)
    done = starts & (sol.result == diffrax.RESULTS.successful)
    # Where a step could not be shortened: does what comes next have no value, or has z run away?
    z_, s = lax.stop_gradient((z, s))
    ahead = 64 * eps if method.steps is None else 1 / method.steps
    tried = jax.tree.map(lambda x, d: x + ahead * d, z_, guarded(s, z_, theta))
    finite = _finite(tried) & _finite(lax.stop_gradient(guarded(s + ahead, tried, theta)))
    stuck = sol.result == diffrax.RESULTS.dt_min_reached
    status = jnp.select(
        [
            done,
            ~starts | (stuck & ~finite),
            stuck & (_largest(z_) > GROWN * size),
        ],
        [int(Status.CONVERGED), int(Status.NONFINITE), int(Status.UNBOUNDED)],
        int(Status.MAX_STEPS),
    )
    return Ended(
        z=jax.tree.map(lambda x, y: jnp.where(starts, x, lax.stop_gradient(y)), z, z0),
        left=jnp.where(done, 0, jnp.where(starts, 1 - s, 1)).astype(dtype),
        status=status.astype(jnp.int32),
        steps=steps,
        f_evals=evaluations(method, steps) + 3,
    )


def evaluations(method: Method, steps: jax.Array) -> jax.Array:
    """Evaluations of F that so many steps take, and the choice of the first one."""
    chosen = 0 if method.steps is not None else 2
    tableau = getattr(method.solver, "tableau", None)
    if tableau is None:  # Euler
        return steps + chosen
    reused = int(tableau.fsal)
    return steps * (tableau.num_stages - reused) + reused + chosen


def reconstruction_error(field: Field, z0: PyTree, end: PyTree, theta: PyTree, method: Method):
    """‖z̃0 − z0‖/‖z0‖, with z̃0 from a solve from the end back to the start; infinite where that
    solve does not get there."""
    back = lambda s, z, theta: jax.tree.map(jnp.negative, field(1 - s, z, theta))
    found = flow(back, end, theta, method)
    sizes = [_length(x) for x in (z0, end)]
    size = jnp.where(sizes[0] > 0, sizes[0], jnp.where(sizes[1] > 0, sizes[1], 1))
    error = _length(jax.tree.map(jnp.subtract, found.z, z0)) / size
    return jnp.where(found.status == Status.CONVERGED, error, jnp.inf)


def backsolve(
    field: Callable, end: PyTree, theta: list, others: list, ct: PyTree, method: Method
) -> tuple[PyTree, list, Ended]:
    """The adjoint flow, with z computed again backwards from where it ended:

    dz/ds = F,  da/ds = −(∂F/∂z)ᵀ a,  dg/ds = −(∂F/∂θ)ᵀ a,  from s = 1 to 0.

    Steps are chosen by the errors of z and a alone, since g has no part in the flow (Kidger, Chen
    and Lyons 2021, "Hey, that's not an ODE"). a is taken in units of z: the loss may have any size.

    Args:
        field: F(s, z, theta, others).
        end: z at s = 1.
        theta: arrays, floating.
        others: arrays that have no derivative.
        ct: the cotangent of z there.
        method: see there.

    Returns:
        a and g at s = 0, and the end of the flow, whose z is (z̃0, a, g).
    """
    dtype = jnp.result_type(*jax.tree.leaves(end))
    size = _largest(ct)
    unit = jnp.where(size > 0, size, 1) / jnp.where(_largest(end) > 0, _largest(end), 1)
    a = jax.tree.map(lambda x: x / unit, ct)
    g = [jnp.zeros(x.shape, dtype) for x in theta]

    def back(s, state, given):
        z, a, _ = state
        theta, others = given
        value, pull = jax.vjp(lambda z, theta: field(1 - s, z, theta, others), z, theta)
        of_z, of_theta = pull(a)
        return jax.tree.map(jnp.negative, value), of_z, [x.astype(dtype) for x in of_theta]

    ended = flow(back, (end, a, g), (theta, others), method, steered_by=lambda state: state[:2])
    _, a, g = ended.z
    a, g = jax.tree.map(lambda x: x * unit, (a, g))
    return a, [x.astype(y.dtype) for x, y in zip(g, theta, strict=True)], ended


def _finite(z: PyTree) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(z)]).all()


def _largest(z: PyTree) -> jax.Array:
    sizes = [jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(lax.stop_gradient(z))]
    return jnp.max(jnp.stack(sizes))


def _rms(error: PyTree) -> jax.Array:
    """√(mean of squares), of what is steered by."""
    leaves = jax.tree.leaves(error)
    squares = sum(jnp.sum(x * x) for x in leaves)
    return jnp.sqrt(squares / max(1, sum(x.size for x in leaves)))


def _length(z: PyTree) -> jax.Array:
    return length(to_front(z, None))[0]
