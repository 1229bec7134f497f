"""A loop that somebody wrote, as a solve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from ._errors import check_callable, check_integer, check_keywords
from ._fixed_point import fixed_point
from ._options import Options
from ._solution import Solution
from .adjoints import Implicit
from .solvers import Picard

PyTree = Any


def from_loop(
    step: Callable[..., PyTree], *, steps: int, **options: Unpack[Options]
) -> Callable[..., Solution]:
    """`for _ in range(steps): z = step(z, *args)` as a solve with a status.

    The iterates are the same. A sample ends where it rests, and is frozen there; `stats.status`
    says which ones did not, and `sol.z` is then the iterate that came nearest, which need not be
    the last. The gradient is the implicit one of samples that came to rest, in memory that does not
    grow with `steps`, and that of a few more steps (`deqjax.Tail`) for the others.

    Args:
        step: step(z, *args) -> z', the same pytree, shapes and dtypes as z. Pure, and the same at
            every step: what depends on a counter has no equilibrium.
        steps: at most so many.
        **options: any of `fixed_point`: `batch_axis=0` for independent samples, `rtol`,
            `stability=16`, ...

    Returns:
        solve(z0, *args) -> `Solution`.

    Examples:
        >>> import jax.numpy as jnp, deqjax
        >>> def step(z, w, x):
        ...     return jnp.tanh(z @ w + x)
        >>> solve = deqjax.from_loop(step, steps=30, batch_axis=0)
        >>> sol = solve(jnp.zeros((4, 8)), 0.3 * jnp.eye(8), jnp.ones((4, 8)))
        >>> bool(sol.stats.converged.all()), int(sol.stats.steps.max()) < 30
        (True, True)
    """
    check_keywords("from_loop", options, Options.__annotations__.keys() - {"max_steps"})
    check_callable("step", step)
    check_integer("steps", steps, least=1)
    given: Any = dict(solver=Picard(), adjoint=Implicit(unconverged="tail")) | options
    return lambda z0, *args: fixed_point(step, z0, *args, max_steps=steps, **given)
