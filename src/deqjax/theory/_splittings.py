"""Operator splittings as solvers: z = σ(W z + b) with I − W strongly monotone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from .._errors import check_positive
from .._state import wide
from ..solvers import GMRES, Solver, Step
from ._activations import Activation, as_activation
from ._proximal import proximal, resolvent

MAX_STEPS = 1000


class Equation(NamedTuple):
    """z = σ(W z + b), with what a splitting computes of it once.

    Attributes:
        W: (n, n).
        b: (n,) or (batch, n).
        sigma: σ.
        length: α, or λ of an average.
        inverse: (I + α (I − W))⁻¹ where it is needed.
    """

    W: jax.Array
    b: jax.Array
    sigma: Activation
    length: Any = None
    inverse: jax.Array | None = None

    def affine(self, z: jax.Array) -> jax.Array:
        """W z + b."""
        return z @ self.W.T + self.b


@dataclass(frozen=True, kw_only=True)
class Splitting(Solver):
    """Base of the solvers that know W and b, and not only f(z) = σ(W z + b).

    `of(W, b, activation)` makes the solver of one equation. Give that to `fixed_point` in the same
    trace (the same `jit`, `grad` or `vmap`), with an f that computes σ(z @ W.T + b), or let
    `deqjax.theory.monotone.solve` do both. Stop test, statistics and gradient are those of f: where
    f is another equation, the solve does not converge and says so. Nothing is differentiated
    through the solver; the adjoint equation, which has another form, is GMRES's.

    W and b are part of the solver: outside `jit` its loop is compiled anew at every call.

    Attributes:
        equation: what `of` fills in.
        max_steps: None means 1000. Steps are cheap, and the rates are those of worst cases.
    """

    equation: Equation | None = None

    name = "splitting"
    differentiates = False

    def of(
        self, W: jax.Array, b: jax.Array, activation: str | Activation | Callable = "relu"
    ) -> Self:
        """This solver for z = σ(W z + b).

        Args:
            W: (n, n).
            b: (n,), or (batch, n) with `batch_axis=0`.
            activation: a name, a function of JAX, or an `Activation`.

        Raises:
            ValueError: shapes that do not fit, or an activation that the solver cannot take.
        """
        W, b = lax.stop_gradient((jnp.asarray(W), jnp.asarray(b)))
        if W.ndim != 2 or W.shape[0] != W.shape[1] or b.shape[-1:] != W.shape[:1] or b.ndim > 2:
            raise ValueError(
                "a splitting takes W of shape (n, n) and b of shape (n,) or (batch, n); got "
                f"{W.shape} and {b.shape}"
            )
        dtype = wide(jnp.promote_types(W.dtype, b.dtype))
        e = Equation(W.astype(dtype), b.astype(dtype), self.allowed(activation))
        return replace(self, equation=self.prepared(e))

    def allowed(self, activation: str | Activation | Callable) -> Activation:
        """The activation, if this solver can take it."""
        return proximal(activation)

    def prepared(self, e: Equation) -> Equation:
        """What is computed once a solve."""
        return e

    def advance(self, e: Equation, z: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """z⁺ and the next state."""
        raise NotImplementedError

    def start(self, e: Equation, z: jax.Array) -> Any:
        """The state at z."""
        return ()

    def init(self, point, max_steps):
        z = self._checked(point.z)
        return self.start(self._equation(z), z)

    def resume(self, state, point, k):
        # The equation may be another one by now.
        return self.init(point, 0)

    def step(self, f, point, state, k, active):
        z = self._checked(point.z)
        new, state = self.advance(self._equation(z), z, state)
        return Step(f.at(new.astype(point.z.dtype)), state)

    def tolerances(self, z):
        tol = super().tolerances(z)
        return tol if self.max_steps is not None else tol._replace(max_steps=MAX_STEPS)

    def for_adjoint(self):
        return GMRES(rtol=self.rtol, atol=self.atol)

    def _equation(self, z: jax.Array) -> Equation:
        assert self.equation is not None
        e = self.equation
        cast = lambda x: x.astype(z.dtype) if isinstance(x, jax.Array) else x
        return Equation(cast(e.W), cast(e.b), e.sigma, cast(e.length), cast(e.inverse))

    def _checked(self, z: Any) -> jax.Array:
        """z, (batch, n), in the dtype of arithmetic, if it is a state of the equation."""
        name = type(self).__name__
        if self.equation is None:
            raise TypeError(
                f"{name}() does not know its equation: pass {name}(...).of(W, b, activation), or "
                f"call deqjax.theory.monotone.solve(W, b, solver={name}(...))"
            )
        n, shape = len(self.equation.W), getattr(z, "shape", (0,))
        if shape != (shape[0], n) or self.equation.b.shape not in ((n,), shape):
            raise ValueError(
                f"this {name} is of an equation with b of shape {self.equation.b.shape}: z must be "
                f"one array, ({n},), or (batch, {n}) with batch_axis=0"
            )
        return z.astype(wide(z.dtype))


@dataclass(frozen=True, kw_only=True)
class ForwardBackward(Splitting):
    """z⁺ = prox_{αf}(z + α (W z + b − z)),  σ = prox_f.

    Converges for α < 2m/‖I − W‖², with m I ⪯ I − (W + Wᵀ)/2 (Winston and Kolter 2020, algorithm 1),
    which is slow where ‖W‖ is large: `PeacemanRachford` then needs a hundredth of the iterations.

    Attributes:
        alpha: α > 0, read by `of`. None is m/‖I − W‖², half of what is guaranteed, from the
            eigenvalues of W: O(n³) once a solve. Where W is not monotone nothing is guaranteed.
    """

    alpha: float | None = None

    name = "forward_backward"

    def __post_init__(self):
        super().__post_init__()
        check_positive("alpha", self.alpha, optional=True)

    def prepared(self, e):
        if self.alpha is not None:
            return e._replace(length=self.alpha)
        m, size = monotonicity(e.W)
        return e._replace(length=jnp.where(m > 0, m, size) / size**2)

    def advance(self, e, z, state):
        return resolvent(e.sigma, e.length, z + e.length * (e.affine(z) - z)), ()


@dataclass(frozen=True, kw_only=True)
class PeacemanRachford(Splitting):
    """u⁺ = u + 2 (V (2z − u + α b) − z),  z⁺ = prox_{αf}(u⁺),  V = (I + α (I − W))⁻¹,  σ = prox_f.

    Winston and Kolter 2020, algorithm 2. Converges for every α > 0 where I − W is strongly monotone
    and σ is a proximal operator; α sets the speed alone. V is computed once a solve, O(n³): do not
    use it where n is too large for that, or for an f that contracts strongly, where Picard is done
    as soon.

    It starts from u = z₀ + α (W z₀ + b − z₀), so that a start at the solution stays there.

    Attributes:
        alpha: α > 0, read by `of`. None is 1/sqrt(s₁ sₙ), with the largest and the smallest
            singular value of I − W: the best one for a symmetric W. Half or twice as much is often
            as good.
    """

    alpha: float | None = None

    name = "peaceman_rachford"

    def __post_init__(self):
        super().__post_init__()
        check_positive("alpha", self.alpha, optional=True)

    def prepared(self, e):
        I = jnp.eye(len(e.W), dtype=e.W.dtype)
        alpha = self.alpha
        if alpha is None:
            s = jnp.linalg.svd(I - e.W, compute_uv=False)
            size = jnp.sqrt(s[0] * s[-1])
            alpha = 1 / jnp.where(size > 0, size, 1)
        return e._replace(length=alpha, inverse=jnp.linalg.inv(I + alpha * (I - e.W)))

    def start(self, e, z):
        return z + e.length * (e.affine(z) - z)

    def advance(self, e, z, u):
        half = (2 * z - u + e.length * e.b) @ e.inverse.T
        u = u + 2 * (half - z)
        return resolvent(e.sigma, e.length, u), u


@dataclass(frozen=True, kw_only=True)
class Averaged(Splitting):
    """z⁺ = (1 − λ) z + λ σ(W z + b),  λ = 1/(1 + hi·maxᵢ max(0, −wᵢᵢ)).

    Converges under a "mu_inf" certificate (see `deqjax.theory.wellposed.averaging`): damped Picard
    whose λ follows W, for activations with slopes in [0, hi]. No matrix is factored.
    """

    name = "averaged"

    def allowed(self, activation):
        sigma = as_activation(activation)
        if sigma.slopes[0] < 0:
            raise ValueError(
                f"{sigma.name} decreases somewhere, where averaging guarantees nothing: use "
                "solver='anderson' or deqjax.Picard(damping=...)"
            )
        return sigma

    def prepared(self, e):
        negative = jnp.max(jnp.maximum(-jnp.diag(e.W), 0))
        return e._replace(length=1 / (1 + e.sigma.slopes[1] * negative))

    def advance(self, e, z, state):
        return z + e.length * (e.sigma(e.affine(z)) - z), ()


def monotonicity(W: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(m, ‖I − W‖₂): the largest m with I − (W + Wᵀ)/2 ⪰ m I, to rounding. No proof: see `certify`.

    Args:
        W: (n, n).
    """
    I = jnp.eye(len(W), dtype=W.dtype)
    return jnp.linalg.eigvalsh(I - (W + W.T) / 2)[0], jnp.linalg.norm(I - W, 2)
