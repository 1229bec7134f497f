"""The eigenvalues of the Jacobian: all of them, or the outermost ones of a large state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._errors import check_integer
from .._state import to_front
from ._arnoldi import arnoldi, eig_on_host
from ._inputs import check_concrete, checked
from ._jacobian import Jacobian, size

PyTree = Any


@dataclass(frozen=True)
class Spectrum:
    """What `spectrum` found, largest modulus first, as numpy arrays.

    Attributes:
        eigenvalues: complex128, (m,), or (batch, m) with `batch_axis`.
        residuals: ‖J v − λ v‖ / |λ| for each, v of length one; 0 for a dense spectrum.
        dense: True if these are all the eigenvalues of J, False if Ritz values.
    """

    eigenvalues: np.ndarray
    residuals: np.ndarray
    dense: bool

    @property
    def radius(self) -> Any:
        """max |λ|, a number, or (batch,)."""
        return np.abs(self.eigenvalues).max(axis=-1)

    def plot(self, ax: Any = None) -> Any:
        """`plot_spectrum` of this."""
        from .eigenvalue_plot import plot_spectrum

        return plot_spectrum(self, ax)


def spectrum(
    f: Callable[..., PyTree],
    z: PyTree,
    *args: PyTree,
    batch_axis: int | None = None,
    dense_up_to: int = 512,
    count: int = 64,
    key: jax.Array | None = None,
) -> Spectrum:
    """The eigenvalues of J = ∂f/∂z at z.

    Where they lie says what helps: inside the unit circle, Picard converges; near −1, damping
    helps; a few outliers, Anderson or Broyden with that much memory; near +1, nothing does (I − J
    is close to singular) and the gradient is as ill-conditioned as the solve.

    States of up to `dense_up_to` numbers: J is built from n JVPs. Larger ones: Arnoldi's method
    with full reorthogonalisation (Saad 2011, "Numerical methods for large eigenvalue problems",
    chapter 6), `count` JVPs and vectors. Its Ritz values approach the outermost eigenvalues first;
    believe those with a small residual. The small eigenproblem is solved by numpy in float64.

    Args:
        f: f(z, *args) -> the pytree, shapes and dtypes of z, with a forward-mode derivative.
        z: pytree of floating-point arrays, `sol.z` as a rule.
        *args: pytrees of arrays.
        batch_axis: as in `fixed_point`: each sample has a Jacobian of its own.
        dense_up_to: largest state, in numbers a sample, for which J is built.
        count: Ritz values of larger states.
        key: PRNG key of the first vector; None is always the same key.

    Raises:
        TypeError: called inside `jit`: use `spectral_radius` there.
        ValueError: whatever `fixed_point` says about f and z.

    Examples:
        >>> import jax.numpy as jnp
        >>> found = spectrum(lambda z, a: a * z, jnp.zeros(3), jnp.array([0.1, -0.7, 0.3]))
        >>> [round(float(x.real), 3) for x in found.eigenvalues]
        [-0.7, 0.3, 0.1]
    """
    check_integer("dense_up_to", dense_up_to, least=0)
    check_integer("count", count, least=1)
    check_concrete("spectrum", (z, args))
    z, _ = checked(f, z, args, batch_axis)
    n = size(to_front(z, batch_axis))
    dense = n <= dense_up_to

    @jax.jit
    def reduce(z, args):
        jacobian = Jacobian(f, z, args, batch_axis)
        if dense:
            return _matrix(jacobian), jnp.zeros(jacobian.batch)
        return arnoldi(jacobian, key, min(count, n))

    h, beta = (np.asarray(x, np.float64) for x in reduce(z, args))
    # For H y = λ y the residual of Q y is β |yₘ|.
    values, vectors = eig_on_host(h)
    modulus = np.abs(values)
    error = beta[:, None] * np.abs(vectors[:, -1])
    residuals = np.divide(error, modulus, out=np.where(error == 0, 0.0, np.inf), where=modulus != 0)
    order = np.argsort(-modulus, axis=-1, kind="stable")
    sort = partial(np.take_along_axis, indices=order, axis=-1)
    pick = (lambda x: x[0]) if batch_axis is None else (lambda x: x)
    return Spectrum(pick(sort(values)), pick(sort(residuals)), dense)


def _matrix(jacobian: Jacobian) -> jax.Array:
    """J as (batch, n, n), a few columns at a time."""

    def column(e):
        return jacobian.push(jnp.broadcast_to(e, (jacobian.batch, jacobian.n)))

    identity = jnp.eye(jacobian.n, dtype=jacobian.dtype)
    return jnp.moveaxis(lax.map(column, identity, batch_size=32), 0, -1)
