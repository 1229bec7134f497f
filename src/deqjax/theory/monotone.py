"""Monotone equilibria: z = σ(W z + b) with I − W strongly monotone (Winston and Kolter 2020,
arXiv 2006.08591)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import check_positive
from .._fixed_point import fixed_point
from .._solution import Solution
from .._state import wide
from ..solvers import Solver
from ..solvers import as_solver as any_solver
from ._activations import Activation, as_activation
from ._proximal import proximal, resolvent
from ._splittings import Averaged as Averaged
from ._splittings import ForwardBackward as ForwardBackward
from ._splittings import PeacemanRachford as PeacemanRachford
from ._splittings import Splitting as Splitting
from ._splittings import monotonicity as monotonicity

SPLITTINGS = {s.name: s for s in (ForwardBackward, PeacemanRachford, Averaged)}


def monotone(P: Any, S: Any, m: float = 0.1) -> jax.Array:
    """W = (1 − m) I − PᵀP + S − Sᵀ: every W with I − (W + Wᵀ)/2 ⪰ m I, and no other.

    For such a W, and a σ with slopes in [0, 1], z = σ(W z + b) has exactly one solution for every
    b, and ‖Δz*‖₂ ≤ ‖Δb‖₂/m, however large ‖W‖ is (Winston and Kolter 2020, proposition 1). With a
    small m, z* may depend more on b, and solves take longer.

    Args:
        P: (k, n), floating point.
        S: (n, n).
        m: in (0, 1], a Python number.

    Returns:
        (n, n), summed in float32 at least.

    Raises:
        ValueError: shapes that do not fit, or an m that is not positive.

    Examples:
        >>> import jax.numpy as jnp
        >>> from deqjax.theory import monotone, wellposed
        >>> W = monotone.monotone(jnp.eye(2), jnp.array([[0.0, 9.0], [0.0, 0.0]]))
        >>> W[0].round(2).tolist(), wellposed.certify(W, "relu").kind
        ([-0.09999999403953552, 9.0], 'monotone')
    """
    P, S = jnp.asarray(P), jnp.asarray(S)
    check_positive("m", m)
    if P.ndim != 2 or S.shape != (P.shape[1], P.shape[1]):
        raise ValueError(
            f"P must be (k, n) and S (n, n) with the same n; got {P.shape} and {S.shape}"
        )
    dtype = jnp.promote_types(P.dtype, S.dtype)
    p, s = P.astype(wide(dtype)), S.astype(wide(dtype))
    W = (1 - m) * jnp.eye(len(S), dtype=p.dtype) - p.T @ p + s - s.T
    return W.astype(dtype)


def solve(
    W: Any,
    b: Any,
    activation: str | Activation | Callable = "relu",
    *,
    z0: Any = None,
    solver: str | Solver = "peaceman_rachford",
    **options: Any,
) -> Solution:
    """z* = σ(W z* + b), each row of b by itself, by `deqjax.fixed_point`.

    Gradients reach W and b, exact to the adjoint's tolerance, as `adjoint` says. Not for an f of
    another form.

    Args:
        W: (n, n).
        b: (n,) or (batch, n).
        activation: a name, a function of JAX, or an `Activation`.
        z0: where to start, like b; None is zeros.
        solver: "peaceman_rachford", "forward_backward", "averaged", one of these as an object, or
            whatever `fixed_point` takes.
        **options: the other keywords of `fixed_point`; batch_axis is 0 where b has one.

    Returns:
        `Solution`; z like b.

    Raises:
        ValueError: shapes that do not fit, or an activation that a splitting cannot take.

    Examples:
        >>> import jax.numpy as jnp
        >>> from deqjax.theory import monotone
        >>> W = jnp.array([[-4.0, 9.0], [-9.0, 0.5]])
        >>> sol = monotone.solve(W, jnp.array([[1.0, 2.0], [1.0, -2.0]]))
        >>> bool(sol.stats.converged.all()), sol.z[0].round(2).tolist()
        (True, [0.2199999988079071, 0.009999999776482582])
    """
    W, b = jnp.asarray(W), jnp.asarray(b)
    sigma, solver = as_activation(activation), as_solver(solver)
    if isinstance(solver, Splitting):
        solver = solver.of(W, b, sigma)

    def f(z, W, b):
        return sigma(z @ W.T + b)

    z0 = jnp.zeros_like(b) if z0 is None else z0
    return fixed_point(
        *(f, z0, W, b), solver=solver, batch_axis=0 if b.ndim == 2 else None, **options
    )


def as_solver(given: str | Solver) -> Solver:
    """The splitting that a name stands for, or what it stands for in `fixed_point`."""
    if isinstance(given, str) and given in SPLITTINGS:
        return SPLITTINGS[given]()
    return any_solver(given)


def prox(activation: str | Activation | Callable, alpha: float, x: Any) -> jax.Array:
    """prox_{αf}(x), where σ = prox_f: the y with y + α (σ⁻¹(y) − y) = x.

    relu is its own for every α; a leaky relu has a closed form; for others, such as tanh, a scalar
    equation is solved for every entry, to rounding.

    Args:
        activation: one with slopes in [0, 1].
        alpha: α > 0.
        x: any shape.

    Raises:
        ValueError: an activation that is no proximal operator.

    Examples:
        >>> import jax.numpy as jnp
        >>> from deqjax.theory import monotone
        >>> float(monotone.prox("relu", 0.3, jnp.array(2.0)))
        2.0
    """
    check_positive("alpha", alpha)
    return resolvent(proximal(activation), alpha, jnp.asarray(x))
