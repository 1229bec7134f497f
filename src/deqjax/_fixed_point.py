"""`fixed_point`, `root_find` and `implicit_function`: what users call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Unpack

import jax.numpy as jnp

from ._errors import check_callable, check_keywords, strict
from ._failure import Watch
from ._options import Options
from ._solution import Solution, Stats
from ._solve import solve
from .adjoints import Adjoint, as_adjoint
from .solvers import Solver

PyTree = Any


@strict
def fixed_point(
    f: Callable[..., PyTree],
    z0: PyTree,
    *args: PyTree,
    solver: str | Solver = "anderson",
    adjoint: str | Adjoint = "implicit",
    adjoint_solver: str | Solver | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    batch_axis: int | None = None,
    forward_mode: bool = False,
    trace: bool = False,
    resume: Any = None,
    scale: PyTree = None,
    on_failure: str | None = None,
    adjoint_probe: Stats | None = None,
    stability: int | None = None,
) -> Solution:
    """Find z* = f(z*, *args), with gradients by the implicit function theorem.

    `stats.status` says how each solve ended, and `sol.z` is the best iterate seen, never a worse
    one; `on_failure` says what becomes of a failure, of the adjoint's solve too. The stop test is
    ‖f(z) − z‖₂ ≤ atol + rtol·‖f(z)‖₂, norms in float32 at least, over the whole pytree, or over
    each sample when `batch_axis` is given. A ‖f(z)‖ that the iteration has inflated does not count:
    it is taken to be at most 100 times the largest size that the problem has shown, ‖f(z0)‖ and the
    residuals on the way, and a residual that is lost in the rounding of such a z counts as that
    rounding (`Status.UNBOUNDED`). Nothing depends on the units of z.

    There is one norm over all unknowns: where they are of different size (one leaf of 1e5, one of
    1e-6) the small ones are solved to rtol of the large ones, unless `scale` says how large each
    is. `stats.leaves` has the relative residual of each leaf by itself.

    Gradients reach `args` and everything f closes over; none reaches `z0`, on which z* does not
    depend (`adjoint="unrolled"` excepted). Integer and PRNG-key inputs pass through. Reverse mode
    is right to any order; `jvp`, `jacfwd` and `hessian` need `forward_mode=True`.

    Args:
        f: f(z, *args) -> z', the same pytree, shapes and dtypes as z0. Pure.
        z0: pytree of floating-point arrays.
        *args: pytrees of arrays.
        solver: "picard", "anderson", "broyden", "newton_krylov", an object such as
            `Anderson(memory=6)`, or a solver object of jaxopt or optimistix.
        adjoint: "implicit" (exact), "phantom", "jfb", "tail", "shine" (approximate), "unrolled"
            (through the steps), "reversible" (the same in constant memory), or an object such as
            `Phantom(steps=3)`.
        adjoint_solver: solver of the implicit adjoint; None means the forward one.
        rtol: relative tolerance, overrides the solver's (default 1e-5 in float32, 1e-8 in float64).
        atol: absolute tolerance of the forward solve, in units of z, overrides the solver's. None
            means 0, with 1e-7 * rtol of the problem's size in its place, so that a solve ends at
            z* = 0. The adjoint equation is as large as the loss makes it: rtol alone holds there,
            unless `adjoint_solver` says otherwise.
        max_steps: of the forward solve, overrides the solver's (default 100). 0 only evaluates f at
            z0. The adjoint has its own, `adjoint_solver=deqjax.Anderson(max_steps=...)`.
        batch_axis: None, one equation over the whole pytree; an int, independent equations along
            that axis of every leaf. Each sample then stops on its own test and is frozen: its
            answer does not depend on the others. Samples that f couples (batch statistics) are one
            equation: finished ones are checked against the last evaluation of the whole batch, and
            end as `Status.INCONSISTENT` where they no longer hold.
        forward_mode: True makes forward-mode derivatives work too, and every mix of the two, by
            exact linear solves with the adjoint's solver. They have no report but `on_failure`: a
            tangent whose own solve fell short looks like any other.
        trace: `stats.trace` holds the residual before the first and after every step.
        resume: `sol.state` of an earlier solve of a similar equation: its history is used again.
            Pass `z0=sol.z` with it.
        scale: sizes of the unknowns, positive: a pytree like z, or one number for each of its
            leaves, or one number. Everything is then done in z / scale: norms, stop test, inner
            products, ridge, forward and adjoint; `stats.residual` and the trace are in it too. Each
            is rounded to a power of two, so that nothing else is.
        on_failure: what is done about a solve that ends otherwise than CONVERGED: this one, its
            adjoint, or a linear solve of forward mode. "warn" gives a `SolveWarning`, once for each
            line that calls; "raise" a `SolveError`; "nan" makes each sample that failed NaN, in z,
            in the gradient or in the tangent; "ignore" leaves it to the statistics. None is the
            policy of `checking_solves`, else of the environment variable DEQJAX_ON_FAILURE, else
            "warn" where JAX runs at once and "ignore" inside `jit`, where the other two of these
            put a host callback into the program: see docs/failures.md for what that costs.
        adjoint_probe: zeros from `deqjax.adjoint_probe`; differentiate with respect to it and its
            "gradient" is the `Stats` of the adjoint solve.
        stability: None, or so many products with J = ∂f/∂z at z*, 16 say, each of about two
            evaluations of f, after the solve: `stats.stability` then has the spectral radius of J
            for each sample, how far that may be off, and whether iterating f would keep z*. Root
            finders ("anderson", "broyden", "newton_krylov") also go to equilibria that it would
            leave. An estimate: a direction that grows little more than the others is seen by many
            products only. Samples that f couples are one equation (`batch_axis=None`).

    Returns:
        `Solution` with `z`, `stats` and `state`.

    Raises:
        TypeError: an unknown keyword, an integer state, or an f whose structure or dtypes differ.
        ValueError: an unknown name, a negative tolerance, or an f whose shapes differ.
        SolveError: a failed solve with the policy "raise". Inside `jit` it comes out of JAX's
            runtime, as an error of its own kind that quotes this one.

    Examples:
        >>> import jax, jax.numpy as jnp, deqjax
        >>> f = lambda z, w, x: jnp.tanh(w * z + x)
        >>> sol = deqjax.fixed_point(f, jnp.zeros(3), 0.5, jnp.arange(3.0))
        >>> bool(sol.stats.converged), sol.z.shape
        (True, (3,))
        >>> grad = jax.grad(lambda w: deqjax.fixed_point(f, jnp.zeros(3), w, jnp.ones(3)).z.sum())
        >>> bool(jnp.isfinite(grad(0.5)))
        True
    """
    check_callable("f", f)
    return solve(
        *(f, z0, args),
        solver=solver,
        adjoint=adjoint,
        adjoint_solver=adjoint_solver,
        rtol=rtol,
        atol=atol,
        max_steps=max_steps,
        batch_axis=batch_axis,
        forward_mode=forward_mode,
        trace=trace,
        resume=resume,
        scale=scale,
        on_failure=on_failure,
        adjoint_probe=adjoint_probe,
        stability=stability,
    )


def root_find(
    g: Callable[..., PyTree], z0: PyTree, *args: PyTree, **options: Unpack[Options]
) -> Solution:
    """Find z* with g(z*, *args) = 0.

    The stop test is ‖g(z)‖₂ ≤ atol + rtol·‖G z‖₂, with G = ∂g/∂z: for g(z) = Az − b, relative to
    ‖Az‖ ≈ ‖b‖. So neither the units of z nor those of g matter, and a start at the root ends at
    once. ‖G z‖ is measured by a difference at z0 (where ‖g(z0)‖ counts if it is larger) and again
    where the solve has ended, which goes on if it was ended too early: three evaluations of g more
    than the steps take. PETSc's rtol·‖g(z0)‖ would depend on the start instead.

    Solvers see the fixed point of z + g(z). The sign is the DEQ paper's, g = f − z: where the
    Jacobian of g has eigenvalues with positive real part (a gradient, say), pass −g. Where a first
    step g(z0) would be more than 8 times too long or too short by that difference (z in pascal, g
    without a unit), it is scaled; "picard" is z + g(z) always.

    Args:
        g: g(z, *args) -> the same pytree, shapes and dtypes as z0.
        z0: pytree of floating-point arrays.
        *args: pytrees of arrays.
        **options: the keywords of `fixed_point`. atol is in the units of g; with `scale`, which
            says how large the unknowns are, each component of g is divided by it too. In the
            statistics residual is ‖g(z)‖₂ and rel_residual is relative to the stop test's ‖G z‖.

    Examples:
        >>> import jax.numpy as jnp, deqjax
        >>> sol = deqjax.root_find(lambda z, a: a - z**2, jnp.ones(2), jnp.array([2.0, 3.0]))
        >>> bool(jnp.allclose(sol.z**2, jnp.array([2.0, 3.0]), rtol=1e-4))
        True
    """
    check_keywords("root_find", options, Options.__annotations__)
    check_callable("g", g)
    return solve(g, z0, args, root=True, **options)


@strict
def implicit_function(
    f: Callable[..., PyTree],
    z_star: PyTree,
    *args: PyTree,
    adjoint: str | Adjoint = "implicit",
    adjoint_solver: str | Solver | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    batch_axis: int | None = None,
    forward_mode: bool = False,
    scale: PyTree = None,
    on_failure: str | None = None,
    adjoint_probe: Stats | None = None,
) -> Solution:
    """Give a solution that came from anywhere its implicit gradient.

    z_star may come from SciPy, a C++ code, a table or a coarser model: no step is taken, and f is
    evaluated once to say how well it solves z = f(z, *args). The derivatives of `sol.z` with
    respect to args, and to what f closes over, are those of the implicit function theorem at
    z_star; none reaches z_star itself. For a root, g(z) = 0, pass f = z + g.

    The gradient of a z_star that is off by ε is off by O(ε): look at `stats.rel_residual`.

    Args:
        f: f(z, *args) -> z', the same pytree, shapes and dtypes as z_star.
        z_star: the solution.
        *args: pytrees of arrays.
        adjoint: as in `fixed_point`; the ones that differentiate a solver's steps have none here.
        adjoint_solver: as in `fixed_point`; None means "anderson".
        rtol: within which z_star counts as converged; the adjoint's too, unless it has its own.
        atol: as in `fixed_point`.
        batch_axis: as in `fixed_point`.
        forward_mode: as in `fixed_point`.
        scale: as in `fixed_point`.
        on_failure: as in `fixed_point`: a z_star that does not meet the tolerances has failed.
        adjoint_probe: as in `fixed_point`.

    Returns:
        `Solution` with z = z_star. The status is CONVERGED where z_star meets the tolerances,
        `Status.MAX_STEPS` where it does not.

    Examples:
        >>> import jax, jax.numpy as jnp, deqjax
        >>> def root_of(a):  # from another library, say
        ...     z_star = jax.lax.stop_gradient(jnp.sqrt(a))
        ...     newton = lambda z, a: 0.5 * (z + a / z) + (a - z**2) / 4
        ...     return deqjax.implicit_function(newton, z_star, a).z
        >>> bool(jnp.allclose(jax.grad(root_of)(4.0), 0.25))
        True
    """
    resolved = as_adjoint(adjoint)
    if resolved.differentiates_loop or resolved.keeps_state:
        raise ValueError(
            f"adjoint={resolved.name!r} needs the steps of a solve, and implicit_function takes "
            "none: use adjoint='implicit'"
        )
    check_callable("f", f)
    watch = Watch.of_call(on_failure)
    return solve(
        *(f, z_star, args),
        watch=replace(watch, what="solution given to implicit_function", given=True),
        adjoint=resolved,
        adjoint_solver=adjoint_solver,
        rtol=rtol,
        atol=atol,
        max_steps=0,
        batch_axis=batch_axis,
        forward_mode=forward_mode,
        scale=scale,
        adjoint_probe=adjoint_probe,
    )


def adjoint_probe(batch: int | None = None, dtype: Any = jnp.float32) -> Stats:
    """Zeros whose "gradient" is the `Stats` of the adjoint solve.

    A backward pass has no output of its own. So pass `adjoint_probe=probe` to `fixed_point` and
    differentiate with respect to the probe too: its cotangent carries the adjoint's status, steps,
    evaluations, residual and gain, as floating-point numbers. Give each solve its own probe:
    cotangents of a shared one add up. `solves` then counts the reports, `converged` how many of
    these had converged, and the status reads `Status.SEVERAL`; where no report came back, because
    the loss does not depend on z*, it reads `Status.NO_REPORT` and solves is 0.

    Args:
        batch: None for scalars, or the batch size when `batch_axis` is used.
        dtype: floating dtype of the numbers.

    Examples:
        >>> import jax, jax.numpy as jnp, deqjax
        >>> def loss(w, probe):
        ...     f = lambda z: jnp.tanh(w * z + 1.0)
        ...     return deqjax.fixed_point(f, jnp.zeros(2), adjoint_probe=probe).z.sum()
        >>> grad, stats = jax.grad(loss, (0, 1))(0.5, deqjax.adjoint_probe())
        >>> bool(stats.converged == 1)
        True
    """
    zero = jnp.zeros(() if batch is None else (batch,), dtype)
    return Stats(*(zero,) * 6, gain=zero, solves=zero)
