"""What is done about a solve that failed: one policy for forward, adjoint and tangent solves.

A backward pass has no output of its own to report in, and a linear solve of forward mode neither.
So the policy is decided where `fixed_point` is called or traced, travels with the equation as a
`Watch`, and is followed by every solve that the call leads to, however much later that one runs.
"""

from __future__ import annotations

import os
import sys
import threading
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._errors import suggest
from ._program import concrete, staged, still
from ._solution import SolveError, Stats, Status
from ._state import from_front, per_sample, to_front
from .solvers import Solver

PyTree = Any

POLICIES = ("warn", "raise", "nan", "ignore")
VARIABLE = "DEQJAX_ON_FAILURE"

# JAX's own kind of context: its caches know the value, so that a function which was traced outside
# of a block is traced again inside.
_context = jax.make_user_context(None)

_told: set[tuple] = set()
_lock = threading.Lock()


class SolveWarning(RuntimeWarning):
    """A forward, adjoint or tangent solve failed. Said once for each line that calls, and each kind
    of solve; a filter that makes it an error has it raised every time."""


def checking_solves(policy: str = "warn") -> AbstractContextManager:
    """Within the block, failed solves are treated as `policy` says, compiled ones included.

    It holds for calls without `on_failure=`, and for all that follows from such a call: a backward
    pass that runs after the block follows it too. A jitted function that was compiled outside is
    compiled again for the block.

    Args:
        policy: as `on_failure` of `deqjax.fixed_point`.

    Raises:
        ValueError: an unknown policy.

    Examples:
        >>> import jax, jax.numpy as jnp, deqjax
        >>> solve = jax.jit(lambda w: deqjax.fixed_point(lambda z: w * z + 1, jnp.zeros(2)).z)
        >>> with deqjax.checking_solves("nan"):
        ...     z = solve(1.0)  # z = z + 1 has no solution
        >>> bool(jnp.isnan(z).all())
        True
    """
    return _context(checked_policy(policy))


def checked_policy(given: Any, name: str = "on_failure") -> str:
    """`given`, if it is a policy."""
    if not isinstance(given, str):
        known = ", ".join(POLICIES)
        raise TypeError(f"{name} must be one of {known}, or None; got {type(given).__name__}")
    if given not in POLICIES:
        raise ValueError(f"{name}={given!r} is not a known policy{suggest(given, POLICIES)}")
    return given


@dataclass(frozen=True)
class Watch:
    """The policy of one call, and what to say of it.

    Attributes:
        policy: one of `POLICIES`; None, nobody asked: warn where that takes no callback.
        file: of the user's line that called.
        line: its number.
        what: the kind of solve.
        given: the solution came from elsewhere, and no step was to be taken.
    """

    policy: str | None
    file: str = "?"
    line: int = 0
    what: str = "forward solve"
    given: bool = False

    @classmethod
    def of_call(cls, on_failure: str | None) -> Watch:
        """That of a call which is being made: the keyword, else the context, else the environment.

        Raises one sentence for a policy that there is not.
        """
        if on_failure is not None:
            policy = checked_policy(on_failure)
        elif _context.value is not None:
            policy = _context.value
        else:
            variable = os.environ.get(VARIABLE)
            policy = checked_policy(variable, VARIABLE) if variable else None
        return cls(policy, *_calling_line())

    def of(self, what: str) -> Watch:
        """That of another kind of solve."""
        return replace(self, what=what)

    def quiet(self) -> Watch:
        """For a program whose reports are heard outside of it: it only marks failures."""
        return Watch("nan" if self.policy == "nan" else "ignore")

    def settled(self, what: str) -> Watch:
        """The same for a solve that JAX stages in any case: whether the program that holds it is
        run at once shows only here, outside."""
        policy = self.policy or ("ignore" if staged() else "warn")
        return replace(self, what=what, policy=policy)

    def hear(self, stats: Stats, solver: Solver) -> None:
        """Warn or raise if a solve failed."""
        if self.policy in ("nan", "ignore") or self._only_evaluates(solver):
            return
        ending = still((stats.status, stats.rel_residual, stats.steps))
        if concrete(ending):
            status = _here(ending[0])
            if _failed(status).any():
                ending = [status, *map(_here, ending[1:])]
                self._judge(*_worst(np, *ending), samples=status.size)
        elif self.policy is not None or not staged():
            # Four numbers: of a batch over several devices the rest need not be gathered.
            jax.debug.callback(
                partial(self._judge, samples=stats.status.size), *_worst(jnp, *ending)
            )

    def mark(self, z: PyTree, stats: Stats, solver: Solver, axis: int | None = 0) -> PyTree:
        """z, whose batch is on `axis` (`to_front`); with the policy "nan", NaN in each sample that
        failed.

        A product, and not a choice, so that what is differentiated through a NaN is NaN as well.
        """
        if self.policy != "nan" or self._only_evaluates(solver):
            return z
        mark = lax.stop_gradient(jnp.where(_failed(stats.status), jnp.nan, 1.0))
        marked = lambda x: x * per_sample(mark.astype(x.dtype), x)
        return from_front(jax.tree.map(marked, to_front(z, axis)), axis)

    def _only_evaluates(self, solver: Solver) -> bool:
        """Zero steps were asked for, to see where z is: no failure."""
        return solver.max_steps == 0 and not self.given

    def _judge(self, failed, status, rel_residual, steps, *, samples: int) -> None:
        if not failed:
            return
        worst = Status(int(status))
        of = f" for {failed} of {samples} samples" if samples > 1 else ""
        message = (
            f"deqjax: the {self.what} of the call at {self.file}:{self.line} failed{of} "
            f"({worst.name.lower()}; relative residual {float(rel_residual):.2e}, "
            f"{int(steps)} steps): {worst.message}"
        )
        if self.policy == "raise":
            raise SolveError(message)
        key = (self.file, self.line, self.what)
        with _lock:
            if key in _told:
                return
            _told.add(key)
        try:
            warnings.warn_explicit(message, SolveWarning, self.file, self.line)
        except SolveWarning:  # a filter made it an error: that is to be one every time
            _told.discard(key)
            raise


def _failed(status):
    """A gain that was limited on request did not fail."""
    return (status != Status.CONVERGED) & (status != Status.LIMITED)


def _worst(xp, status, rel_residual, steps) -> list:
    """How many samples failed, and the largest of each over these, in numpy or in jax.numpy."""
    failed = _failed(status)
    worst = [xp.max(xp.where(failed, x, 0), initial=0) for x in (status, rel_residual, steps)]
    return [xp.sum(failed), *worst]


def _here(x) -> np.ndarray:
    """The values, (batch,); of an array over several processes, those of this one."""
    # `device_get` is a transfer that `jax.transfer_guard` lets pass.
    if x.is_fully_addressable:
        return jax.device_get(x)
    return np.concatenate([jax.device_get(shard.data) for shard in x.addressable_shards])


def _calling_line() -> tuple[str, int]:
    """Where the user is: the innermost frame outside this package and what it is called through."""
    passed = ("deqjax", "jax", "flax")
    here = frame = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in passed:
        here, frame = frame, frame.f_back
    frame = frame or here
    return frame.f_code.co_filename, frame.f_lineno
