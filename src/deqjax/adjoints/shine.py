"""The adjoint system solved with the forward solver's own inverse: SHINE."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from .._errors import check_integer
from .._solution import Stats
from .._state import cast_like, safe_norm, select
from ..solvers import Broyden
from .base import Adjoint


@dataclass(frozen=True, kw_only=True)
class Shine(Adjoint):
    """Approximate: u = −B⁻ᵀ v, with the Broyden matrix B ≈ J − I that the forward solve built.

    "SHaring the INverse Estimate from the forward pass" (Ramzi et al. 2022, arXiv 2106.00553): the
    backward pass costs a pass over the history instead of a solve. B is good along the directions
    that the forward solve went, which need not be those of v, so u is checked, sample by sample,
    with one product Jᵀu: where it leaves a larger residual ‖Jᵀu + v − u‖ than u = v would (that is
    'jfb'), u = v is used. `refine` steps of u⁺ = u + (−B⁻ᵀ)(Jᵀu + v − u) reduce what is left, each
    kept only where it helps.

    `adjoint_probe` reports the residual that remains; `Status.MAX_STEPS` says that nothing was
    solved, `f_evals` how many products with Jᵀ were made. Needs solver='broyden', whose history is
    kept until the backward pass. Gradients of this gradient are approximate in the same way.

    Attributes:
        refine: refinement steps, >= 0; each costs one product with Jᵀ.
    """

    refine: int = 0

    name = "shine"
    keeps_state = True

    def __post_init__(self):
        super().__post_init__()
        check_integer("refine", self.refine, least=0)

    def resolve(self, forward, adjoint_solver):
        super().resolve(forward, adjoint_solver)
        if not isinstance(forward, Broyden):
            raise ValueError(
                f"adjoint='shine' transposes the inverse that a Broyden solve leaves behind, but "
                f"the solver is {forward.name!r}: use solver='broyden', or adjoint='implicit'"
            )
        return self

    def cotangent(self, pull, v, solve, end):
        """u = −B⁻ᵀ v where that is better than u = v, then refined."""

        def left(u):
            return jax.tree.map(lambda p, b, a: p + b - a, pull(u), v, u)

        def minus_inverse(w):
            # A cotangent is the conjugate of the pair of reals that the solve works on.
            u = Broyden.minus_inverse_transposed(end.state, end.steps, _conjugate(w))
            return cast_like(_conjugate(u), v)

        def keep_better(u, r, new):
            r_new = left(new)
            better = safe_norm(r_new) < safe_norm(r)
            return select(better, new, u), select(better, r_new, r)

        u, r = v, pull(v)
        u, r = keep_better(u, r, minus_inverse(v))
        for _ in range(self.refine):
            u, r = keep_better(u, r, jax.tree.map(jnp.add, u, minus_inverse(r)))
        size, length = safe_norm(v), safe_norm(u)
        stats = Stats.unsolved(2 + self.refine, safe_norm(r), size)
        return u, replace(stats, gain=length / jnp.where(size > 0, size, 1))


def _conjugate(w):
    return jax.tree.map(lambda x: x.conj() if jnp.iscomplexobj(x) else x, w)
