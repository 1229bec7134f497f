"""No slot of a history that was never written has weight: while it fills, its length plays no part.

A loop in the field has read such slots from its first step on, and nobody saw it in the loss.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import GMRES, Anderson, Broyden, NewtonKrylov
from tests import cells

STEPS = 4
KINDS = {
    "anderson": lambda m: Anderson(memory=m),
    "anderson, mixed": lambda m: Anderson(memory=m, mixing=0.7),
    "anderson, bfloat16": lambda m: Anderson(memory=m, history_dtype="bfloat16"),
    "broyden": lambda m: Broyden(memory=m),
    "broyden, line search": lambda m: Broyden(memory=m, line_search=True),
    "newton_krylov": lambda m: NewtonKrylov(memory=m + 8),
}
LONG = ("anderson, mixed", "anderson, bfloat16", "broyden, line search", "newton_krylov")
SLOW = [pytest.param(k, marks=[pytest.mark.slow] * (k in LONG)) for k in KINDS]


@pytest.mark.parametrize("batch_axis", [None, 0])
@pytest.mark.parametrize("kind", SLOW)
def test_the_first_steps_do_not_know_how_long_the_history_is(kind, batch_axis):
    theta, x = cells.tanh_batch()

    def after(memory):
        sol = deqjax.fixed_point(
            *(lambda z: cells.tanh_cell(z, theta, x), 0.3 * jnp.ones_like(x)),
            **dict(solver=KINDS[kind](memory), rtol=0.0, max_steps=STEPS, batch_axis=batch_axis),
            on_failure="ignore",
            trace=True,
        )
        return sol.z, sol.stats.trace

    (z, trace), (other, other_trace) = after(STEPS), after(40)
    np.testing.assert_allclose(trace, other_trace, rtol=1e-6)
    np.testing.assert_allclose(z, other, rtol=1e-6)


def test_nor_does_a_cycle_of_gmres_that_has_found_everything():
    a = jnp.array(np.random.default_rng(0).normal(size=(8, 8)) / 10)
    found = [
        deqjax.fixed_point(
            lambda z: a @ z + 1, jnp.zeros(8), solver=GMRES(memory=m), rtol=0.0, max_steps=3,
            on_failure="ignore",
        ).z
        for m in (8, 30)
    ]  # fmt: skip
    np.testing.assert_allclose(*found, rtol=1e-10)
