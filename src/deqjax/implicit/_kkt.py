"""The linear systems of a step, of the polish and of the gradient, which are one system:

    [H  Aᵀ  Cᵀ] [dz]   [r₁]
    [A  −δ   0] [dν] = [rₑ]      H = θQ + what makes it positive definite, W = diag(w) ≥ 0
    [C   0  −W] [dλ]   [r_c]

Its bounds' rows are diagonal: they go into H as D = diag(1/w). What is left is solved by the Schur
complement M (H + D)⁻¹ Mᵀ + diag(δ, W). For small w (constraints that bind) and large ones alike it
has a Cholesky factor in float32, where the other order, H + GᵀW⁻¹G, loses it.

Without bounds H stays the same in all steps: it is factored once, M H⁻¹Mᵀ is made once, and the
equalities are eliminated once; a step is one Cholesky factor of an m × m matrix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._products import (
    cholesky,
    diagonal,
    lower_inverse,
    lower_solve,
    plus_diagonal,
    products,
    times,
    transposed_times,
)
from ._quadratic import Layout, Point


class Hessian(NamedTuple):
    """H = θ H₁ for all samples, H₁ positive definite.

    Attributes:
        H: (1 or batch, n, n), or a diagonal (1 or batch, n).
        root: L⁻¹ with L Lᵀ = H₁; of a diagonal, the vector of its entries.
        theta: (batch, 1).
    """

    H: jax.Array
    root: jax.Array
    theta: jax.Array


class Equations(NamedTuple):
    """What all systems of a solve share. `V` and `S` only without bounds.

    Attributes:
        hessian: H.
        M: (1 or batch, p + m, n).
        V: M L⁻ᵀ.
        root: of the equalities, the inverse of the factor of A H₁⁻¹Aᵀ + δ.
        X: root A H₁⁻¹Gᵀ.
        S: G H₁⁻¹Gᵀ − XᵀX.
        delta: (1 or batch, p + m), δ in units of H₁⁻¹.
    """

    hessian: Hessian
    M: jax.Array
    V: jax.Array | None
    root: jax.Array | None
    X: jax.Array | None
    S: jax.Array | None
    delta: jax.Array | None


def ridge(layout: Layout, dtype) -> float:
    """δ relative to the diagonal of what it is added to: above its rounding."""
    return 4 * (layout.n + layout.p + layout.m) * float(jnp.finfo(dtype).eps)


def equations(layout: Layout, hessian: Hessian, M: jax.Array) -> Equations:
    if layout.box:
        return Equations(hessian, M, None, None, None, None, None)
    p = layout.p
    V = M * hessian.root[:, None, :] if layout.diagonal else products(M, hessian.root)
    K = products(V, V)
    delta = ridge(layout, K.dtype) * diagonal(K) + float(jnp.finfo(K.dtype).tiny) ** 0.5
    root = X = None
    S = K[:, p:, p:]
    if p:
        root = lower_inverse(cholesky(plus_diagonal(K[:, :p, :p], delta[:, :p])))
        X = products(root, K[:, p:, :p])
        S -= jnp.einsum("bpi,bpj->bij", X, X, precision="highest")
    return Equations(hessian, M, V, root, X, S, delta)


class Factor(NamedTuple):
    """A factored system.

    Attributes:
        solve: (r₁, rₑ, r_c) → Point of (dz, dν, dλ).
        w: W with what was added to it, (batch, r).
        pivots: smallest pivot of the Schur complement relative to its diagonal, (batch,).
    """

    solve: Any
    w: jax.Array
    pivots: jax.Array


def factor(layout: Layout, eq: Equations, w: jax.Array, on: jax.Array, boost: jax.Array) -> Factor:
    """The system with the rows `on` of C, (batch, r); dλ = 0 for the others.

    w = 0 is allowed: a bound that is on then fixes its unknown.
    boost: (batch, 1), what δ is multiplied by, for samples in which a factor was lost.
    """
    make = _with_bounds if layout.box else _without_bounds
    return make(layout, eq, w, on, boost)


def _without_bounds(layout, eq, w, on, boost) -> Factor:
    p, theta = layout.p, eq.hessian.theta
    delta = eq.delta[:, p:] * boost
    inside = on[:, :, None] & on[:, None, :]
    added = jnp.where(on, theta * w + delta, 1)
    S = plus_diagonal(jnp.where(inside, eq.S, 0), added)
    L = cholesky(S) if layout.m else S

    def solve(r1, re, rc):
        # (K + θW) y = K-units of t, all of it times θ.
        half = eq.hessian.root * r1 if layout.diagonal else times(eq.hessian.root, r1)
        t = times(eq.V, half) - theta * jnp.concatenate([re, rc], axis=1)
        te, tc = t[:, :p], t[:, p:]
        if p:
            te = times(eq.root, te)
            tc = tc - transposed_times(eq.X, te)
        lam = jnp.where(on, tc, 0)
        if layout.m:
            lam = lower_solve(L, lower_solve(L, lam), transpose=True)
        nu = transposed_times(eq.root, te - times(eq.X, lam)) if p else te
        y = jnp.concatenate([nu, lam], axis=1)
        half = (half - transposed_times(eq.V, y)) / theta
        dz = eq.hessian.root * half if layout.diagonal else transposed_times(eq.hessian.root, half)
        return Point(dz, nu, lam)

    return Factor(solve, w + delta / theta, _pivots(L, S))


def _with_bounds(layout, eq, w, on, boost) -> Factor:
    p, theta = layout.p, eq.hessian.theta
    _, w_low, w_high = layout.split(w)
    on_g, on_low, on_high = layout.split(on)
    D, fixed = jnp.zeros_like(theta), jnp.zeros((), bool)
    for of_w, of_on in ((w_low, on_low), (w_high, on_high)):
        if of_w is not None:
            D = D + jnp.where(of_on & (of_w > 0), 1 / jnp.where(of_w > 0, of_w, 1), 0)
            fixed = fixed | (of_on & (of_w == 0))
    free = ~fixed
    if layout.diagonal:
        inverse = jnp.where(free, 1 / (theta * eq.hessian.H + D), 0)
        hessian_solve = lambda r: inverse * r
        weighted = eq.M * inverse[:, None, :]
        K = products(weighted, eq.M)
    else:
        inside = free[:, :, None] & free[:, None, :]
        H = jnp.where(inside, theta[..., None] * eq.hessian.H, 0)
        root = lower_inverse(cholesky(plus_diagonal(H, jnp.where(free, D, 1))))
        hessian_solve = lambda r: jnp.where(free, transposed_times(root, times(root, r)), 0)
        V = products(jnp.where(free[:, None, :], eq.M, 0), root)
        K = products(V, V)
    delta = (ridge(layout, K.dtype) * diagonal(K) + float(jnp.finfo(K.dtype).tiny) ** 0.5) * boost
    rows = jnp.concatenate([jnp.ones((*on.shape[:1], p), bool), on_g], axis=1)
    w_rows = jnp.concatenate([jnp.zeros((*w.shape[:1], p), w.dtype), w[:, : layout.m]], axis=1)
    K = jnp.where(rows[:, :, None] & rows[:, None, :], K, 0)
    K = plus_diagonal(K, jnp.where(rows, w_rows + delta, 1))
    L = cholesky(K) if rows.shape[1] else K
    of_H = lambda x: theta * (eq.hessian.H * x if layout.diagonal else times(eq.hessian.H, x))

    def solve(r1, re, rc):
        rg, r_low, r_high = layout.split(rc)
        known, pushed = jnp.zeros_like(r1), r1
        if r_low is not None:
            soft = on_low & (w_low > 0)
            pushed = pushed - jnp.where(soft, r_low / jnp.where(soft, w_low, 1), 0)
            known = jnp.where(on_low & (w_low == 0), -r_low, known)
        if r_high is not None:
            soft = on_high & (w_high > 0)
            pushed = pushed + jnp.where(soft, r_high / jnp.where(soft, w_high, 1), 0)
            known = jnp.where(on_high & (w_high == 0), r_high, known)
        known = jnp.where(fixed, known, 0)
        right = jnp.where(free, pushed - of_H(known), 0)
        t = jnp.concatenate([re, rg], axis=1) - times(eq.M, known)
        y = jnp.where(rows, times(eq.M, hessian_solve(right)) - t, 0)
        if rows.shape[1]:
            y = lower_solve(L, lower_solve(L, y), transpose=True)
        pulled = transposed_times(eq.M, y)
        dz = known + hessian_solve(jnp.where(free, right - pulled, 0))
        # What holds a fixed unknown in its place.
        hold = r1 - of_H(dz) - pulled
        low = high = None
        if r_low is not None:
            low = jnp.where(w_low > 0, -(dz + r_low) / jnp.where(w_low > 0, w_low, 1), -hold)
            low = jnp.where(on_low, low, 0)
        if r_high is not None:
            high = jnp.where(w_high > 0, (dz - r_high) / jnp.where(w_high > 0, w_high, 1), hold)
            # A bound on both sides at once is held by one of them.
            taken = on_high if on_low is None else on_high & ~(on_low & (w_low == 0))
            high = jnp.where(taken, high, 0)
        return Point(dz, y[:, :p], layout.join(y[:, p:], low, high))

    w_eff = jnp.concatenate([w[:, : layout.m] + delta[:, p:], w[:, layout.m :]], axis=1)
    return Factor(solve, w_eff, _pivots(L, K))


def _pivots(L: jax.Array, of: jax.Array) -> jax.Array:
    """Smallest pivot relative to the diagonal: how near rows are to being dependent."""
    if not L.shape[-1]:
        return jnp.ones(L.shape[:1], L.dtype)
    return jnp.min(diagonal(L) ** 2 / diagonal(of), axis=1)
