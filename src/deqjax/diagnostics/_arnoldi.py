"""Arnoldi's method: a small matrix that has the outermost eigenvalues of a large one."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._jacobian import matmul, norm


def arnoldi(
    push: Callable[[jax.Array], jax.Array], first: jax.Array, m: int
) -> tuple[jax.Array, jax.Array]:
    """Qᵀ, (batch, m, n), and H̃, (batch, m + 1, m), with J Q = (Q, q) H̃ and (Q, q) orthonormal.

    The eigenvalues of H, which is H̃ without its last row (0 … 0 β), are the Ritz values: they
    approach the outermost ones of J first. Costs m calls of push, v ↦ J v, and m + 1 vectors a
    sample. `first` is (batch, n) and not zero; m must not exceed n.
    """
    eps = jnp.finfo(first.dtype).eps

    def orthogonal(w, q):
        """w − Q Qᵀw, twice for what round-off leaves, and Qᵀw."""
        h = jnp.zeros(q.shape[:2], q.dtype)
        for _ in range(2):
            more = matmul(q, w[..., None])[..., 0]
            w = w - matmul(more[:, None], q)[:, 0]
            h = h + more
        return w, h

    def unit(w):
        length = norm(w)
        return w / jnp.where(length > 0, length, 1)[:, None], length

    first = unit(first)[0]

    def step(j, carry):
        q, h = carry
        jq = push(q[:, j])
        w, column = orthogonal(jq, q)
        w, beta = unit(w)
        # Where the space is invariant, go on with any vector outside it: H then falls apart into
        # blocks, and eigenvalues that the first vector has no part in are found too. The first one
        # rotated is such a vector, for any j.
        closed = beta <= 10 * eps * norm(jq)
        fresh, _ = orthogonal(jnp.roll(first, j + 1, axis=1), q)
        w = jnp.where(closed[:, None], unit(fresh)[0], w)
        column = column.at[:, j + 1].set(jnp.where(closed, 0, beta))
        return q.at[:, j + 1].set(w), h.at[:, :, j].set(column)

    batch, n = first.shape
    q = jnp.zeros((batch, m + 1, n), first.dtype).at[:, 0].set(first)
    h = jnp.zeros((batch, m + 1, m), first.dtype)
    q, h = lax.fori_loop(0, m, step, (q, h))
    return q[:, :m], h


def eig(h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues, (batch, m), and unit eigenvectors, (batch, m, m), of small matrices; traceable.

    TPUs have no such solver: there the host computes.
    """
    complex_dtype = jnp.result_type(h.dtype, jnp.complex64)
    shapes = (
        jax.ShapeDtypeStruct(h.shape[:-1], complex_dtype),
        jax.ShapeDtypeStruct(h.shape, complex_dtype),
    )

    def on_host(h):
        def compute(h):
            values, vectors = eig_on_host(np.asarray(h))
            return values.astype(complex_dtype), vectors.astype(complex_dtype)

        return jax.pure_callback(compute, shapes, h, vmap_method="expand_dims")

    return lax.platform_dependent(h, tpu=on_host, default=lambda h: tuple(jnp.linalg.eig(h)))


def eig_on_host(h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by numpy in complex128; NaN for a matrix that is not finite, where numpy raises."""
    h = np.asarray(h, np.float64)
    finite = np.all(np.isfinite(h), axis=(-2, -1), keepdims=True)
    values, vectors = np.linalg.eig(np.where(finite, h, 0.0))
    values = np.where(np.squeeze(finite, -1), values.astype(np.complex128), np.nan)
    return values, np.where(finite, vectors.astype(np.complex128), np.nan)
