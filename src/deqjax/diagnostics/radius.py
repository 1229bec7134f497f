"""The spectral radius of the Jacobian: how fast plain iteration converges, and whether it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .._errors import check_integer
from .._shown import Shown, worst
from ._arnoldi import arnoldi, eig
from ._condition import TRUSTED, conditions, sentence
from ._inputs import of_modules
from ._jacobian import Jacobian, eps_of, matmul, ratio

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class SpectralRadius(Shown):
    """What `spectral_radius` found. Scalars, or (batch,) with `batch_axis`.

    Printed, it is a sentence, which says whether the number is to be believed.

    Attributes:
        radius: ρ(J) = max |λ|, float32 at least.
        eigenvalue: the complex λ of that modulus (either, of a pair). Near −ρ, damping helps.
        residual: ‖J x − λ x‖ / |λ| for its unit eigenvector x. λ is an eigenvalue of a J changed
            by so much.
        condition: how much a change of J moves λ: κ = 1 / |yᴴx| for unit right and left
            eigenvectors x and y, and more where the y found is a worse one than x. One for a normal
            J; without bound where J is nearly defective.
        uncertainty: of the radius: condition times residual times radius, and what rounding adds.
            An estimate of first order, right where it is small.
        steps: dimension of the Krylov space, the number of JVPs.
    """

    radius: Any
    eigenvalue: Any
    residual: Any
    condition: Any
    uncertainty: Any
    steps: int = field(metadata=dict(static=True))

    @property
    def converged(self) -> Any:
        """Whether the uncertainty is below 2 % of the radius. If not, raise `steps`; where that
        does not help, J is so far from normal that its radius says little: see `lipschitz`."""
        return self.uncertainty <= TRUSTED * self.radius

    def __str__(self) -> str:
        if isinstance(self.radius, Tracer) or np.ndim(self.radius) > 1:
            return f"SpectralRadius(radius={self.radius}, uncertainty={self.uncertainty})"
        said = sentence(self.radius, self.uncertainty)
        condition, residual = worst(self.condition), worst(self.residual)
        return f"{said}; condition {condition:.2g}, residual {residual:.1e}, {self.steps} steps"


@of_modules(solved=True)
def spectral_radius(
    f: Callable[..., PyTree],
    z: PyTree,
    *args: PyTree,
    batch_axis: int | None = None,
    steps: int = 30,
    key: jax.Array | None = None,
) -> SpectralRadius:
    """The largest |eigenvalue| of J = ∂f/∂z at z, for every sample.

    Below one, Picard iteration converges near z, one digit in about 2.3 / (1 − ρ) steps; at one or
    above it does not, though Anderson and Broyden may. That holds at z = z*: at a z that is no
    fixed point it says nothing, and at one fixed point nothing about others.

    Arnoldi's method builds H, J seen from a Krylov space of `steps` vectors, and the eigenvalues of
    H stand for those of J (Saad 2011, "Numerical methods for large eigenvalue problems", chapter
    6). A dominating complex-conjugate pair, in whose plane power iteration turns for ever, is no
    harder than a real eigenvalue. Eigenvalues that fill a disc, as those of a random matrix do, are
    the hard case: see the residual.

    A residual alone does not bound the error: of a J far from normal, λ may be a tenth of its size
    away from every eigenvalue with a residual of 0.001. So the left eigenvector is sought as well,
    by the same method on Jᵀ, and `uncertainty` is the error that both allow to first order.

    Costs `steps` JVPs and `steps` VJPs of f and memory for `steps` + 2 states in float32 at least.
    Exact if the state has no more than `steps` numbers. Works under `jit` and `vmap`. Complex
    states count as pairs of reals.

    Args:
        f: f(z, *args) -> the pytree, shapes and dtypes of z, with derivatives in both modes; or a
            module such as `deqjax.nn.DEQ`, followed by its input alone: z is then its solution.
        z: pytree of floating-point arrays, `sol.z` as a rule.
        *args: pytrees of arrays.
        batch_axis: as in `fixed_point`: each sample has a Jacobian of its own.
        steps: dimension of the Krylov space.
        key: PRNG key of the first vector; None is always the same key.

    Raises:
        TypeError, ValueError: what `fixed_point` says about f and z, or steps < 1.

    Examples:
        >>> import jax.numpy as jnp
        >>> turn = jnp.array([[0.0, -0.9], [0.9, 0.0]])  # eigenvalues ±0.9i
        >>> found = spectral_radius(lambda z: turn @ z, jnp.zeros(2))
        >>> round(float(found.radius), 4), bool(found.converged)
        (0.9, True)
    """
    check_integer("steps", steps, least=1)

    @jax.jit
    def run(z, args):
        jacobian, eps = Jacobian(f, z, args, batch_axis), eps_of(z)
        size = min(steps, jacobian.n)
        q, h = arnoldi(jacobian.push, jacobian.random(key), size)
        values, vectors = eig(h[:, :size])
        largest = jnp.argmax(jnp.abs(values), axis=-1)[:, None]
        value = jnp.take_along_axis(values, largest, axis=-1)
        y = jnp.take_along_axis(vectors, largest[:, None], axis=-1)
        # J Q = Q H + β q eₘᵀ, so for H y = λ y the residual of the Ritz vector Q y is β |yₘ|.
        residual = h[:, size, size - 1 :] * jnp.abs(y[:, -1])
        x = matmul(q.mT, y)
        # From x itself, the left space closes at once if J is normal, and y is then x.
        p, h = arnoldi(jacobian.pull, x.real[..., 0], size)
        found = conditions(h, value, matmul(p, x), residual, eps)
        radius = jnp.abs(value)
        numbers = (radius, value, ratio(residual, radius), *found)
        one = lambda x: jacobian.squeeze(x[:, 0])
        return SpectralRadius(*map(one, numbers), steps=size)

    return run(z, args)
