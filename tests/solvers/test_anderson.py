"""Anderson acceleration against GMRES, its α form and dense least squares."""

import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax.solvers.base import Cell, Point
from tests import cells


def gmres_residuals(a, b, steps):
    """rₖ = b − (I − A) zₖ minimal over zₖ in the Krylov space of (I − A, b)."""
    system = np.eye(b.size) - a
    residuals, krylov = [b], []
    vector = b
    for _ in range(steps):
        for q in krylov:
            vector = vector - q * (q @ vector)
        krylov.append(vector / np.linalg.norm(vector))
        image = system @ np.stack(krylov, 1)
        residuals.append(b - image @ np.linalg.lstsq(image, b, rcond=None)[0])
        vector = system @ krylov[-1]
    return residuals


@pytest.mark.parametrize("symmetric", [True, False])
def test_anderson_with_full_memory_is_gmres(symmetric):
    """Walker and Ni, theorem 2.2: z of step k + 1 is f of GMRES's k-th iterate."""
    n = 6
    a, b, z_star = cells.linear(np.linspace(-0.9, 1.6, n), symmetric=symmetric)
    sol = cells.solve(
        cells.linear_cell,
        np.zeros(n),
        a,
        b,
        solver=deqjax.Anderson(memory=n),
        rtol=1e-9,
        atol=0.0,
        max_steps=20,
        trace=True,
    )
    assert bool(sol.stats.converged) and int(sol.stats.steps) <= n + 1
    assert cells.relative(sol.z, z_star) < 1e-7
    expected = [np.linalg.norm(a @ r) for r in gmres_residuals(a, b, n - 1)]
    np.testing.assert_allclose(cells.trace_of(sol)[1:n], expected[: n - 1], rtol=1e-5)


def test_anderson_mixing_is_the_alpha_form():
    """z⁺ = Σ αᵢ [β f(zᵢ) + (1 − β) zᵢ] with α minimising ‖Σ αᵢ rᵢ‖ under Σ αᵢ = 1."""
    theta, x = cells.tanh_parameters(7, radius=0.9)
    memory, beta, steps = 2, 0.6, 6
    f = lambda z: np.tanh(theta["w"] @ z + theta["b"]) + x
    zs = [np.zeros(7)]
    for _ in range(steps):
        window = zs[-(memory + 1) :]
        r = np.stack([f(z) - z for z in window], 1)
        kkt = np.block([[r.T @ r, np.ones((len(window), 1))], [np.ones((1, len(window))), 0.0]])
        alpha = np.linalg.solve(kkt, np.r_[np.zeros(len(window)), 1.0])[:-1]
        zs.append(
            sum(c * (beta * f(z) + (1 - beta) * z) for c, z in zip(alpha, window, strict=True))
        )
    sol = cells.solve(
        cells.tanh_cell,
        np.zeros(7),
        theta,
        x,
        solver=deqjax.Anderson(memory=memory, mixing=beta),
        rtol=0.0,
        atol=0.0,
        max_steps=steps,
        trace=True,
    )
    np.testing.assert_allclose(sol.stats.trace, [np.linalg.norm(f(z) - z) for z in zs], rtol=1e-6)
    assert cells.relative(sol.z, zs[-1]) < 1e-7


def test_anderson_without_memory_is_picard():
    theta, x = cells.tanh_parameters(6)
    options = dict(rtol=1e-8, atol=0.0, trace=True)
    plain, picard = (
        cells.solve(cells.tanh_cell, np.zeros(6), theta, x, solver=s, **options)
        for s in (deqjax.Anderson(memory=0), "picard")
    )
    np.testing.assert_array_equal(plain.z, picard.z)
    np.testing.assert_array_equal(plain.stats.trace, picard.stats.trace)
    mixed, damped = (
        cells.solve(cells.tanh_cell, np.zeros(6), theta, x, solver=s, **options)
        for s in (deqjax.Anderson(memory=0, mixing=0.4), deqjax.Picard(damping=0.4))
    )
    assert int(mixed.stats.steps) == int(damped.stats.steps) > int(picard.stats.steps)
    assert cells.relative(mixed.z, damped.z) < 1e-14


def anderson_gamma(d_r, r):
    """The coefficients that Anderson chooses, read off a step whose ΔY is the identity."""
    n, m = d_r.shape
    solver = deqjax.Anderson(memory=m)
    z = jnp.zeros((1, n))
    point = Point.of(z, jnp.asarray(r)[None])
    state = solver.init(point, 100)
    gram = d_r.T @ d_r
    state = state._replace(
        w=type(state.w)(jnp.asarray(d_r.T)[None]),
        y=type(state.y)(jnp.eye(m, n)[None]),
        system=jnp.asarray(np.column_stack([gram, np.zeros(m), np.diag(gram)]))[None],
    )
    state = solver.resume(state, point, jnp.int32(m))
    new = solver.step(Cell(lambda z: z), point, state, jnp.int32(m), None).point.z[0]
    return np.asarray(r - new)[:m]


@pytest.mark.parametrize("order", ["worst last", "worst first"])
def test_anderson_solves_a_gram_of_condition_1e12(order):
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(8, 4)))[0]
    d_r = np.stack([q[:, 0], q[:, 1], q[:, 0] + q[:, 1] + 2e-6 * q[:, 2]], 1)
    d_r = d_r if order == "worst last" else d_r[:, ::-1]
    assert 1e11 < np.linalg.cond(d_r.T @ d_r) < 1e14
    r = q @ np.array([1.0, -0.5, 1e-3, 0.7])
    left = np.linalg.norm(r - d_r @ anderson_gamma(d_r, r))
    assert left < 0.7 * 1.01  # the part of r outside the span of ΔR


@pytest.mark.parametrize("gap", [1e-12, 0.0])
def test_anderson_drops_what_a_singular_history_cannot_tell(gap):
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.normal(size=(8, 3)))[0]
    d_r = np.stack([q[:, 0], q[:, 0] + gap * q[:, 1], np.zeros(8)], 1)
    r = q @ np.array([1.0, 1.0, 1.0])
    gamma = anderson_gamma(d_r, r)
    assert np.all(np.isfinite(gamma)) and np.max(np.abs(gamma)) < 1e3
    assert np.linalg.norm(r - d_r @ gamma) < np.sqrt(2) * 1.01


def test_anderson_survives_a_clustered_spectrum():
    """Residual differences are parallel to 1e-6: every least-squares problem is near-singular."""
    a, b, z_star = cells.linear(0.95 + 1e-6 * np.arange(8))
    sol = cells.solve(
        cells.linear_cell, np.zeros(8), a, b, solver="anderson", rtol=1e-10, atol=0.0, trace=True
    )
    assert bool(sol.stats.converged) and int(sol.stats.steps) <= 8
    assert cells.relative(sol.z, z_star) < 1e-7
    assert np.all(np.diff(cells.trace_of(sol)) <= 0)
