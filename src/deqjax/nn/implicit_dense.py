"""A dense layer that is an equilibrium, and provably has one."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import nnx

from .._errors import check_fraction, check_integer, suggest
from .._failure import checked_policy
from .._options import choose
from .._solution import Solution, Stats
from ..adjoints import Adjoint
from ..solvers import Solver
from ..theory import monotone
from ..theory.wellposed import Activation, Certificate, certify, mu_bounded, norm_bounded
from ..theory.wellposed import as_activation as registered

SOLVERS = {"inf_norm": "anderson", "mu_inf": "anderson", "monotone": "peaceman_rachford"}


class ImplicitDense(nnx.Module):
    """z* = σ(A z* + U x + b), with an A that has a certificate whatever the parameters are.

    The one layer of "implicit deep learning" (El Ghaoui et al. 2021, arXiv 1908.06315). A is made
    of free parameters such that every input has exactly one equilibrium, before and after every
    update of them:

    - kind="inf_norm": L ‖A‖_∞ < bound, `wellposed.norm_bounded`; any registered activation.
    - kind="mu_inf": hi·μ_∞(A) ≤ bound, `wellposed.mu_bounded`; activations that do not decrease.
    - kind="monotone": λ_max((A + Aᵀ)/2) ≤ bound, `monotone.monotone` with m = 1 − bound;
      activations with slopes in [0, 1].

    The later ones allow a larger A. A bound near 1 lets z* depend more on itself, and takes longer.
    The certificate is of exact arithmetic: whether a solve has met its tolerance in the dtype at
    hand, its statistics say. Do not use it where the cell may be anything: for attention or
    normalisation there is no certificate, and `nn.DEQ` takes any f.

    Args:
        in_features: d of x, (batch, d) or (d,).
        features: n of z.
        activation: a name, a function of JAX, or a `theory.wellposed.Activation`.
        kind: see above.
        bound: in (0, 1).
        solver: as in `theory.monotone.solve`; None is "peaceman_rachford" for "monotone" and
            "anderson" for the others. Convergence is guaranteed for Picard under "inf_norm",
            `monotone.Averaged` under "mu_inf", and Peaceman–Rachford.
        adjoint: as in `deqjax.fixed_point`.
        adjoint_solver: as in `deqjax.fixed_point`.
        rtol: as in `deqjax.fixed_point`.
        atol: as in `deqjax.fixed_point`.
        max_steps: as in `deqjax.fixed_point`.
        on_failure: as in `deqjax.fixed_point`.
        rngs: for the parameters.

    Raises:
        ValueError: an unknown kind, a bound outside (0, 1), or an activation that the kind cannot
            certify.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from deqjax.nn import ImplicitDense
        >>> layer = ImplicitDense(3, 8, kind="monotone", rngs=nnx.Rngs(0))
        >>> sol = layer(jnp.ones((2, 3)))
        >>> sol.z.shape, bool(sol.stats.converged.all()), layer.certificate().holds
        ((2, 8), True, True)
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        activation: str | Activation | Callable = "relu",
        kind: str = "inf_norm",
        bound: float = 0.95,
        solver: str | Solver | None = None,
        adjoint: str | Adjoint = "implicit",
        adjoint_solver: str | Solver | None = None,
        rtol: float | None = None,
        atol: float | None = None,
        max_steps: int | None = None,
        on_failure: str | None = None,
        rngs: nnx.Rngs,
    ):
        check_integer("in_features", in_features, least=1)
        check_integer("features", features, least=1)
        if kind not in SOLVERS:
            raise ValueError(f"kind={kind!r} is not a known kind{suggest(str(kind), SOLVERS)}")
        check_fraction("bound", bound)
        if bound == 1:
            raise ValueError("bound must be below 1: at 1 nothing is certified")
        self.kind, self.bound = kind, float(bound)
        self.activation = registered(activation)
        _check_activation(self.activation, kind)
        self.solver, self.adjoint = choose(
            solver=monotone.as_solver(SOLVERS[kind] if solver is None else solver),
            adjoint=adjoint,
            adjoint_solver=adjoint_solver,
            rtol=rtol,
            atol=atol,
            max_steps=max_steps,
        )
        self.on_failure = None if on_failure is None else checked_policy(on_failure)
        n = features
        start = nnx.initializers.normal(0.5 / n**0.5)
        self.T = nnx.Param(start(rngs.params(), (n, n)))
        self.P = nnx.Param(start(rngs.params(), (n, n))) if kind == "monotone" else None
        self.inject = nnx.Linear(in_features, n, rngs=rngs)

    def A(self) -> jax.Array:
        """(n, n), from the parameters of now. Differentiable in them."""
        T = self.T[...]
        if self.kind == "inf_norm":
            return norm_bounded(T, self.bound / self.activation.lipschitz)
        if self.kind == "mu_inf":
            return mu_bounded(T, self.bound / self.activation.slopes[1])
        assert self.P is not None
        return monotone.monotone(self.P[...], T, 1 - self.bound)

    def certificate(self) -> Certificate:
        """That of A as it is now, verified. Outside `jit`."""
        return certify(self.A(), self.activation, self.kind)

    def __call__(
        self, x: jax.Array, *, z0: jax.Array | None = None, adjoint_probe: Stats | None = None
    ) -> Solution:
        """Solve for x, (batch, d) or (d,).

        Args:
            x: the input.
            z0: where to start, (batch, n) or (n,); None is zeros.
            adjoint_probe: as in `deqjax.fixed_point`.

        Raises:
            ValueError: an x with more than two axes.
        """
        if x.ndim not in (1, 2):
            raise ValueError(f"x must be (batch, d) or (d,); got {x.shape}: reshape it first")
        return monotone.solve(
            *(self.A(), self.inject(x), self.activation),
            z0=z0,
            solver=self.solver,
            adjoint=self.adjoint,
            on_failure=self.on_failure,
            adjoint_probe=adjoint_probe,
        )


def _check_activation(sigma: Activation, kind: str) -> None:
    if sigma.lipschitz == 0:
        raise ValueError(f"{sigma.name} is constant: there is nothing to solve")
    if kind == "mu_inf" and sigma.slopes[0] < 0:
        raise ValueError(f"kind='mu_inf' needs a non-decreasing activation, not {sigma.name}")
    if kind == "monotone" and not sigma.is_proximal:
        raise ValueError(
            f"kind='monotone' needs an activation with slopes in [0, 1], not {sigma.name}"
        )
