"""What a solve returns: the iterate, how the solve ended, and what it cost."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from . import _shown


class Status(enum.IntEnum):
    """How a solve ended. Integer codes, so that they live in arrays under `jit`; `.message` says
    what to do about each.

    No sum of codes is a code, and zero is none of an ending: what automatic differentiation makes
    of a report (see `adjoint_probe`), zeros where none came back and sums where several did, reads
    as `NO_REPORT` and `SEVERAL`.

    Examples:
        >>> Status.MAX_STEPS.message.startswith("stopped after max_steps")
        True
        >>> Status(Status.CONVERGED + Status.MAX_STEPS).name
        'SEVERAL'
    """

    NO_REPORT = 0
    SEVERAL = 1
    CONVERGED = 10
    MAX_STEPS = 11
    NONFINITE = 12
    DIVERGED = 13
    RUNNING = 14
    INCONSISTENT = 15
    UNBOUNDED = 16
    LIMITED = 17
    INFEASIBLE = 18
    NOT_CONVEX = 19

    @classmethod
    def _missing_(cls, value):
        several = isinstance(value, int) and value >= 2 * cls.CONVERGED
        return cls.SEVERAL if several else None

    @property
    def message(self) -> str:
        return _MESSAGES[self]

    @classmethod
    def counts(cls, status: Any) -> dict[str, int]:
        """{name: how many} of an array of codes, the commonest first. Outside of `jit`.

        Examples:
            >>> Status.counts([10, 11, 10])
            {'CONVERGED': 2, 'MAX_STEPS': 1}
        """
        return _shown.counts(status, lambda code: cls(code).name)


_MESSAGES = {
    Status.NO_REPORT: (
        "no report came back: the loss does not depend on z*, or nothing was differentiated with "
        "respect to the probe"
    ),
    Status.SEVERAL: (
        "reports of several solves were added up: read the counts (solves, converged, steps), or "
        "give each solve a probe of its own"
    ),
    Status.CONVERGED: "converged: the residual met atol + rtol*|f(z)|",
    Status.MAX_STEPS: (
        "stopped after max_steps: raise max_steps, loosen rtol, or try another solver "
        "(see 'how to choose a solver'); a residual that stays near 1e-4 on a GPU, or near 1e-3 on "
        "a TPU, is the rounding of float32 products there: jax_default_matmul_precision='highest'"
    ),
    Status.NONFINITE: (
        "f or the solver's step gave NaN, infinity or numbers whose squares overflow: the best "
        "finite iterate seen is returned; check the inputs, the parameters and the range of f"
    ),
    Status.DIVERGED: (
        "the residual diverged: the best iterate seen is returned; add damping, try 'anderson' or "
        "'broyden', or check the spectral radius of the Jacobian at the solution"
    ),
    Status.RUNNING: "the solve has not finished",
    Status.INCONSISTENT: (
        "the solution does not hold when it is checked once more: samples are not independent, as "
        "with batch statistics (solve with batch_axis=None), or f is not the same function twice "
        "(draw random masks outside f and pass them as args); with Compacted, or where a root was "
        "unrolled, the check is one more evaluation"
    ),
    Status.UNBOUNDED: (
        "z grew while the residual did not fall: it is small only beside a z that has run away, so "
        "the equation may have no solution (or a nearly singular I - J): check it, or bound f; of "
        "a quadratic program: its objective falls without end along a ray that was checked; of a "
        "flow: z leaves every bound before t1"
    ),
    Status.LIMITED: (
        "the adjoint's u was scaled down to max_gain times v, or the forward solve had not "
        "converged: the gradient of this sample is an approximation, asked for by "
        "Implicit(max_gain=..., unconverged='jfb' | 'tail' | 'zero'); of maxsat: damping above "
        "1e-6, or a result at exactly 0 or 1, where the angle has no derivative"
    ),
    Status.INFEASIBLE: (
        "no z meets the constraints: a certificate (Farkas) was found and checked; relax them, or "
        "look for equalities that contradict each other"
    ),
    Status.NOT_CONVEX: (
        "Q has a negative eigenvalue, so the program is not convex and has no solution that this "
        "method finds: symmetrise Q and check how it is made (L L' + eps I is convex)"
    ),
}


class SolveError(RuntimeError):
    """Raised by `Solution.raise_unless_converged`, and by solves with `on_failure="raise"`."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Stats(_shown.Shown):
    """How a solve went. Scalars, or arrays of shape (batch,) when `batch_axis` was given.

    Printed, it is a line: how many converged, in how many steps, and how well.

    Attributes:
        status: int32, a `Status` code.
        converged: bool, `status == Status.CONVERGED`.
        steps: int32, solver steps taken.
        f_evals: int32, evaluations of f, line searches included.
        residual: ‖f(z) − z‖₂ at the returned z (for `root_find` ‖g(z)‖₂), in float32 at least; with
            `scale=`, of the scaled unknowns.
        rel_residual: residual / ‖f(z)‖₂; for a root and for an adjoint equation, over what its stop
            test compares with.
        trace: residual before the first step and after every step, shape (max_steps + 1, ...), NaN
            after the stop; None unless `trace=True`.
        leaves: of a state with several leaves, the relative residual of each by itself, shape
            (..., leaves) in the order of `jax.tree.leaves(z)`: the stop test knows only the norm
            over all of them, and this tells which leaf is worst. None for a single leaf.
        gain: of an adjoint solve, ‖u‖₂/‖v‖₂: a lower bound of ‖(I − J)⁻ᵀ‖, and, times rel_residual,
            an estimate of the gradient's relative error. None for other solves.
        solves: in the report of an adjoint solve, 1; where autodiff has added several up, how many.
        stability: with `stability=`, a named tuple of the spectral radius of J at z* (`radius`),
            how far it may be off (`error`), and whether the sum is below one (`stable`): whether
            iterating f keeps z*, as far as so many products can tell. None if not asked for.
    """

    status: Any
    converged: Any
    steps: Any
    f_evals: Any
    residual: Any
    rel_residual: Any
    trace: Any = None
    leaves: Any = None
    gain: Any = None
    solves: Any = None
    stability: Any = None

    @property
    def stable(self) -> Any:
        """bool: whether plain iteration would keep z*, by `stability`; None if not asked for."""
        return None if self.stability is None else self.stability.stable

    def __str__(self) -> str:
        return f"{type(self).__name__}({self._said()})"

    def _said(self) -> str:
        numbers = (self.status, self.steps, self.f_evals, self.rel_residual, self.gain)
        if not _shown.concrete(*numbers):
            return "no numbers yet"
        if not np.size(self.status):
            return "no samples"
        parts = [
            _shown.endings(Status.counts(self.status)),
            f"{_shown.span(self.steps)} steps",
            f"worst residual {_shown.worst(self.rel_residual):.1e}",
        ]
        if self.gain is not None:
            parts.append(f"gain up to {_shown.worst(self.gain):.3g}")
        if self.stability is not None:
            parts.append(f"{np.sum(self.stable)}/{np.size(self.stable)} stable")
        return ", ".join(parts)

    def summary(self) -> str:
        """A paragraph: what each ending means, steps, evaluations, residuals, the worst sample and
        leaf. Outside of `jit`."""
        if not _shown.concrete(self.status):
            raise TypeError("summary() needs concrete values: call it outside of jit")
        found = Status.counts(self.status)
        lines = [_shown.endings(found)]
        lines += [
            f"  {name.lower()}: {Status[name].message}" for name in found if name != "CONVERGED"
        ]
        for what, given in (("steps", self.steps), ("evaluations of f", self.f_evals)):
            lines.append(f"{what}: {_shown.span(given)}, median {np.median(given):.6g}")
        relative = np.ravel(np.asarray(self.rel_residual))
        at = f" (sample {relative.argmax()})" if relative.size > 1 else ""
        lines.append(
            f"relative residual: median {np.median(relative):.1e}, worst {relative.max():.1e}{at}"
        )
        if self.leaves is not None:
            of_leaves = np.asarray(self.leaves).reshape(-1, np.shape(self.leaves)[-1]).max(axis=0)
            worst = int(of_leaves.argmax())
            lines.append(
                f"worst leaf: number {worst} of jax.tree.leaves(z), {of_leaves[worst]:.1e}"
            )
        if self.gain is not None:
            lines.append(f"gain of the adjoint: {_shown.span(self.gain)}")
        return _shown.Text("\n".join(lines))

    @classmethod
    def unsolved(cls, steps: int, residual: jax.Array, size: jax.Array) -> Stats:
        """The report of `steps` applications that were never a solve: `Status.MAX_STEPS`.

        Args:
            steps: applications of f.
            residual: ‖f(z) − z‖, per sample.
            size: ‖f(z)‖, per sample.
        """
        count = jnp.full(residual.shape, steps, jnp.int32)
        return cls(
            status=jnp.full(residual.shape, int(Status.MAX_STEPS), jnp.int32),
            converged=jnp.zeros(residual.shape, bool),
            steps=count,
            f_evals=count,
            residual=residual,
            rel_residual=residual / jnp.where(size > 0, size, 1),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Solution(_shown.Shown):
    """The result of `fixed_point` and `root_find`.

    Printed, it is a line; `summary()` says more.

    Attributes:
        z: the best iterate seen, same pytree, shapes and dtypes as `z0`. Gradients flow through it.
        stats: a `Stats`.
        state: the solver's own state (history), for `resume=`. No gradients flow through it.
    """

    z: Any
    stats: Stats
    state: Any = None

    def __str__(self) -> str:
        return f"{type(self).__name__}(z {_shown.state(self.z)}, {self.stats._said()})"

    def summary(self) -> str:
        """`Stats.summary`, after what z is."""
        return _shown.Text(f"z: {_shown.state(self.z)}\n{self.stats.summary()}")

    def raise_unless_converged(self) -> Solution:
        """Return self if every sample converged, else raise `SolveError` with the worst ending.

        Works on concrete values only: call it outside `jit`.
        """
        if isinstance(self.stats.status, Tracer):
            raise TypeError(
                "raise_unless_converged() needs concrete values: return sol.stats from the jitted "
                "function and check it outside, or branch on sol.stats.converged inside"
            )
        status = np.atleast_1d(np.asarray(self.stats.status))
        failed = status[status != Status.CONVERGED]
        if failed.size:
            worst = Status(int(failed.max()))
            of = f"{failed.size} of {status.size} solves" if status.size > 1 else "the solve"
            rel = float(np.max(np.asarray(self.stats.rel_residual)))
            raise SolveError(
                f"{of} failed ({worst.name.lower()}; relative residual {rel:.2e}): {worst.message}"
            )
        return self
