"""Exact gradients of the computed iterate in constant memory, by running the solve backwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .._closure import loop_carry, varies_less
from .._errors import check_fraction
from .._solution import Stats, Status
from .._state import cast_like, norm, per_sample, select, subtract, wide
from ..solvers import Picard
from ..solvers.base import Solver, Step
from .base import Adjoint

# A setting under which fewer steps can be undone is refused.
FEW = 4


class Pair(NamedTuple):
    """The two coupled states and where they started, which is where the way back must end."""

    y: jax.Array
    z: jax.Array
    start: jax.Array


@dataclass(frozen=True, kw_only=True)
class Reversible(Adjoint):
    """Exact for the iterate that was computed, like 'unrolled', but in memory that does not grow
    with the number of steps: the backward pass runs the solve backwards.

    The iteration is its own (McCallum, Arora and Foster 2025, "Reversible deep equilibrium
    models", arXiv 2509.12917): two coupled, relaxed states that start together,

        y⁺ = (1 − β) y + β f(z),    z⁺ = (1 − β) z + β f(y⁺),

    from which z = (z⁺ − β f(y⁺)) / (1 − β), then y. So it takes solver='picard', of which only the
    tolerances and max_steps are used; a step costs two evaluations of f, forward and backward.

    Precision: going back multiplies round-off by 1 / (1 − β) a half-step, and by up to
    (1 + β ρ) / (1 − β) with ρ the size of the Jacobian. The states are kept in float64 where JAX
    has it enabled, and f runs in its own dtype; that carries about 25 steps at β = 0.5. In float32
    alone, some 11 steps, or a small β. The drift is measured: the backward pass ends at z0, which
    is known, and where the relative distance is above 1e-2 the adjoint has failed, with
    `Status.DIVERGED`: `on_failure` hears of it (an eager gradient warns), and `adjoint_probe`
    reports the distance as `rel_residual`. A β with which fewer than four steps can be undone in
    the dtype is refused.

    Not differentiable twice. Inside `shard_map`, cast parameters to varying outside of f.

    Attributes:
        damping: β in (0, 1); smaller keeps more precision and converges more slowly.
    """

    damping: float = 0.5

    name = "reversible"
    keeps_state = True
    can_fail = True

    def __post_init__(self):
        super().__post_init__()
        check_fraction("damping", self.damping)
        if self.damping == 1:
            raise ValueError("damping must be in (0, 1): with 1 a step cannot be undone")

    def forward_solver(self, solver):
        if isinstance(solver, Coupled):
            return solver
        if type(solver) is not Picard or solver.damping != 1.0:
            raise ValueError(
                f"adjoint='reversible' runs an iteration of its own, which replaces the solver "
                f"{solver.name!r}: pass solver='picard', and the damping in Reversible(damping=...)"
            )
        kept = {k: getattr(solver, k) for k in Solver.options()}
        return Coupled(damping=self.damping, **kept)

    def pull_back(self, cell, theta, end, v, solve):
        """Undo the steps one by one, each followed by its own VJP."""
        beta = self.damping
        last: Pair = end.state
        steps = end.steps
        best_step = end.best_step
        assert steps is not None and best_step is not None, "`keeps_state` asks for them"
        if any(varies_less(x, z) for x in theta for z in jax.tree.leaves(last.z)):
            raise ValueError(
                "adjoint='reversible' inside shard_map would sum the gradient of a replicated "
                "parameter over the devices in every step, which they do not take together: cast "
                'parameters with jax.lax.pcast(..., to="varying") outside of f'
            )
        theta_bar = jax.tree.map(jnp.zeros_like, theta)
        zero = jax.tree.map(jnp.zeros_like, v)

        def undo(new, z, mask):
            """(new − β f(z)) / (1 − β) where mask, and the VJP of f at z."""
            fz, pull = jax.vjp(lambda z, theta: cell(z, theta), cast_like(z, v), theta)
            old = jax.tree.map(lambda n, f: (n - beta * f.astype(n.dtype)) / (1 - beta), new, fz)
            return select(mask, old, new), pull

        def pushed(bar, mask):
            return jax.tree.map(lambda b: jnp.where(per_sample(mask, b), beta * b, 0), bar)

        def kept(bar, mask):
            factor = jnp.where(mask, 1 - beta, 1.0)
            return jax.tree.map(lambda b: per_sample(factor, b).astype(b.dtype) * b, bar)

        def body(c):
            n, y, z, y_bar, z_bar, theta_bar = c
            # The gradient enters at the best iterate; later steps are only undone.
            z_bar = select(best_step == n, v, z_bar)
            moved, counted = n <= steps, n <= best_step
            z, pull = undo(z, y, moved)
            from_z, theta_1 = pull(pushed(z_bar, counted))
            z_bar = kept(z_bar, counted)
            y_bar = jax.tree.map(jnp.add, y_bar, from_z)
            y, pull = undo(y, z, moved)
            from_y, theta_2 = pull(pushed(y_bar, counted))
            y_bar = kept(y_bar, counted)
            z_bar = jax.tree.map(jnp.add, z_bar, from_y)
            theta_bar = jax.tree.map(lambda a, b, c: a + b + c, theta_bar, theta_1, theta_2)
            return n - 1, y, z, y_bar, z_bar, theta_bar

        start = (jnp.max(steps, initial=0), last.y, last.z, zero, zero, theta_bar)
        start = loop_carry(body, start)
        *_, z, _, _, theta_bar = lax.while_loop(lambda c: c[0] > 0, body, start)
        drift = norm(subtract(z, last.start))
        size = jnp.maximum(norm(last.z), norm(last.start))
        return theta_bar, _report(drift, size, steps)


def _report(drift, size, steps) -> Stats:
    relative = drift / jnp.where(size > 0, size, 1)
    good = relative <= 1e-2
    return Stats(
        status=jnp.where(good, int(Status.CONVERGED), int(Status.DIVERGED)).astype(jnp.int32),
        converged=good,
        steps=steps,
        f_evals=2 * steps,
        residual=drift,
        rel_residual=relative,
    )


@dataclass(frozen=True, kw_only=True)
class Coupled(Solver):
    """y⁺ = (1 − β) y + β f(z),  z⁺ = (1 − β) z + β f(y⁺)."""

    damping: float = 0.5

    name = "reversible"
    differentiates = False

    @property
    def learns_slopes(self):
        return False

    def tolerances(self, z):
        """Those of the call. Refuses a damping with which hardly a step can be undone."""
        tol = super().tolerances(z)
        dtypes = [_widest(x.dtype) for x in jax.tree.leaves(z)]
        roundoff = max(float(jnp.finfo(dtype).eps) for dtype in dtypes) / 2
        steps = int(math.log(roundoff) / (2 * math.log1p(-self.damping)))
        if steps < min(tol.max_steps, FEW):
            raise ValueError(
                f"Reversible(damping={self.damping:g}) can undo {steps} steps in {dtypes[0]}: pass "
                "a smaller damping, or enable float64 (jax_enable_x64)"
            )
        return tol

    def init(self, point, max_steps):
        z = jax.tree.map(lambda x: x.astype(_widest(x.dtype)), point.z)
        return Pair(z, z, z)

    def step(self, f, point, state, k, active):
        beta = self.damping

        def relax(a, fb):
            return jax.tree.map(lambda a, f: (1 - beta) * a + beta * f.astype(a.dtype), a, fb)

        y = relax(state.y, point.fz)
        z = relax(state.z, f(cast_like(y, point.z)))
        return Step(f.at(cast_like(z, point.z)), Pair(y, z, state.start), 2)


def _widest(dtype):
    """float64 where it is enabled: what going back needs."""
    return jnp.promote_types(wide(dtype), jnp.zeros((), float).dtype)
