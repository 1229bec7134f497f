"""Products and triangular systems of a batch, of matrices that the whole batch may share.

A matrix is (batch, i, j), or (1, i, j) where all samples have the same: then a product is one
product of two matrices, and a factor is made once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_EXACT = lax.Precision.HIGHEST


def times(m: jax.Array, x: jax.Array) -> jax.Array:
    """M x for x of shape (batch, j)."""
    if m.shape[0] == 1:
        return jnp.matmul(x, m[0].T, precision=_EXACT)
    return jnp.einsum("bij,bj->bi", m, x, precision=_EXACT)


def transposed_times(m: jax.Array, y: jax.Array) -> jax.Array:
    """Mᵀy for y of shape (batch, i)."""
    if m.shape[0] == 1:
        return jnp.matmul(y, m[0], precision=_EXACT)
    return jnp.einsum("bij,bi->bj", m, y, precision=_EXACT)


def products(a: jax.Array, b: jax.Array) -> jax.Array:
    """A Bᵀ."""
    if a.shape[0] > 1 and b.shape[0] == 1:
        # One large product, and not one a sample.
        return jnp.einsum("bik,jk->bij", a, b[0], precision=_EXACT)
    if a.shape[0] == 1 and b.shape[0] > 1:
        return jnp.swapaxes(products(b, a), 1, 2)
    return jnp.einsum("bik,bjk->bij", a, b, precision=_EXACT)


def outer(u: jax.Array, v: jax.Array, like: jax.Array) -> jax.Array:
    """u vᵀ of each sample; their sum where `like`, a matrix, is shared."""
    if like.shape[0] == 1:
        return jnp.einsum("bi,bj->ij", u, v, precision=_EXACT)[None]
    return u[:, :, None] * v[:, None, :]


def plus_diagonal(m: jax.Array, d: jax.Array) -> jax.Array:
    """M + diag(d), d of shape (batch, i)."""
    return m + d[:, :, None] * jnp.eye(m.shape[-1], dtype=m.dtype)


def diagonal(m: jax.Array) -> jax.Array:
    return jnp.diagonal(m, axis1=-2, axis2=-1)


def cholesky(m: jax.Array) -> jax.Array:
    """L with L Lᵀ = M; NaN in the samples where there is none."""
    return lax.linalg.cholesky(m, symmetrize_input=False)


def lower_solve(l: jax.Array, x: jax.Array, *, transpose: bool = False) -> jax.Array:
    """L⁻¹x or L⁻ᵀx for x of shape (batch, i)."""
    if l.shape[0] == 1:
        solved = lax.linalg.triangular_solve(
            l[0], x.T, left_side=True, lower=True, transpose_a=transpose
        )
        return solved.T
    solved = lax.linalg.triangular_solve(
        l, x[..., None], left_side=True, lower=True, transpose_a=transpose
    )
    return solved[..., 0]


def lower_inverse(l: jax.Array) -> jax.Array:
    """L⁻¹: on a CPU, LAPACK's solve of many right-hand sides a sample takes five times as long.

    [A 0; B C]⁻¹ = [A⁻¹ 0; −C⁻¹BA⁻¹ C⁻¹] down to blocks that are done row by row.
    """
    return _lower_inverse(l, max(32, l.shape[-1] // 8))


def _lower_inverse(l, most):
    n = l.shape[-1]
    if n > most:
        h = n // 2
        a, c = _lower_inverse(l[:, :h, :h], most), _lower_inverse(l[:, h:, h:], most)
        b = -jnp.matmul(c, jnp.matmul(l[:, h:, :h], a, precision=_EXACT), precision=_EXACT)
        top = jnp.concatenate([a, jnp.zeros_like(jnp.swapaxes(b, 1, 2))], axis=2)
        return jnp.concatenate([top, jnp.concatenate([b, c], axis=2)], axis=1)

    def row(i, inverse):
        """xᵢ = (eᵢ − Σ_{j<i} lᵢⱼ xⱼ) / lᵢᵢ; the rows that are not known yet are zero."""
        li = lax.dynamic_index_in_dim(l, i, axis=1, keepdims=False)
        lii = lax.dynamic_index_in_dim(li, i, axis=1)
        x = (lax.iota(jnp.int32, n) == i) - transposed_times(inverse, li)
        return lax.dynamic_update_slice_in_dim(inverse, (x / lii)[:, None], i, axis=1)

    return lax.fori_loop(0, n, row, jnp.zeros_like(l))
