"""Linear flows of tiny shapes over intervals that may be empty, against their exponentials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqjax import Status
from deqjax.implicit import ode

pytestmark = pytest.mark.usefixtures("double_precision")

RTOL, BATCH = 1e-8, 3


@jax.jit
def solved(z0, rate, t0, t1):
    def loss(z0, rate, t1):
        f = lambda t, z, rate: rate * z
        options = dict(batch_axis=0, args_axes=(0,), rtol=RTOL, max_steps=64)
        sol = ode(f, z0, rate, t0=t0, t1=t1, **options)
        return jnp.sum(sol.z), sol

    (_, sol), bars = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(z0, rate, t1)
    return sol, bars


@pytest.mark.parametrize("shape", [(BATCH,), pytest.param((BATCH, 1), marks=pytest.mark.slow)])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    span=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, -1.0, 40.0]),
    t0=st.sampled_from([0.0, 2.0]),
    unit=st.sampled_from([1.0, 1e-20, 1e20]),
    seed=st.integers(0, 99),
)
def test_what_is_said_is_so(shape, span, t0, unit, seed):
    rng = np.random.default_rng(seed)
    z0, rate = unit * rng.normal(size=shape), rng.normal(size=shape)
    z0[0], rate[1] = 0, 0
    t1 = t0 + span
    sol, bars = solved(*map(jnp.asarray, (z0, rate, t0, t1)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((sol.z, sol.stats.residual, bars)))
    went = t1 - t0
    want, size = z0 * np.exp(rate * went), abs(z0) * np.exp(abs(rate * went))
    for i in range(BATCH):
        status = Status(int(sol.stats.status[i]))
        assert status in (Status.CONVERGED, Status.MAX_STEPS), status.name
        if status == Status.CONVERGED:
            assert np.all(abs(sol.z[i] - want[i]) <= 100 * RTOL * size[i])
            assert np.all(abs(bars[0][i] * z0[i] - want[i]) <= 1e3 * RTOL * size[i])
        else:
            assert sol.stats.steps[i] == 64 and sol.stats.residual[i] > 0
            assert not np.any(bars[0][i]) and not np.any(bars[1][i])
    if went == 0:
        np.testing.assert_array_equal(sol.z, z0)
        np.testing.assert_array_equal(bars[0], np.ones(shape))
        np.testing.assert_array_equal(bars[1], np.zeros(shape))
        assert sol.stats.converged.all() and not sol.stats.residual.any()
