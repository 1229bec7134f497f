"""SHINE: the transposed Broyden inverse, checked and never worse than no inverse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells


def gradient(adjoint, theta, x, **options):
    """dℓ/dx, which is u itself, and the adjoint's report."""

    def loss(x, probe):
        sol = deqjax.fixed_point(
            cells.tanh_cell,
            jnp.zeros_like(x),
            theta,
            x,
            adjoint=adjoint,
            adjoint_probe=probe,
            **(dict(solver=deqjax.Broyden(memory=20), rtol=1e-10) | options),
        )
        return cells.loss_of(sol.z)

    batch = x.shape[0] if x.ndim == 2 else None
    return jax.jit(jax.grad(loss, (0, 1)))(x, deqjax.adjoint_probe(batch, jnp.float64))


@pytest.mark.parametrize("memory", [3, 20])
def test_it_is_the_transposed_inverse_of_the_textbook_matrix(memory):
    """Read off the state of the solve: u = −B⁻ᵀ v with B from rank-one updates of the pairs."""
    theta, x = cells.tanh_parameters(8, radius=0.9)
    solver = deqjax.Broyden(memory=memory)
    options = dict(solver=solver, rtol=1e-10)
    sol = deqjax.fixed_point(cells.tanh_cell, jnp.zeros(8), theta, x, **options)
    state, steps = sol.state.solver_state, int(sol.stats.steps)
    d_z, d_f = (np.asarray(h.values)[0] for h in (state.w, state.y))
    b = -np.eye(8)
    for j in (np.arange(memory) + steps) % memory:
        s, y = d_z[j], d_f[j] - d_z[j]
        if s @ s > 0:
            b += np.outer(y - b @ s, s) / (s @ s)
    v = cells.cotangent_of(np.asarray(sol.z))
    u, _ = gradient("shine", theta, x, **options)
    assert cells.relative(u, -np.linalg.solve(b.T, v)) < 1e-7


@pytest.mark.slow
def test_better_than_no_inverse_and_refining_makes_it_exact():
    theta, x = cells.tanh_parameters(8, radius=0.8)
    exact = cells.tanh_gradient(
        theta, cells.tanh_solution(theta, x), cells.cotangent_of(cells.tanh_solution(theta, x))
    )[1]
    errors = []
    for adjoint in ("jfb", "shine", deqjax.Shine(refine=2), deqjax.Shine(refine=12)):
        u, stats = gradient(adjoint, theta, x)
        errors.append(cells.relative(u, exact))
        assert float(stats.converged) == 0  # nothing was solved, and it says so
    assert errors[1] < 0.7 * errors[0] and errors[2] < 0.2 * errors[1] and errors[3] < 1e-5


def test_its_residual_is_reported():
    theta, x = cells.tanh_parameters(8, radius=0.8)
    u, stats = gradient("shine", theta, x)
    z = cells.tanh_solution(theta, x)
    jacobian = (1 - np.tanh(theta["w"] @ z + theta["b"]) ** 2)[:, None] * theta["w"]
    left = np.linalg.norm(jacobian.T @ u + cells.cotangent_of(z) - u)
    assert abs(float(stats.residual) - left) < 1e-6
    assert float(stats.f_evals) == 2


def test_falls_back_sample_by_sample_where_the_inverse_is_worse_than_none():
    rng = np.random.default_rng(0)
    theta, _ = cells.tanh_parameters(8, radius=0.9)
    x = rng.normal(size=(6, 8))
    for rtol in (1e-1, 1e-3):
        shine, report = gradient("shine", theta, x, rtol=rtol, batch_axis=0)
        none, floor = gradient("jfb", theta, x, rtol=rtol, batch_axis=0)
        assert np.all(np.asarray(report.residual) <= np.asarray(floor.residual) * (1 + 1e-12))
        assert shine.shape == none.shape


def test_a_useless_inverse_is_not_used():
    """Stopped at once, B is −I or worse: the gradient is exactly the one without it."""
    a, b, _ = cells.linear(np.linspace(-3, 3, 6))
    grads = [
        jax.grad(
            lambda b, adjoint=adjoint: cells.loss_of(
                deqjax.fixed_point(
                    cells.linear_cell,
                    jnp.zeros(6),
                    a,
                    b,
                    solver="broyden",
                    adjoint=adjoint,
                    max_steps=0,
                ).z
            )
        )(b)
        for adjoint in ("shine", "jfb")
    ]
    assert cells.relative(*grads) < 1e-12


def test_frozen_samples_keep_the_inverse_of_their_own_last_step():
    theta, _ = cells.tanh_parameters(6, radius=0.95)
    x = np.random.default_rng(1).normal(size=(4, 6)) * np.array([0.01, 0.3, 1.0, 5.0])[:, None]
    options = dict(solver=deqjax.Broyden(memory=4), batch_axis=0)
    together, _ = gradient("shine", theta, x, **options)
    for i in range(4):
        alone, _ = gradient("shine", theta, x[i : i + 1], **options)
        # An inverse built from differences of size 1e-10 is no more exact than this.
        assert cells.relative(together[i], alone[0]) < 1e-5


def test_a_complex_state_is_a_pair_of_real_ones():
    """The solve treats it so, and so the inverse that it leaves behind is the same."""
    rng = np.random.default_rng(0)
    a, b, c = (rng.normal(size=s) + 1j * rng.normal(size=s) for s in ((4, 4), 4, 4))
    a *= 0.6 / np.linalg.norm(a, 2)
    real = lambda b: jnp.concatenate([b.real, b.imag])
    options = dict(solver=deqjax.Broyden(memory=20), rtol=1e-10, adjoint="shine")

    def gradient(a, b, c):
        f = lambda z, b: a @ z + b
        loss = lambda b: jnp.sum(
            (c * deqjax.fixed_point(f, jnp.zeros_like(b), b, **options).z).real
        )
        return jax.jit(jax.grad(loss))(b)

    pairs = gradient(np.block([[a.real, -a.imag], [a.imag, a.real]]), real(b), real(c.conj()))
    assert cells.relative(gradient(a, b, c), pairs[:4] - 1j * pairs[4:]) < 1e-6


def test_needs_a_broyden_solve():
    with pytest.raises(ValueError, match="use solver='broyden'"):
        deqjax.fixed_point(jnp.cos, jnp.zeros(2), adjoint="shine")
    with pytest.raises(ValueError, match="refine must be an integer"):
        deqjax.Shine(refine=-1)
