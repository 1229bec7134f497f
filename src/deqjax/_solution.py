"""What a solve returns: the iterate, how the solve ended, and what it cost."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class Status(enum.IntEnum):
    """How a solve ended. Integer codes, so that they live in arrays under `jit`; `.message` says
    what to do about each.

    Examples:
        >>> Status.MAX_STEPS.message.startswith("stopped after max_steps")
        True
    """

    CONVERGED = 0
    MAX_STEPS = 1
    NONFINITE = 2
    DIVERGED = 3
    RUNNING = 4
    INCONSISTENT = 5

    @property
    def message(self) -> str:
        return _MESSAGES[self]


_MESSAGES = {
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
        "the solution does not hold when it is checked once more: with Compacted, samples are not "
        "independent (draw random masks outside f and pass them as args); in root_find, z is so "
        "large that g(z) is lost in the rounding of z + g(z)"
    ),
}


class SolveError(RuntimeError):
    """Raised by `Solution.raise_unless_converged`, and only there."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stats:
    """How a solve went. Scalars, or arrays of shape (batch,) when `batch_axis` was given.

    Attributes:
        status: int32, a `Status` code.
        converged: bool, `status == Status.CONVERGED`.
        steps: int32, solver steps taken.
        f_evals: int32, evaluations of f, line searches included.
        residual: ‖f(z) − z‖₂ at the returned z, in float32 at least.
        rel_residual: residual / ‖f(z)‖₂.
        trace: residual before the first step and after every step, shape (max_steps + 1, ...), NaN
            after the stop; None unless `trace=True`.
    """

    status: Any
    converged: Any
    steps: Any
    f_evals: Any
    residual: Any
    rel_residual: Any
    trace: Any = None

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

    def times(self, size: jax.Array) -> Stats:
        """The report of the same solve with everything `size` times as large."""
        return replace(self, residual=self.residual * size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Solution:
    """The result of `fixed_point` and `root_find`.

    Attributes:
        z: the best iterate seen, same pytree, shapes and dtypes as `z0`. Gradients flow through it.
        stats: a `Stats`.
        state: the solver's own state (history), for `resume=`. No gradients flow through it.
    """

    z: Any
    stats: Stats
    state: Any = None

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
