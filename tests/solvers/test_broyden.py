"""Broyden's method against its textbook form, iterate by iterate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax.solvers.base import Cell, Point
from tests import cells


def dense_broyden(f, z, memory, steps):
    """Good Broyden by its textbook update, from B₀ = −I with the last `memory` pairs.

    B⁺ = B + (y − B s) sᵀ / (sᵀs), pairs applied from oldest to newest; z⁺ = z − B⁻¹ g.
    """
    zs, pairs = [z], []
    g = f(z) - z
    for _ in range(steps):
        b = -np.eye(z.size)
        for s, y in pairs[-memory:]:
            b = b + np.outer(y - b @ s, s) / (s @ s)
        z_new = z - np.linalg.solve(b, g)
        g_new = f(z_new) - z_new
        pairs.append((z_new - z, g_new - g))
        z, g = z_new, g_new
        zs.append(z)
    return zs


@pytest.mark.parametrize("memory", [1, 3, 10])
def test_broyden_is_the_textbook_method_iterate_by_iterate(memory):
    theta, x = cells.tanh_parameters(8, radius=0.95)
    steps = 9
    solver = deqjax.Broyden(memory=memory)
    f = lambda z: cells.tanh_cell(z, theta, x)
    step = jax.jit(lambda point, state, k: solver.step(Cell(f), point, state, k, None))
    point = Point.of(jnp.zeros((1, 8)), f(jnp.zeros((1, 8))))
    state = solver.init(point, 100)
    iterates = [point.z[0]]
    for k in range(steps):
        point, state, _ = step(point, state, jnp.int32(k))
        iterates.append(point.z[0])
    reference = dense_broyden(
        lambda z: np.tanh(theta["w"] @ z + theta["b"]) + x, np.zeros(8), memory, steps
    )
    for got, want in zip(iterates, reference, strict=True):
        assert np.linalg.norm(got - want) < 1e-8 * np.linalg.norm(reference[-1])


def test_broyden_run_by_the_driver_is_the_textbook_method():
    theta, x = cells.tanh_parameters(8, radius=0.95)
    f = lambda z: np.tanh(theta["w"] @ z + theta["b"]) + x
    sol = cells.solve(
        cells.tanh_cell,
        np.zeros(8),
        theta,
        x,
        solver=deqjax.Broyden(memory=2),
        rtol=0.0,
        atol=0.0,
        max_steps=8,
        trace=True,
    )
    residuals = [np.linalg.norm(f(z) - z) for z in dense_broyden(f, np.zeros(8), 2, 8)]
    np.testing.assert_allclose(sol.stats.trace, residuals, rtol=1e-6)


@pytest.mark.parametrize("steps", [5, 7])
def test_broyden_secant_condition_of_the_newest_pair(steps):
    """B⁻¹ Δg = Δz, with B⁻¹ built from the returned state; older pairs were dropped already."""
    memory, n = 3, 8
    theta, x = cells.tanh_parameters(n, radius=0.95)
    sol = cells.solve(
        cells.tanh_cell,
        np.zeros(n),
        theta,
        x,
        solver=deqjax.Broyden(memory=memory),
        rtol=0.0,
        atol=0.0,
        max_steps=steps,
    )
    newest = (steps - 1) % memory
    state = sol.state.solver_state
    d_z, d_f = (np.asarray(h.values)[0].T for h in (state.w, state.y))
    assert d_z.shape == (n, memory)
    kernel, squares = state.system[0, :, :memory], state.system[0, :, -1]
    inverse = -np.eye(n) + d_f @ np.linalg.solve(np.asarray(kernel), d_z.T)
    s, y = d_z[:, newest], d_f[:, newest] - d_z[:, newest]
    assert cells.relative(inverse @ y, s) < 1e-9
    np.testing.assert_allclose(squares, np.sum(d_z**2, axis=0))
    # It is the inverse of the matrix that the textbook update makes of the same pairs.
    b = -np.eye(n)
    for j in (np.arange(memory) + newest + 1) % memory:
        b += np.outer(d_f[:, j] - d_z[:, j] - b @ d_z[:, j], d_z[:, j]) / (d_z[:, j] @ d_z[:, j])
    assert cells.relative(inverse, np.linalg.inv(b)) < 1e-9


def test_broyden_starts_with_a_picard_step():
    """B₀ = −I; from +I the first step would go the other way."""
    theta, x = cells.tanh_parameters(6)
    solver = deqjax.Broyden()
    f = lambda z: cells.tanh_cell(z, theta, x)
    z = jnp.ones((1, 6))
    point = Point.of(z, f(z))
    new = solver.step(Cell(f), point, solver.init(point, 10), jnp.int32(0), None).point
    np.testing.assert_allclose(new.z, point.fz, rtol=1e-15)
