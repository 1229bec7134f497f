"""What other libraries get wrong, where no other test asks for it.

Elsewhere: gradients after an early stop of several states, two forwards before one backward, closed
over parameters (`test_gradients`), double backward (`test_higher_order`), unknown keywords
(`test_options`), stops on the batch's maximum (`test_batch`), the sign of Broyden's first matrix,
algebra per leaf, absolute ridges (`test_solvers`), forward mode (`test_forward_mode`), unvarying
carries and collectives (`sharding_programs`).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status
from tests import cells


def value(theta, x, **options):
    return cells.loss_of(
        deqjax.fixed_point(cells.tanh_cell, jnp.zeros_like(x), theta, x, **options).z
    )


@pytest.mark.parametrize("solver", [*cells.SOLVERS, "newton_krylov"])
@pytest.mark.parametrize("adjoint_solver", [None, "gmres"])
def test_the_jacobian_is_never_materialised(solver, adjoint_solver):
    """No array as large as n² in the compiled gradient, for n unlike any other size."""
    n = 211

    def loss(w):
        f = lambda z: jnp.tanh(w * jnp.roll(z, 1))
        options = dict(solver=cells.SMALL.get(solver, solver), adjoint_solver=adjoint_solver)
        return jnp.sum(deqjax.fixed_point(f, jnp.ones(n), max_steps=5, **options).z)

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones(n)))
    assert re.search(r"f64\[(\d+,)*211\]", jaxpr)  # the state itself is seen
    assert not re.search(r"\[[\d,]*211,[\d,]*211[\d,]*\]", jaxpr)


def test_an_adjoint_that_fails_does_not_raise_but_says_so():
    """Newton finds z* of an expansive cell; Picard cannot solve its adjoint."""
    a, b, _ = cells.linear([-4.0, 0.5, 3.0])

    def loss(b, probe):
        sol = deqjax.fixed_point(
            cells.linear_cell,
            jnp.zeros(3),
            a,
            b,
            solver="newton_krylov",
            adjoint_solver="picard",
            adjoint_probe=probe,
        )
        return jnp.sum(sol.z)

    grad, stats = jax.jit(jax.grad(loss, (0, 1)))(b, deqjax.adjoint_probe())
    assert float(stats.converged) == 0 and float(stats.status) == Status.DIVERGED
    np.testing.assert_array_equal(grad, 1.0)  # the best it saw: u = v


@pytest.mark.parametrize("solver", [*cells.SOLVERS, "newton_krylov", "gmres"])
def test_a_state_in_bfloat16_converges_and_has_a_gradient(solver):
    """Within the precision of the state, with no history or norm kept in it."""
    theta, x = cells.tanh_parameters(6, radius=0.5)
    narrow = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (theta, x))
    options = dict(solver=cells.SMALL.get(solver, solver))
    # GMRES is for affine cells.
    cell = (lambda z, t, x: z @ t["w"].T + x) if solver == "gmres" else cells.tanh_cell

    def loss(theta, x, probe):
        sol = deqjax.fixed_point(cell, jnp.zeros_like(x), theta, x, adjoint_probe=probe, **options)
        return jnp.sum(sol.z.astype(jnp.float32)), sol.stats

    grads, stats = jax.jit(jax.grad(loss, (1, 2), has_aux=True))(*narrow, deqjax.adjoint_probe())
    assert bool(stats.converged) and float(grads[1].converged) == 1
    assert grads[0].dtype == jnp.bfloat16
    theta, x = jax.tree.map(lambda a: np.asarray(a.astype(jnp.float64)), narrow)
    if solver == "gmres":
        want = np.linalg.solve(np.eye(6) - theta["w"].T, np.ones(6))
    else:
        want = cells.tanh_gradient(theta, cells.tanh_solution(theta, x), np.ones(6))[1]
    assert cells.relative(grads[0].astype(jnp.float64), want) < 0.05


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_krylov_adjoint_in_float32_reports_no_false_breakdown(scale):
    """At any scale of the cotangent, on a system of condition 1e3, to its tolerance."""
    a, b, _ = cells.linear(np.concatenate([np.linspace(-2.0, 0.9, 7), [0.999]]))
    a, b = (jnp.asarray(t, jnp.float32) for t in (a, b))

    def loss(b, probe):
        sol = deqjax.fixed_point(
            cells.linear_cell, jnp.zeros(8, jnp.float32), a, b, solver="gmres", adjoint_probe=probe
        )
        return scale * jnp.sum(sol.z)

    grad, stats = jax.jit(jax.grad(loss, (0, 1)))(b, deqjax.adjoint_probe())
    want = np.linalg.solve(np.eye(8) - np.asarray(a, float).T, np.full(8, scale))
    assert float(stats.converged) == 1 and float(stats.rel_residual) <= 1e-5
    assert grad.dtype == jnp.float32 and cells.relative(grad, want) < 1e-2


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_acceleration_is_never_slower_than_plain_iteration(solver, scale):
    """An absolute ridge makes it so as soon as residuals are small."""
    a, b, _ = cells.linear(np.linspace(-0.9, 0.95, 6))
    steps = {}
    for name in (solver, "picard"):
        sol = jax.jit(
            lambda b, name=name: deqjax.fixed_point(
                cells.linear_cell,
                jnp.zeros(6),
                a,
                b,
                solver=cells.SMALL[name],
                rtol=1e-10,
                atol=0.0,
                max_steps=900,
            )
        )(scale * b)
        assert bool(sol.stats.converged)
        steps[name] = int(sol.stats.steps)
    assert steps[solver] < 0.5 * steps["picard"]


@pytest.mark.parametrize("solver", [cells.SMALL["broyden"], deqjax.NewtonKrylov(memory=6)])
def test_a_stalled_batch_mate_ends_no_other_sample(solver):
    """One sample without a fixed point goes on to max_steps; the others stop when they are done."""
    shift = np.array([0.0, 0.3, 0.0])[:, None]
    stuck = np.array([0.0, 0.0, 1.0])[:, None]

    def f(z, shift, stuck):
        away = jnp.where(z < 0, 1.0, -1.0) * (1 + 0.1 * jnp.cos(z))
        return jnp.where(stuck > 0, away, 0.5 * jnp.cos(z) + shift)

    sol = jax.jit(
        lambda shift, stuck: deqjax.fixed_point(
            f, jnp.zeros((3, 2)), shift, stuck, solver=solver, batch_axis=0, max_steps=60, rtol=1e-9
        )
    )(shift, stuck)
    np.testing.assert_array_equal(sol.stats.converged, [True, True, False])
    assert np.all(sol.stats.steps[:2] < 30) and int(sol.stats.status[2]) != Status.CONVERGED
    z = np.asarray(sol.z[:2])
    np.testing.assert_allclose(z, 0.5 * np.cos(z) + shift[:2], rtol=1e-8)


@pytest.mark.parametrize("adjoint_solver", ["gmres", "newton_krylov"])
def test_several_states_stopped_early_by_newton_have_the_gradient_at_the_iterate(adjoint_solver):
    theta, x = cells.tanh_parameters(6, radius=0.9)

    def f(z, theta, x):
        whole = cells.tanh_cell(jnp.concatenate([z["a"], z["b"][0]]), theta, x)
        return cells.split(whole)

    def loss(x):
        sol = deqjax.fixed_point(
            f,
            cells.split(jnp.zeros(6)),
            theta,
            x,
            solver=deqjax.NewtonKrylov(memory=6, max_steps=1),
            adjoint_solver=deqjax.GMRES(memory=6, rtol=1e-12, max_steps=9)
            if adjoint_solver == "gmres"
            else deqjax.NewtonKrylov(memory=6, rtol=1e-12, max_steps=9),
        )
        z = jnp.concatenate([sol.z["a"], sol.z["b"][0]])
        return cells.loss_of(z), z

    got, z = jax.jit(jax.grad(loss, has_aux=True))(x)
    z = np.asarray(z)
    assert cells.relative(z, cells.tanh_solution(theta, x)) > 1e-6
    assert cells.relative(got, cells.tanh_gradient(theta, z, cells.cotangent_of(z))[1]) < 1e-8


@pytest.mark.slow
def test_two_forwards_before_one_backward_of_adjoints_that_keep_state():
    """Shine and Reversible hold on to the forward solve: each to its own."""
    theta, x = cells.tanh_parameters(5, radius=0.5)
    for options in (
        dict(solver=cells.SMALL["broyden"], adjoint="shine"),
        dict(solver="picard", adjoint="reversible", rtol=1e-6),
    ):

        def two(theta, x, options=options):
            f = lambda x: value(theta, x, **options)
            (_, first), (_, second) = jax.vjp(f, x), jax.vjp(f, 3 * x)
            return first(1.0), second(1.0)

        def one(theta, x, options=options):
            return jax.grad(lambda x: value(theta, x, **options))(x)

        got, single = jax.jit(two)(theta, x), jax.jit(one)
        assert cells.relative(got, (single(theta, x), single(theta, 3 * x))) < 1e-9


def test_double_backward_of_a_newton_solve_is_right():
    theta, x = cells.tanh_parameters(4, radius=0.7)

    def penalty(x, grad):
        return jnp.sum(grad(x) ** 2)

    options = dict(solver=deqjax.NewtonKrylov(memory=4), **cells.TIGHT)
    implicit = jax.grad(lambda x: value(theta, x, **options))

    def explicit(x):
        step = lambda z, _: (cells.tanh_cell(z, theta, x), None)
        return cells.loss_of(jax.lax.scan(step, jnp.zeros(4), length=200)[0])

    got = jax.jit(jax.grad(lambda x: penalty(x, implicit)))(x)
    want = jax.jit(jax.grad(lambda x: penalty(x, jax.grad(explicit))))(x)
    assert cells.relative(got, want) < 1e-7
