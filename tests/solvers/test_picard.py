"""Picard iteration against plain loops."""

import numpy as np
import pytest

import deqjax
from tests import cells


@pytest.mark.parametrize("damping", [1.0, 0.3])
def test_picard_is_plain_damped_iteration(damping):
    theta, x = cells.tanh_parameters(6)
    sol = cells.solve(
        cells.tanh_cell,
        np.zeros(6),
        theta,
        x,
        solver=deqjax.Picard(damping=damping),
        rtol=0.0,
        atol=0.0,
        max_steps=7,
        trace=True,
    )
    z = np.zeros(6)
    residuals = []
    for _ in range(8):
        last, fz = z, np.tanh(theta["w"] @ z + theta["b"]) + x
        residuals.append(np.linalg.norm(fz - z))
        z = (1 - damping) * z + damping * fz
    np.testing.assert_allclose(sol.z, last, rtol=1e-14)
    np.testing.assert_allclose(sol.stats.trace, residuals, rtol=1e-12)


def test_damping_tames_a_negative_eigenvalue():
    f = lambda z: -1.5 * z + 1.0
    undamped = cells.solve(f, np.zeros(2), solver="picard", rtol=1e-8)
    damped = cells.solve(f, np.zeros(2), solver=deqjax.Picard(damping=0.4), rtol=1e-8)
    assert not bool(undamped.stats.converged)
    # (1 − 0.4) − 0.4 · 1.5 = 0: one step is exact.
    assert int(damped.stats.steps) == 1
    np.testing.assert_allclose(damped.z, 0.4, rtol=1e-15)
