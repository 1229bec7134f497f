"""The gradient audit: how far each cheap gradient is from the exact one, on your own cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._fixed_point import adjoint_probe, fixed_point
from .._shown import Shown, worst
from .._solution import Stats, Status
from ..adjoints import Adjoint, Implicit, as_adjoint
from ..solvers import Solver, as_solver
from ._inputs import check_concrete, checked, named, of_modules
from ._table import ending, table

PyTree = Any


@dataclass(frozen=True)
class GradientRow:
    """One adjoint's gradient g against the exact g*, over all of `args` as one vector.

    Attributes:
        adjoint: its name.
        cosine: ⟨g, g*⟩ / (‖g‖ ‖g*‖); NaN if either is zero.
        relative_norm: ‖g‖ / ‖g*‖.
        relative_error: ‖g − g*‖ / ‖g*‖.
        evaluations: of f by the forward solve, and products with its Jacobian by the backward pass
            (for an adjoint that goes back through the steps, as many again), of the slowest sample.
    """

    adjoint: str
    cosine: float
    relative_norm: float
    relative_error: float
    evaluations: int


@dataclass(frozen=True, repr=False)
class GradientAudit(Shown):
    """What `gradient_audit` found. Its `str()` is a table.

    Attributes:
        rows: a `GradientRow` for each adjoint.
        forward: `Stats` of the forward solve.
        reference: `Stats` of the adjoint solve behind the exact gradient.
        gradients: {adjoint: gradient}, "exact" among them: the floating-point leaves of `args`.
    """

    rows: tuple[GradientRow, ...]
    forward: Stats
    reference: Stats
    gradients: Mapping[str, list]

    @property
    def trustworthy(self) -> bool:
        """Whether both solves behind the exact gradient converged."""
        return bool(self.forward.converged.all() and self.reference.converged.all())

    @property
    def evaluations(self) -> int:
        """What the exact gradient took: see `GradientRow`."""
        return _most(self.forward) + _most(self.reference)

    def plot(self, ax: Any = None, *, offset: int = 0) -> Any:
        """Error against cost: see `plot_gradients`."""
        from .gradient_plot import plot_gradients

        return plot_gradients(self, ax, offset=offset)

    def __str__(self) -> str:
        lines = [
            f"{name} solve: {ending(stats)}, relative residual {worst(stats.rel_residual):.1e}, "
            f"{_most(stats)} evaluations"
            for name, stats in (("forward", self.forward), ("adjoint", self.reference))
        ]
        if not self.trustworthy:
            lines.append(
                "the exact gradient is itself in doubt, since a solve behind it did not converge: "
                "read the rows as agreement with it, not as errors"
            )
        header = ("adjoint", "cosine", "|g|/|g*|", "|g-g*|/|g*|", "evaluations")
        rows = [
            (
                *(r.adjoint, f"{r.cosine:.6f}", f"{r.relative_norm:.4f}"),
                *(f"{r.relative_error:.1e}", str(r.evaluations)),
            )
            for r in self.rows
        ]
        return "\n".join([*lines, "", table(header, rows)])


@of_modules()
def gradient_audit(
    f: Callable[..., PyTree],
    z0: PyTree,
    *args: PyTree,
    adjoints: str | Adjoint | Sequence[str | Adjoint] | Mapping[str, Any] = ("phantom", "jfb"),
    loss: Callable[[PyTree], jax.Array] | None = None,
    solver: str | Solver = "anderson",
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    batch_axis: int | None = None,
    adjoint_solver: str | Solver | None = None,
    key: jax.Array | None = None,
) -> GradientAudit:
    """Compare approximate gradients with the exact implicit one, in direction and in size.

    The reference is `Implicit` at the same forward solution, with an adjoint solve about as tight
    as the dtype allows; its own report is part of the result. What the forward residual does to
    both is not measured: for that, tighten `rtol` and see whether the rows move.

    Args:
        f: as in `fixed_point`; or a module such as `deqjax.nn.DEQ`, followed by its input alone.
        z0: as in `fixed_point`.
        *args: as in `fixed_point`. Gradients are taken with respect to their floating-point leaves,
            so the parameters must be here and not in a closure.
        adjoints: names and objects that `fixed_point` takes, or {name: one of them}.
        loss: loss(z) -> scalar; None is a random linear functional of z, drawn from `key`.
        solver: of the forward solves.
        rtol: of the forward solves.
        atol: of the forward solves.
        max_steps: of the forward solves.
        batch_axis: as in `fixed_point`.
        adjoint_solver: of the reference, options included; None is the forward solver's family,
            tight and with up to 1000 steps.
        key: PRNG key of the default loss; None is always the same key.

    Raises:
        TypeError: called inside `jit`.
        ValueError: no floating-point argument, a loss that is no scalar, or whatever `fixed_point`
            says about its arguments.

    Examples:
        >>> import jax.numpy as jnp
        >>> f = lambda z, w: 0.5 * z + w
        >>> audit = gradient_audit(f, jnp.zeros(2), jnp.ones(2), solver="picard")
        >>> [(r.adjoint, round(r.cosine, 3), round(r.relative_norm, 3)) for r in audit.rows]
        [('phantom', 1.0, 0.763), ('jfb', 1.0, 0.5)]
    """
    check_concrete("gradient_audit", (z0, args))
    z0, batch = checked(f, z0, args, batch_axis)
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, args))
    floating = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]
    if not any(floating):
        raise ValueError(
            "gradient_audit differentiates with respect to args, and there is no floating-point "
            "array among them: pass the parameters as arguments, f(z, *args), not in a closure"
        )
    if loss is None:
        loss = _random_functional(z0, key)
    elif (shape := jnp.shape(jax.eval_shape(loss, z0))) != ():
        raise ValueError(f"loss must return a scalar, it returned shape {shape}")
    forward = as_solver(solver).with_options(rtol=rtol, atol=atol, max_steps=max_steps)
    if adjoint_solver is None:
        adjoint_solver = _tight(forward, z0)

    def gradient(adjoint, probe=None):
        @jax.jit
        def run(theta, probe, z0):
            def objective(theta, probe):
                parts = iter(theta)
                mixed = [next(parts) if t else x for x, t in zip(leaves, floating, strict=True)]
                sol = fixed_point(
                    *(f, z0, *jax.tree.unflatten(treedef, mixed)),
                    solver=forward,
                    adjoint=adjoint,
                    batch_axis=batch_axis,
                    on_failure="ignore",  # the audit says how each ended
                    adjoint_probe=probe,
                )
                return loss(sol.z), sol.stats

            return jax.grad(objective, (0, 1), has_aux=True)(theta, probe)

        theta = [x for x, t in zip(leaves, floating, strict=True) if t]
        (theta_bar, report), stats = run(theta, probe, z0)
        return theta_bar, report, jax.tree.map(np.asarray, stats)

    probe = adjoint_probe(None if batch_axis is None else batch, jnp.float32)
    exact, report, stats = gradient(Implicit(solver=adjoint_solver), probe)
    gradients, rows = {"exact": exact}, []
    for name, adjoint in named(adjoints).items():
        through_steps = as_adjoint(adjoint).differentiates_loop  # which have nothing to report
        gradients[name], backward, taken = gradient(adjoint, None if through_steps else probe)
        back = _most(taken) if through_steps else _most(backward)
        rows.append(_compare(name, gradients[name], exact, _most(taken) + back))
    rows = tuple(rows)
    return GradientAudit(rows, stats, _rounded(report), gradients)


def _random_functional(z: PyTree, key: jax.Array | None) -> Callable:
    """z -> Re Σ c·z with Gaussian c of z's shape."""
    leaves, treedef = jax.tree.flatten(z)
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(leaves))
    drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    c = jax.tree.unflatten(treedef, drawn)

    def loss(z):
        dots = jax.tree.map(lambda c, x: jnp.vdot(c, x).real.astype(jnp.float32), c, z)
        return sum(jax.tree.leaves(dots))

    return loss


def _tight(forward: Solver, z: PyTree) -> Solver:
    """The forward solver's family for the adjoint, a hundred times tighter or near round-off."""
    eps = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(z))
    rtol = forward.tolerances(z).rtol
    rtol = min(rtol, max(1e-2 * rtol, 10 * eps))
    return replace(forward.for_adjoint(), rtol=rtol, atol=0.0, max_steps=1000)


def _rounded(report: Stats) -> Stats:
    """A probe's report, which comes as floating-point numbers, in the dtypes of `Stats`."""
    report = jax.tree.map(np.asarray, report)
    counts = {k: np.rint(getattr(report, k)).astype(np.int32) for k in ("steps", "f_evals")}
    status = np.rint(report.status).astype(np.int32)
    return replace(report, status=status, converged=status == Status.CONVERGED, **counts)


def _most(stats: Stats) -> int:
    """Evaluations of the slowest sample."""
    return round(worst(stats.f_evals))


def _compare(name: str, g: list, exact: list, evaluations: int) -> GradientRow:
    def vector(leaves):
        return np.concatenate([np.ravel(np.asarray(x)).astype(np.complex128) for x in leaves])

    a, b = vector(g), vector(exact)
    size, size_exact, error = (np.linalg.norm(x) for x in (a, b, a - b))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.vdot(a, b).real / (size * size_exact)
        relative = (float(cosine), float(size / size_exact), float(error / size_exact))
        return GradientRow(name, *relative, evaluations)
