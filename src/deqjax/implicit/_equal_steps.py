"""Equal steps, which stop before a number that is none."""

from __future__ import annotations

import diffrax
import jax
import jax.numpy as jnp


class EqualSteps(diffrax.AbstractStepSizeController):
    """n steps of 1/n, the k-th from k/n: no rounding adds up. A step that gives NaN or infinity is
    rejected, and the flow ends before it."""

    steps: int

    def wrap(self, direction):
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        return t0 + 1 / self.steps, jnp.zeros((), jnp.int32)

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, state):
        leaves = jax.tree.leaves(y1_candidate)
        finite = jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()
        k = state + 1
        until = ((k + 1) / self.steps).astype(t1.dtype)
        ending = diffrax.RESULTS.where(
            finite, diffrax.RESULTS.successful, diffrax.RESULTS.dt_min_reached
        )
        return finite, jnp.where(finite, t1, t0), until, jnp.array(False), k, ending
