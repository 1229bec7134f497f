"""Back-propagation through the solver's own steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from .._closure import loop_carry
from .base import Adjoint

_MODES = ("none", "all", "sqrt")


@dataclass(frozen=True, kw_only=True)
class Unrolled(Adjoint):
    """Exact for the iterate that was computed, not for z*: back-propagates through every step.

    Memory grows with `max_steps` (always all of them: a loop of unknown length has no reverse
    mode), and so does time. Use it for short budgets, for checks, and to compare. Inside
    `shard_map` the gradient of a replicated parameter is summed over the devices in every step,
    not once: cast it with `jax.lax.pcast(..., to="varying")` outside of f to have one sum.

    Let the solve stop by a tolerance above round-off. Steps that go on at the solution (rtol=0)
    have coefficients that are quotients of round-off: Anderson's derivatives are then numbers
    without meaning.

    Attributes:
        checkpoint: "none" keeps every step's intermediates; "all" recomputes each step's; "sqrt"
            recomputes in √max_steps blocks (Chen et al. 2016, arXiv 1604.06174).
    """

    checkpoint: str = "none"

    name = "unrolled"
    differentiates_loop = True

    def __post_init__(self):
        super().__post_init__()
        if self.checkpoint not in _MODES:
            raise ValueError(
                f"checkpoint must be one of {', '.join(map(repr, _MODES))}; got {self.checkpoint!r}"
            )

    def forward_solver(self, solver):
        return solver.unrolled()

    def loop(self, running, body, carry, max_steps):
        def step(c, _):
            # Once done, or past the budget (the last block of "sqrt" may be longer), nothing moves.
            # No `cond`: its gradient may hold a collective (the sum over devices of a replicated
            # parameter's), which all devices must reach, whether their own solve is done or not.
            go = running(c)
            return jax.tree.map(lambda new, old: jnp.where(go, new, old), body(c), c), None

        carry = loop_carry(lambda c: step(c, None)[0], carry)

        def scan(step, carry, length):
            return lax.scan(step, carry, length=length)[0]

        if self.checkpoint == "none":
            return scan(step, carry, max_steps)
        if self.checkpoint == "all":
            return scan(jax.checkpoint(step), carry, max_steps)
        block = math.isqrt(max_steps - 1) + 1 if max_steps > 1 else 1
        inner = jax.checkpoint(lambda c, _: (scan(jax.checkpoint(step), c, block), None))
        return scan(inner, carry, -(-max_steps // block))
