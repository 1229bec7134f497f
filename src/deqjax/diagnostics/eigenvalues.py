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
from .._shown import Shown
from .._state import to_front
from ._arnoldi import arnoldi, eig_on_host
from ._condition import TRUSTED, conditions, dense_conditions, sentence
from ._inputs import check_concrete, checked, of_modules
from ._jacobian import Jacobian, eps_of, matmul, size

PyTree = Any


@dataclass(frozen=True, repr=False)
class Spectrum(Shown):
    """What `spectrum` found, largest modulus first, as numpy arrays. Printed, it is a sentence.

    Attributes:
        eigenvalues: complex128, (m,), or (batch, m) with `batch_axis`.
        residuals: ‖J v − λ v‖ / |λ| for each, v of length one; 0 for a dense spectrum.
        dense: True if these are all the eigenvalues of J, False if Ritz values.
        conditions: condition numbers, as in `SpectralRadius`.
        uncertainties: how far from an eigenvalue each may be, to first order. As there.
    """

    eigenvalues: np.ndarray
    residuals: np.ndarray
    dense: bool
    conditions: np.ndarray
    uncertainties: np.ndarray

    @property
    def radius(self) -> Any:
        """max |λ|, a number, or (batch,)."""
        return np.abs(self.eigenvalues).max(axis=-1)

    @property
    def converged(self) -> np.ndarray:
        """Which eigenvalues are uncertain by less than 2 % of their modulus."""
        return self.uncertainties <= TRUSTED * np.abs(self.eigenvalues)

    def __str__(self) -> str:
        kind = "eigenvalues" if self.dense else "Ritz values"
        said = sentence(self.radius, self.uncertainties[..., 0])
        return f"{said}; {self.converged.sum()} of {self.converged.size} {kind} converged"

    def plot(self, ax: Any = None) -> Any:
        """`plot_spectrum` of this."""
        from .eigenvalue_plot import plot_spectrum

        return plot_spectrum(self, ax)


@of_modules(solved=True)
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
    chapter 6), for J and for Jᵀ: `count` JVPs, `count` VJPs, and twice as many vectors. Its Ritz
    values approach the outermost eigenvalues first; believe those that are `converged`, which takes
    the condition number of each into account: see `spectral_radius`. The small eigenproblem is
    solved by numpy in float64.

    Args:
        f: f(z, *args) -> the pytree, shapes and dtypes of z, with a forward-mode derivative, and
            for large states a reverse-mode one; or a module such as `deqjax.nn.DEQ`, followed by
            its input alone: z is then its solution.
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

    solve = _dense if dense else partial(_ritz, key=key, count=min(count, n))
    values, residuals, found = solve(lambda z, args: Jacobian(f, z, args, batch_axis), z, args)
    order = np.argsort(-np.abs(values), axis=-1, kind="stable")
    pick = (lambda x: x[0]) if batch_axis is None else (lambda x: x)
    values, residuals, condition, uncertainty = (
        pick(np.take_along_axis(np.asarray(x), order, axis=-1)) for x in (values, residuals, *found)
    )
    return Spectrum(values, residuals, dense, condition, uncertainty)


def _dense(jacobian: Callable[..., Jacobian], z: PyTree, args: PyTree):
    matrices = np.asarray(jax.jit(lambda z, args: _matrix(jacobian(z, args)))(z, args))
    values, vectors = eig_on_host(matrices)
    found = dense_conditions(matrices, vectors, eps_of(z))
    return values, np.zeros(values.shape), found


def _ritz(
    jacobian: Callable[..., Jacobian],
    z: PyTree,
    args: PyTree,
    key: jax.Array | None,
    count: int,
):
    @jax.jit
    def reduce(z, args):
        j = jacobian(z, args)
        first = j.random(key)
        q, h = arnoldi(j.push, first, count)
        p, h_left = arnoldi(j.pull, first, count)
        return h, h_left, matmul(p, q.mT)

    h, h_left, pq = reduce(z, args)
    values, vectors = eig_on_host(np.asarray(h[:, :count]))
    # For H y = λ y the residual of Q y is β |yₘ|.
    error = np.asarray(h[:, count, count - 1 :], np.float64) * np.abs(vectors[:, -1])
    modulus = np.abs(values)
    residuals = np.divide(error, modulus, out=np.where(error == 0, 0.0, np.inf), where=modulus != 0)
    complex_dtype = jnp.result_type(h.dtype, jnp.complex64)
    small = (jnp.asarray(values, complex_dtype), jnp.asarray(vectors, complex_dtype))
    found = jax.jit(
        lambda h, values, vectors, pq, error: conditions(
            h, values, matmul(pq, vectors), error, eps_of(z)
        )
    )(h_left, *small, pq, jnp.asarray(error, h.dtype))
    return values, residuals, found


def _matrix(jacobian: Jacobian) -> jax.Array:
    """J as (batch, n, n), a few columns at a time."""

    def column(e):
        return jacobian.push(jnp.broadcast_to(e, (jacobian.batch, jacobian.n)))

    identity = jnp.eye(jacobian.n, dtype=jacobian.dtype)
    return jnp.moveaxis(lax.map(column, identity, batch_size=32), 0, -1)
