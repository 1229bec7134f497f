"""Approximate gradients that solve nothing: phantom and Jacobian-free."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from .._errors import check_fraction, check_integer
from .._solution import Stats
from .._state import safe_norm, subtract
from .base import Adjoint


@dataclass(frozen=True, kw_only=True)
class Phantom(Adjoint):
    """Approximate: `steps` damped Picard steps on u = Jᵀu + v, starting at zero.

    This is the gradient of `steps` damped evaluations z⁺ = (1 − λ) z + λ f(z) appended at z*
    (Geng et al. 2021, arXiv 2111.05177, unrolling form), with J held at z*:
    u = λ Σᵢ ((1 − λ) I + λ J)ᵀⁱ v, i < steps. Cheap and smooth, but biased: the error falls like
    the spectral radius of (1 − λ) I + λ J to the power `steps`. `adjoint_probe` reports the
    residual that is left; `Status.MAX_STEPS` says that nothing was solved.

    Attributes:
        steps: terms of the series, >= 1.
        damping: λ in (0, 1].
    """

    steps: int = 5
    damping: float = 0.5

    name = "phantom"

    def __post_init__(self):
        super().__post_init__()
        check_integer("steps", self.steps, least=1)
        check_fraction("damping", self.damping)

    def cotangent(self, pull, v, solve, end):
        """u⁺ = (1 − λ) u + λ (Jᵀu + v), from u = λ v."""
        damping = self.damping

        def step(u, _):
            pulled = pull(u)
            u = jax.tree.map(
                lambda a, p, b: ((1 - damping) * a + damping * (p + b)).astype(a.dtype),
                u,
                pulled,
                v,
            )
            return u, None

        u = jax.tree.map(lambda b: (damping * b).astype(b.dtype), v)
        u, _ = lax.scan(step, u, length=self.steps - 1)
        return u, _left_over(pull, u, v, self.steps - 1)


@dataclass(frozen=True, kw_only=True)
class JFB(Phantom):
    """Approximate: u = v, the Jacobian left out ("Jacobian-free backpropagation").

    A descent direction for well-conditioned contractions (Wu Fung et al. 2022, arXiv 2103.12803)
    and the cheapest gradient there is; wrong in direction for cells whose Jacobian is large or
    nilpotent, such as a feed-forward network written as one fixed point.
    """

    steps: int = 1
    damping: float = 1.0

    name = "jfb"

    def __post_init__(self):
        super().__post_init__()
        if self.steps != 1 or self.damping != 1.0:
            raise ValueError("JFB() takes no options: for more steps use Phantom(steps=...)")


def _left_over(pull, u, v, steps: int) -> Stats:
    """How far u is from solving its equation. Dead code to XLA unless a probe asks for it."""
    target = jax.tree.map(lambda p, b: p + b, pull(u), v)
    size, length = safe_norm(v), safe_norm(u)
    stats = Stats.unsolved(steps, safe_norm(subtract(target, u)), size)
    return replace(stats, gain=length / jnp.where(size > 0, size, 1))
