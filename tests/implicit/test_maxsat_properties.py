"""Masks of every kind: what `maxsat` says of a board is so, and touches no other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as given_cases
from hypothesis import settings
from hypothesis import strategies as st

from deqjax import Status
from deqjax.implicit import maxsat

from .maxsat_twin import sweeps

pytestmark = pytest.mark.usefixtures("double_precision")

RTOL, BATCH, ODD = 1e-6, 3, 1
MATES = np.arange(BATCH) != ODD


@partial(jax.jit, static_argnames="aux")
def solved(S, z, mask, aux):
    def loss(S, z):
        options = dict(key=jax.random.key(2), aux=aux, k=4, rtol=RTOL, max_sweeps=500)
        sol = maxsat(S, z, mask, **options)
        return jnp.sum(sol.z**2), sol

    (_, sol), bars = jax.value_and_grad(loss, (0, 1), has_aux=True)(S, z)
    return sol, bars


@settings(max_examples=15, deadline=None, derandomize=True)
@given_cases(
    shape=st.sampled_from([(1, 0), (5, 2)]),
    mask=st.sampled_from(["none", "all", "first", "all but the first", "some"]),
    values=st.sampled_from(["binary", "probable"]),
    unit=st.sampled_from([1.0, 1e-8, 1e8]),
    seed=st.integers(0, 99),
)
def test_what_is_said_is_so(shape, mask, values, unit, seed):
    n, aux = shape
    rng = np.random.default_rng(seed)
    S, z = unit * rng.normal(size=(n + aux + 1, 6)), rng.random((BATCH, n))
    if values == "binary":
        z = np.round(z)
    first = np.arange(n) == 0
    masks = {
        "none": np.zeros(n, bool),
        "all": np.ones(n, bool),
        "first": first,
        "all but the first": ~first,
        "some": rng.random(n) < 0.5,
    }
    given = rng.random((BATCH, n)) < 0.5
    other = given.copy()
    given[ODD] = masks[mask]
    sol, bars = solved(jnp.asarray(S), jnp.asarray(z), jnp.asarray(given), aux)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((sol.z, sol.state, bars)))
    assert (sol.z >= 0).all() and (sol.z <= 1).all()
    np.testing.assert_array_equal(sol.z[given], z[given])
    assert not np.any(np.asarray(bars[1])[~given])

    # A scalar sweep from the end: no further fall than the tolerance says.
    free = np.concatenate([[False], ~given[ODD], np.ones(aux, bool)])
    again = sweeps(S, sol.state[ODD], free, 1)[1]
    status = Status(int(sol.stats.status[ODD]))
    assert status in (Status.CONVERGED, Status.MAX_STEPS), status.name
    if status == Status.CONVERGED:
        assert again <= RTOL
    else:
        assert sol.stats.rel_residual[ODD] > RTOL and sol.stats.steps[ODD] == 500
    if not free.any():
        assert status == Status.CONVERGED
        np.testing.assert_array_equal(bars[1][ODD], 2 * z[ODD])

    # With another mask of this board, and other values in it, the others are what they were.
    moved = z.copy()
    moved[ODD] = 1 - z[ODD]
    same, same_bars = solved(jnp.asarray(S), jnp.asarray(moved), jnp.asarray(other), aux)
    np.testing.assert_array_equal(sol.z[MATES], same.z[MATES])
    np.testing.assert_array_equal(sol.stats.steps[MATES], same.stats.steps[MATES])
    np.testing.assert_array_equal(bars[1][MATES], same_bars[1][MATES])
