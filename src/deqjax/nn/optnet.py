"""OptNet: the equalities of a quadratic program, learned from examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from .._errors import check_integer, check_positive
from ..implicit.qp import QPSolution, check_options, qp


class OptNet(nnx.Module):
    """z = argmin ½ ε zᵀz − cᵀz subject to A z = A exp(log z₀), z ≥ 0, with learned A and log z₀.

    The layer with which Amos and Kolter 2017 (arXiv 1703.00443, section 4.4) learned the rules of
    Sudoku from examples: c is what is known of the answer, and the right-hand side is made of a
    z₀ > 0, so that there always is a feasible point. Where the solution is a vertex, as a Sudoku's
    is, its exact gradient is zero; the layer trains on the smoothed one, an approximation.

    Not for inequalities that are to be learned: write those with `deqjax.implicit.qp` itself.

    Args:
        n: number of unknowns.
        equalities: rows of A, drawn from N(0, 1/n).
        quadratic: ε > 0.
        gradient: as in `deqjax.implicit.qp`, and so are the following.
        smoothing: as there.
        rtol: as there.
        max_steps: as there.
        on_failure: as there.
        rngs: for A.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import OptNet
        >>> layer = OptNet(4, equalities=2, rngs=nnx.Rngs(0))
        >>> sol = layer(jnp.ones((3, 4)))
        >>> sol.z.shape, bool(sol.stats.converged.all()), bool((sol.z >= 0).all())
        ((3, 4), True, True)
    """

    def __init__(
        self,
        n: int,
        *,
        equalities: int,
        quadratic: float = 0.1,
        gradient: str = "smoothed",
        smoothing: float | None = None,
        rtol: float | None = None,
        max_steps: int = 40,
        on_failure: str | None = None,
        rngs: nnx.Rngs,
    ):
        check_integer("n", n, least=1)
        check_integer("equalities", equalities, least=1)
        check_positive("quadratic", quadratic)
        check_options(rtol, None, max_steps, gradient, smoothing, False)
        self.A = nnx.Param(jax.random.normal(rngs.params(), (equalities, n)) / n**0.5)
        self.log_z0 = nnx.Param(jnp.zeros(n))
        self.quadratic = quadratic
        self.gradient, self.smoothing = gradient, smoothing
        self.rtol, self.max_steps, self.on_failure = rtol, max_steps, on_failure

    def __call__(self, c: jax.Array) -> QPSolution:
        """The solution of each sample.

        Args:
            c: (batch, n), what is known: larger where z should be.
        """
        A = self.A[...]
        n = A.shape[1]
        if c.ndim != 2 or c.shape[1] != n:
            raise ValueError(f"c must have the shape (batch, {n}); got {c.shape}")
        return qp(
            jnp.full(n, self.quadratic, c.dtype),
            -c,
            A.astype(c.dtype),
            (A @ jnp.exp(self.log_z0[...])).astype(c.dtype),
            lower=0.0,
            rtol=self.rtol,
            max_steps=self.max_steps,
            gradient=self.gradient,
            smoothing=self.smoothing,
            on_failure=self.on_failure,
        )
