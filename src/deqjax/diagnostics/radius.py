"""The spectral radius of the Jacobian: how fast plain iteration converges, and whether it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import check_integer
from ._arnoldi import arnoldi, eig
from ._jacobian import Jacobian, ratio

PyTree = Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SpectralRadius:
    """What `spectral_radius` found. Scalars, or (batch,) with `batch_axis`.

    Attributes:
        radius: ρ(J) = max |λ|, float32 at least.
        eigenvalue: the complex λ of that modulus (either, of a pair). Near −ρ, damping helps.
        residual: ‖J v − λ v‖ / |λ| for its unit eigenvector v. Small: λ is an eigenvalue to about
            as many digits, fewer if J is far from normal. Above 0.1 or so: not converged, raise
            `steps`.
        steps: dimension of the Krylov space, the number of JVPs.
    """

    radius: Any
    eigenvalue: Any
    residual: Any
    steps: int = field(metadata=dict(static=True))


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

    Costs `steps` JVPs of f and memory for `steps` + 1 states in float32 at least. Exact if the
    state has no more than `steps` numbers. Works under `jit` and `vmap`. Complex states count as
    pairs of reals.

    Args:
        f: f(z, *args) -> the pytree, shapes and dtypes of z, with a forward-mode derivative.
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
        >>> round(float(found.radius), 4), bool(found.residual < 1e-5)
        (0.9, True)
    """
    check_integer("steps", steps, least=1)

    @jax.jit
    def run(z, args):
        jacobian = Jacobian(f, z, args, batch_axis)
        size = min(steps, jacobian.n)
        h, beta = arnoldi(jacobian, key, size)
        values, vectors = eig(h)
        largest = jnp.argmax(jnp.abs(values), axis=-1)[:, None]
        value = jnp.take_along_axis(values, largest, axis=-1)[:, 0]
        last = jnp.take_along_axis(vectors[:, -1], largest, axis=-1)[:, 0]
        # J Q = Q H + β q eₘᵀ, so for H y = λ y the residual of the Ritz vector Q y is β |yₘ|.
        residual = ratio(beta * jnp.abs(last), jnp.abs(value))
        value, residual = jacobian.squeeze(value), jacobian.squeeze(residual)
        return SpectralRadius(jnp.abs(value), value, residual, size)

    return run(z, args)
