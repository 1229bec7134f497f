"""A quadratic program with learned constraints, as a module."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from .._errors import check_integer
from .._failure import checked_policy
from ..implicit.qp import QPSolution, check_options, qp


class OptNet(nnx.Module):
    """z* = argmin ½ ε zᵀz + ½ ‖Lᵀz‖² − xᵀz  subject to  Az = A exp(log z₀),  Gz ≤ G exp(log z₀) + s,
    z ≥ 0.

    The layer of OptNet's Sudoku (Amos and Kolter, ICML 2017, arXiv 1703.00443): x scores each
    entry, and the constraints between entries are learned. z₀ > 0 meets all of them, so that the
    program has a solution whatever is learned. L, and G with s = exp(log s), are there if asked
    for.

    The gradient is the smoothed one by default, an approximation: constraints that determine z, as
    a Sudoku's rules do, make the exact gradient zero.

    Args:
        n: entries of x and z.
        equalities: rows of A.
        inequalities: rows of G; 0, there is no G.
        quadratic: ε > 0.
        rank: columns of L; 0, there is no L.
        gradient: as in `deqjax.implicit.qp`.
        smoothing: as in `deqjax.implicit.qp`; None is 1e-3 for "smoothed".
        rtol: as in `deqjax.implicit.qp`; the default is what training needs.
        max_steps: as in `deqjax.implicit.qp`.
        on_failure: as in `deqjax.fixed_point`.
        rngs: A, G and L are drawn from `params`, normal, with rows of length one or so.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import OptNet
        >>> layer = OptNet(8, equalities=3, rngs=nnx.Rngs(0))
        >>> sol = layer(jnp.ones((2, 8)))
        >>> sol.z.shape, bool(sol.stats.converged.all())
        ((2, 8), True)
    """

    def __init__(
        self,
        n: int,
        equalities: int,
        *,
        inequalities: int = 0,
        quadratic: float = 0.1,
        rank: int = 0,
        gradient: str = "smoothed",
        smoothing: float | None = None,
        rtol: float = 1e-3,
        max_steps: int = 40,
        on_failure: str | None = None,
        rngs: nnx.Rngs,
    ):
        check_integer("n", n, least=1)
        check_integer("equalities", equalities, least=1)
        check_integer("inequalities", inequalities, least=0)
        check_integer("rank", rank, least=0)
        if not quadratic > 0:
            raise ValueError(f"quadratic must be positive, such as 0.1; got {quadratic!r}")
        if smoothing is None and gradient == "smoothed":
            smoothing = 1e-3
        check_options(rtol, None, max_steps, gradient, smoothing, False)
        draw = lambda rows: jax.random.normal(rngs.params(), (rows, n)) / n**0.5
        self.A = nnx.Param(draw(equalities))
        self.log_z0 = nnx.Param(jnp.zeros(n))
        self.G = nnx.Param(draw(inequalities)) if inequalities else None
        self.log_s = nnx.Param(jnp.zeros(inequalities)) if inequalities else None
        self.L = nnx.Param(draw(rank).T) if rank else None
        self.quadratic, self.rtol, self.max_steps = quadratic, rtol, max_steps
        self.gradient, self.smoothing = gradient, smoothing
        self.on_failure = None if on_failure is None else checked_policy(on_failure)

    def __call__(self, x: jax.Array) -> QPSolution:
        """The solution for scores x, (batch, n) or (n,)."""
        A, z0 = self.A[...], jnp.exp(self.log_z0[...])
        G = h = None
        if self.G is not None and self.log_s is not None:
            G = self.G[...]
            h = G @ z0 + jnp.exp(self.log_s[...])
        n = z0.shape[0]
        Q = jnp.full(n, self.quadratic, z0.dtype)
        if self.L is not None:
            L = self.L[...]
            Q = jnp.diag(Q) + L @ L.T
        return qp(
            Q,
            -x,
            A,
            A @ z0,
            G,
            h,
            lower=0.0,
            rtol=self.rtol,
            max_steps=self.max_steps,
            gradient=self.gradient,
            smoothing=self.smoothing,
            on_failure=self.on_failure,
        )
