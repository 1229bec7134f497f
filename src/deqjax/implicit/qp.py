"""Quadratic programs as a layer: a primal–dual interior point for a batch, and its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._arguments import checked_axis
from .._closure import vary_with
from .._errors import check_integer, check_tolerance, strict, suggest
from .._failure import Watch
from .._program import concrete, still
from .._solution import Solution, Stats
from .._state import from_front
from .._switches import own_arithmetic, with_own_arithmetic
from ..solvers import Picard
from ._products import times
from ._qp_operands import operands
from ._qp_solve import Options, System, pulled_back, solve
from ._quadratic import Layout, Point, Program

GRADIENTS = ("exact", "smoothed")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class QPStats(Stats):
    """How the solve of a quadratic program went: a `Stats` with the four conditions of optimality.

    steps are those of the interior point; f_evals is the same number. residual is the largest of
    the four below; rel_residual is the largest relative to the sizes involved, in units in which
    the program is of size 1: what the stop test compares with rtol, and what `trace` holds.

    Attributes:
        stationarity: ‖Qz + q + Aᵀν + Gᵀλ − λ_lower + λ_upper‖∞.
        primal: the largest violation of a constraint.
        dual: the largest −λ.
        complementarity: the largest |λ · slack|.
        degenerate: bool, converged where the gradient is not unique: a constraint binds with a
            multiplier of zero, or those that bind depend on each other.
    """

    stationarity: Any = None
    primal: Any = None
    dual: Any = None
    complementarity: Any = None
    degenerate: Any = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class QPSolution(Solution):
    """The solution of a quadratic program, multipliers and slacks included. None where there is no
    such constraint. Gradients flow through all of them.

    Attributes:
        nu: ν of Az = b, (batch, p), of either sign.
        lam: λ ≥ 0 of Gz ≤ h, (batch, m).
        slack: h − Gz, (batch, m).
        lam_lower: λ ≥ 0 of z ≥ lower, (batch, n).
        lam_upper: λ ≥ 0 of z ≤ upper, (batch, n).
    """

    nu: Any = None
    lam: Any = None
    slack: Any = None
    lam_lower: Any = None
    lam_upper: Any = None


@strict
def qp(
    Q: jax.Array,
    q: jax.Array,
    A: jax.Array | None = None,
    b: jax.Array | None = None,
    G: jax.Array | None = None,
    h: jax.Array | None = None,
    *,
    lower: jax.Array | float | None = None,
    upper: jax.Array | float | None = None,
    batch_axis: int | None = 0,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 40,
    gradient: str = "exact",
    smoothing: float | None = None,
    trace: bool = False,
    on_failure: str | None = None,
) -> QPSolution:
    """Minimise ½ zᵀQz + qᵀz subject to Az = b, Gz ≤ h, lower ≤ z ≤ upper, differentiably.

    Q is positive semidefinite, zero included (a linear program). With the Lagrangian

        ½ zᵀQz + qᵀz + νᵀ(Az − b) + λᵀ(Gz − h) + λ_lowerᵀ(lower − z) + λ_upperᵀ(z − upper)

    a solution has a zero gradient in z, meets the constraints, and has λ ≥ 0 with λ · slack = 0.
    Found by Mehrotra's predictor–corrector for the whole batch, each sample until its own test
    holds, and then polished: one linear solve on the constraints that bind, kept where residuals
    fall and all signs hold.

    `gradient="exact"` differentiates the optimality conditions with the constraints that bind as
    equalities (Amos and Kolter 2017). It reaches all operands, through z and the multipliers. Where
    `stats.degenerate` it is one of several: one-sided where a constraint binds with a multiplier of
    zero, and of about least norm where binding constraints depend on each other. At a vertex z does
    not depend on Q and q at all, and it is zero.

    `gradient="smoothed"` is an approximation: the exact gradient of another point, the one of the
    central path with λ · slack = `smoothing`. It is not zero at a vertex, and averages both sides
    of a weakly binding constraint. The values are those of the solution all the same, to rtol; they
    are not polished.

    A sample that does not end as CONVERGED gives its best finite iterate and a gradient of zero.
    First derivatives in reverse mode only.

    Not for large sparse programs: all is dense. On a CPU a loop over PIQP takes half the time; and
    not for programs that are not convex, which are refused.

    Args:
        Q: (n, n), (batch, n, n); or a diagonal, (n,), (batch, n). A square (n, n) is a matrix, also
            where the batch is n. Its symmetric part counts.
        q: (n,) or (batch, n).
        A: (p, n) or (batch, p, n).
        b: (p,) or (batch, p).
        G: (m, n) or (batch, m, n).
        h: (m,) or (batch, m). An infinite entry is no constraint.
        lower: a number, (n,) or (batch, n). Cheaper than rows of G. −inf is none.
        upper: likewise; inf is none.
        batch_axis: where operands with an axis more have their batch, and where results have it.
            The others are shared: a shared Q is factored once. None refuses a batch.
        rtol: of the stop test. None: 1e-5 in float32, 1e-8 in float64.
        atol: added to it, in the units of each condition. None: 0.
        max_steps: of the interior point.
        gradient: "exact" or "smoothed".
        smoothing: λ · slack of the point whose gradient "smoothed" is, in units of the objective.
            None: 1e-3 of the objective's size, max(‖Q‖ ‖z‖², ‖q‖ ‖z‖) with a guess of ‖z‖.
        trace: `stats.trace` has the relative residual before the first and after every step.
        on_failure: as in `deqjax.fixed_point`.

    Returns:
        `QPSolution`; its `stats` a `QPStats`. Without any batched operand, those of one program.
        Statuses besides the usual: INFEASIBLE and UNBOUNDED, where a certificate was found and
        checked; NOT_CONVEX. One without a certificate ends as MAX_STEPS.

    Raises:
        TypeError: an unknown keyword, or complex operands.
        ValueError: shapes that do not fit, half a constraint, or an option out of range.
        SolveError: a failed solve with the policy "raise".

    References:
        Amos and Kolter, "OptNet", ICML 2017 (arXiv 1703.00443); Mehrotra, SIAM J. Optim. 2(4),
        1992.

    Examples:
        The nearest point of the simplex:

        >>> import jax, jax.numpy as jnp
        >>> from deqjax.implicit import qp
        >>> y = jnp.array([[0.9, 0.6, -0.3], [0.2, 0.3, 0.5]])
        >>> sol = qp(jnp.ones(3), -y, jnp.ones((1, 3)), jnp.ones(1), lower=0.0)
        >>> bool(sol.stats.converged.all()), [f"{z:.2f}" for z in sol.z[0]]
        (True, ['0.65', '0.35', '0.00'])
        >>> nearest = lambda y: qp(jnp.ones(3), -y, jnp.ones((1, 3)), jnp.ones(1), lower=0.0).z
        >>> slope = jax.grad(lambda y: nearest(y)[0, 0])(y)[0]
        >>> bool(jnp.allclose(slope, jnp.array([0.5, -0.5, 0.0]), atol=1e-6))
        True
    """
    options = check_options(rtol, atol, max_steps, gradient, smoothing, trace)
    watch, limit = Watch.of_call(on_failure), Picard(max_steps=max_steps)
    with own_arithmetic(with_nans=True):
        given = operands(Q, q, A, b, G, h, lower, upper, checked_axis(batch_axis))
        program, layout = given.program, given.layout
        double = program.q.dtype == jnp.float64
        if options.rtol is None:
            options = Options(**{**vars(options), "rtol": 1e-8 if double else 1e-5})
        program = vary_with(program, program)
        answer = solve(still(program), layout, options)
        parts = answer.report
        residual = jnp.max(
            jnp.stack([parts[k] for k in ("stationarity", "primal", "dual", "complementarity")]),
            axis=0,
        )
        stats = QPStats(
            f_evals=parts["steps"], residual=residual, degenerate=answer.degenerate, **parts
        )
        watch.hear(stats, limit)
        x = answer.x
        if not concrete(program):
            x = _attached(program, layout, answer.system, x, watch)
        x = Point(*watch.mark(tuple(x), stats, limit))
        return _results(program, layout, x, stats, given.axis, given.dtype)


def check_options(rtol, atol, max_steps, gradient, smoothing, trace) -> Options:
    """The options of `qp`, or one sentence on what is wrong with them."""
    check_tolerance("rtol", rtol)
    check_tolerance("atol", atol)
    check_integer("max_steps", max_steps, least=1)
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient={gradient!r} is not known{suggest(str(gradient), GRADIENTS)}")
    check_tolerance("smoothing", smoothing)
    if smoothing is not None and gradient != "smoothed":
        raise ValueError("smoothing= needs gradient='smoothed': the exact gradient has none")
    if smoothing == 0:
        raise ValueError("smoothing must be positive; for none, gradient='exact'")
    return Options(rtol, atol or 0.0, max_steps, gradient == "smoothed", smoothing, bool(trace))  # type: ignore[arg-type]


def _attached(program: Program, layout: Layout, system: System, x: Point, watch: Watch) -> Point:
    """x, with the derivative of the implicit function theorem."""

    @jax.custom_vjp
    def attached(program, system, x):
        return x

    def forward(program, system, x):
        return x, (program, system)

    @with_own_arithmetic
    def backward(saved, bar):
        program, system = saved
        bars, good = _once(layout, system, program, bar)
        if watch.policy == "nan":
            shape = lambda v: good.reshape(-1, *(1,) * (v.ndim - 1))
            mark = lambda v: jnp.where(
                shape(v) if v.shape[0] == good.size else good.all(), v, jnp.nan
            )
            bars = jax.tree.map(mark, bars)
        return bars, None, None

    attached.defvjp(forward, backward)
    return attached(program, *still((system, x)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _once(layout, system, program, bar):
    """`pulled_back`, which has no derivative."""
    return pulled_back(system, program, layout, bar)


@_once.defjvp
def _refuse(layout, primals, tangents):
    raise TypeError(
        "qp has first derivatives only: differentiate it once, in reverse mode, and take "
        "differences of that gradient for a second one"
    )


def _results(program, layout, x: Point, stats: QPStats, axis, dtype) -> QPSolution:
    def out(v):
        if v is None:
            return None
        if axis is None:
            return v[0]
        return from_front(v, axis)

    lam, lower, upper = layout.split(x.lam)
    real = lambda v: None if v is None else out(v.astype(dtype))
    G, h = program.M[:, layout.p :], program.e[:, layout.p :]
    slack = h - times(G, x.z)
    # That of a sample that failed has no gradient to G and h either.
    slack = jnp.where(stats.converged[:, None], slack, still(slack))
    stats_out = stats
    if axis is None:
        trace = stats.trace
        stats_out = jax.tree.map(lambda v: v[0], QPStats(**{**vars(stats), "trace": None}))
        if trace is not None:
            stats_out = QPStats(**{**vars(stats_out), "trace": trace[:, 0]})
    return QPSolution(
        z=real(x.z),
        stats=stats_out,
        nu=real(x.nu) if layout.p else None,
        lam=real(lam) if layout.m else None,
        slack=real(slack) if layout.m else None,
        lam_lower=real(lower),
        lam_upper=real(upper),
    )
