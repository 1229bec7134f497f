"""GMRES against dense answers."""

import jax
import jax.numpy as jnp
import numpy as np

import deqjax
from tests import cells


def test_gmres_solves_a_linear_system_in_one_cycle_of_its_degree():
    """Four distinct eigenvalues, two far outside the unit disk: four products are enough."""
    a, b, z_star = cells.linear(np.repeat([-5.0, 0.3, 0.9, 4.0], 3))
    sol = jax.jit(
        lambda b: deqjax.fixed_point(
            cells.linear_cell, jnp.zeros(12), a, b, solver="gmres", rtol=1e-10
        )
    )(b)
    assert bool(sol.stats.converged) and int(sol.stats.steps) == 1
    assert int(sol.stats.f_evals) == 1 + 4 + 2  # at z0; products; linearisation and the new point
    assert cells.relative(sol.z, z_star) < 1e-9


def test_gmres_restarts_when_its_memory_is_too_small():
    a, b, z_star = cells.linear(np.linspace(-0.5, 0.9, 12))
    solver = deqjax.GMRES(memory=3, rtol=1e-10)
    sol = deqjax.fixed_point(cells.linear_cell, jnp.zeros(12), a, b, solver=solver)
    assert bool(sol.stats.converged) and int(sol.stats.steps) > 1
    assert cells.relative(sol.z, z_star) < 1e-8


def test_gmres_least_residual_of_a_krylov_space():
    """After m products the residual is the least that any polynomial of that degree leaves."""
    a, b, _ = cells.linear(np.linspace(-0.9, 0.95, 10), symmetric=False)
    for m in (1, 3, 6):
        sol = deqjax.fixed_point(
            cells.linear_cell,
            jnp.zeros(10),
            a,
            b,
            solver=deqjax.GMRES(memory=m, max_steps=1, rtol=1e-14, atol=0.0),
        )
        system = np.eye(10) - a
        krylov = np.stack([np.linalg.matrix_power(a, j) @ b for j in range(m)], 1)
        best = np.linalg.lstsq(system @ krylov, b, rcond=None)[0]
        least = np.linalg.norm(b - system @ krylov @ best)
        assert abs(float(sol.stats.residual) - least) < 1e-6 * least
