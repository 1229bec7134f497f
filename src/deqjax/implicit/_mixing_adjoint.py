"""The derivative of the mixing method's V, by preconditioned conjugate gradients.

At the solution gᵢ + ‖gᵢ‖ vᵢ = 0 for every free i. Differentiated, with P the projection on the
tangents of the free vᵢ,

    H dV = −P dg,   H = P (Q + diag ‖gᵢ‖) P,

where dg is what S and the given vectors change of g. For a cotangent b = P dℓ/dV, U = −H⁻¹ b, it
follows that dℓ = ⟨U, dg⟩ (Wang, Donti, Wilder and Kolter 2019, arXiv 1905.12149, appendix).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._closure import vary_with
from .._solution import Stats, Status
from ._mixing import product

APPROXIMATE = 1e-6  # a damping above it is no longer rounding


class System(NamedTuple):
    """H, per sample.

    Attributes:
        Q: (n, n).
        v: (n, batch, k).
        diagonal: (n, batch), ‖gᵢ‖ + damping.
        live: bool (n, batch): free, and with a force gᵢ that defines vᵢ.
    """

    Q: jax.Array
    v: jax.Array
    diagonal: jax.Array
    live: jax.Array

    def project(self, x: jax.Array) -> jax.Array:
        along = jnp.sum(x * self.v, axis=-1, keepdims=True)
        return jnp.where(self.live[..., None], x - along * self.v, 0)

    def rest(self, u: jax.Array, qu: jax.Array) -> jax.Array:
        """H u, given Q u."""
        return self.project(qu) + jnp.where(self.live, self.diagonal, 0)[..., None] * u


def system(Q: jax.Array, v: jax.Array, free: jax.Array, damping: float) -> System:
    """H at v, damped by `damping` times the mean ‖gᵢ‖ of each sample."""
    force = jnp.linalg.norm(product(Q, v), axis=-1)
    free_force = jnp.where(free, force, 0)
    rounding = 10 * jnp.finfo(v.dtype).eps
    live = free & (force > rounding * jnp.max(free_force, axis=0, initial=0))
    mean = jnp.sum(free_force, axis=0) / jnp.maximum(jnp.sum(free, axis=0), 1)
    return System(Q, v, jnp.where(live, force + damping * mean, 1), live)


def solve(h: System, b: jax.Array, *, rtol: float, max_steps: int) -> tuple[Any, Any, Stats]:
    """U = H⁻¹b of least residual, Q U, and how it went; b (n, batch, k) is tangent.

    H is singular along the rotations that leave the truth and what is given where they are; b is
    orthogonal to these, and rounding is not: the best u seen is kept.
    """
    inner = lambda x, y: jnp.sum(x * y, axis=(0, 2))
    each = lambda a: a[None, :, None]
    # Squares of a very large or a very small loss would overflow.
    size = jnp.max(jnp.abs(b), axis=(0, 2), initial=0)
    b = b / each(jnp.where(size > 0, size, 1))
    length = jnp.sqrt(inner(b, b))
    b, size = b / each(jnp.where(length > 0, length, 1)), size * length
    inverse = (1 / h.diagonal)[..., None]
    aim = rtol / 2  # the residual of the recurrence and the true one differ by rounding

    class Carry(NamedTuple):
        t: jax.Array
        u: jax.Array
        r: jax.Array
        p: jax.Array
        rho: jax.Array
        best: jax.Array
        least: jax.Array
        steps: jax.Array
        active: jax.Array

    def running(c: Carry):
        return (c.t < max_steps) & c.active.any()

    def body(c: Carry) -> Carry:
        hp = h.rest(c.p, product(h.Q, c.p))
        curvature = inner(c.p, hp)
        # Where V is no minimum yet, H may be indefinite: nothing beyond is a descent.
        go = c.active & (curvature > 0)
        alpha = jnp.where(go, c.rho / jnp.where(go, curvature, 1), 0)
        u, r = c.u + each(alpha) * c.p, c.r - each(alpha) * hp
        y = inverse * r
        rho = inner(r, y)
        p = y + each(jnp.where(go, rho / jnp.where(c.rho > 0, c.rho, 1), 0)) * c.p
        residual = jnp.sqrt(inner(r, r))
        better = go & (residual < c.least)
        least = jnp.where(better, residual, c.least)
        go &= (residual < 1e3 * c.least) & (least > aim)
        steps = c.steps + c.active
        return Carry(c.t + 1, u, r, p, rho, jnp.where(each(better), u, c.best), least, steps, go)

    least = jnp.where(size > 0, 1, 0).astype(b.dtype)
    y = inverse * b
    none = jnp.zeros_like(b)
    steps = jnp.zeros(least.shape, jnp.int32)
    carry = Carry(jnp.int32(0), none, b, y, inner(b, y), none, least, steps, least > aim)
    end = lax.while_loop(running, body, vary_with(carry, (h, b)))
    u, steps = end.best, end.steps
    qu = product(h.Q, u)
    left = b - h.rest(u, qu)
    residual = jnp.sqrt(inner(left, left))
    done = residual <= rtol
    status = jnp.where(done, int(Status.CONVERGED), int(Status.MAX_STEPS)).astype(jnp.int32)
    gain = jnp.sqrt(inner(u, u))
    stats = Stats(
        status=status,
        converged=done,
        steps=steps,
        f_evals=steps + 1,
        residual=residual * size,
        rel_residual=residual,
        gain=gain,
    )
    return each(size) * u, each(size) * qu, stats
