"""A program made ready: cleaned of what is no number, put in units, its Hessian factored."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._kkt import Hessian, equations
from ._optimality import Method
from ._products import cholesky, diagonal, lower_inverse, plus_diagonal, times, transposed_times
from ._quadratic import Layout, Program, Units, largest, power_of_two


class Ready(NamedTuple):
    """Attributes:
    method: the program in its units.
    units: these.
    sound: bool (batch,), all numbers are finite where they have to be.
    convex: bool (batch,), Q has no negative eigenvalue.
    crossing: bool (batch,), a lower bound is above the upper one.
    """

    method: Method
    units: Units
    sound: jax.Array
    convex: jax.Array
    crossing: jax.Array


def ready(program: Program, layout: Layout) -> Ready:
    program, sound = _cleaned(program, layout)
    crossing = jnp.zeros_like(sound)
    if program.lower is not None and program.upper is not None:
        crossing = jnp.any(program.lower > program.upper, axis=1)
    d = program.d(layout)
    ends = jnp.isfinite(d)
    hessian, curve, convex, flat = _hessian(program, layout)
    row = power_of_two(jnp.sqrt(jnp.sum(program.M**2, axis=2)))
    unconstrained = largest(_inverse_times(hessian, program.q, layout)) / curve
    unconstrained = jnp.where(flat, jnp.inf, unconstrained)
    length = _length(program, layout, row, jnp.where(ends, d, 0), unconstrained)
    value = jnp.maximum(jnp.where(flat, 0, curve) * length**2, length * largest(program.q))
    units = Units(row, curve, length, power_of_two(value))
    theta = jnp.where(flat, 0, units.theta)
    eps = float(jnp.finfo(theta.dtype).eps)
    # Where the curvature is small beside the slope, H is larger than it: a proximal term.
    proximal = jnp.maximum(theta, eps**0.4)
    eq = equations(layout, hessian._replace(theta=proximal), program.M / row[..., None])
    scaled = units.apply(program)
    return Ready(Method(layout, scaled, eq, theta, ends), units, sound, convex, crossing)


def _cleaned(program: Program, layout: Layout) -> tuple[Program, jax.Array]:
    """Zeros in place of the samples that are not sound."""
    e = program.e
    needed = [*program[:3], e[:, : layout.p]]
    ends = [-e[:, layout.p :]]
    ends += [
        x
        for x in (program.lower, None if program.upper is None else -program.upper)
        if x is not None
    ]
    sound = jnp.ones(e.shape[0], bool)
    for x in needed:
        sound &= jnp.isfinite(x).reshape(x.shape[0], -1).all(axis=1)
    for x in ends:
        sound &= (x < jnp.inf).all(axis=1)

    def clean(x, value=0.0) -> Any:
        if x is None:
            return None
        good = sound if x.shape[0] == sound.size else jnp.isfinite(x).all()[None]
        return jnp.where(good.reshape(-1, *(1,) * (x.ndim - 1)), x, value)

    lower, upper = clean(program.lower, -1.0), clean(program.upper, 1.0)
    Q = clean(program.Q)
    return Program(Q, clean(program.M), clean(program.q), clean(e), lower, upper), sound


def _hessian(program: Program, layout: Layout):
    """H₁ (θ is filled in later), the size of Q, where Q is convex, and where it is zero."""
    Q, n = program.Q, layout.n
    eps = float(jnp.finfo(Q.dtype).eps)
    size = largest(Q)
    flat = size == 0
    curve = power_of_two(size)
    lift = jnp.where(flat, 1, eps**0.4).astype(Q.dtype)
    if layout.diagonal:
        Q1 = Q / curve
        convex = jnp.all(Q1 >= 0, axis=1)
        small = jnp.min(Q1, axis=1, keepdims=True) < eps**0.5
        H = jnp.where(convex[:, None], Q1 + jnp.where(small, lift, 0), 1)
        return Hessian(H, 1 / jnp.sqrt(H), curve), curve, convex, flat
    Q1 = Q / curve[..., None]
    # Eigenvalues that are zero come out of L Lᵀ as this much of either sign.
    nudged = plus_diagonal(Q1, jnp.broadcast_to(2 * n * eps * jnp.ones_like(curve), Q.shape[:2]))
    L = cholesky(nudged)
    convex = jnp.isfinite(L).all(axis=(1, 2))
    small = jnp.min(diagonal(L) ** 2, axis=1, keepdims=True) < eps**0.5
    lifted = plus_diagonal(Q1, jnp.broadcast_to(lift, Q.shape[:2]))
    identity = jnp.eye(n, dtype=Q.dtype)
    again = small | ~convex[:, None]
    H = jnp.where(again[..., None], lifted, nudged)
    H = jnp.where(convex[:, None, None], H, identity)
    refactored = jax.lax.cond(jnp.any(again), lambda: cholesky(H), lambda: L)
    L = jnp.where(again[..., None], refactored, L)
    return Hessian(H, lower_inverse(L), curve), curve, convex, flat


def _inverse_times(hessian: Hessian, q: jax.Array, layout: Layout) -> jax.Array:
    if layout.diagonal:
        return q / hessian.H
    return transposed_times(hessian.root, times(hessian.root, q))


def _length(program, layout, row, d, unconstrained) -> jax.Array:
    """How large z will be: at least the distance from 0 to the furthest constraint, at most that
    or what the objective asks for, unless constraints reach further."""
    e = program.e / row
    g, lower, upper = layout.split(d)
    g = g / row[:, layout.p :]
    # Distances to what z = 0 breaks, and to all constraints.
    broken, any_ = largest(e[:, : layout.p]), largest(e[:, : layout.p])
    for x in (g, lower, upper):
        if x is not None:
            broken = jnp.maximum(broken, largest(jnp.minimum(x, 0)))
            any_ = jnp.maximum(any_, largest(x))
    any_ = jnp.where(any_ > 0, any_, unconstrained)
    return power_of_two(jnp.maximum(broken, jnp.minimum(unconstrained, any_)))
