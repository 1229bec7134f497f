"""Reversible: exact gradients of the computed iterate, memory without depth, drift reported."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status
from deqjax.adjoints.reversible import Coupled
from tests import cells

N = 6


def solve(theta, x, adjoint="reversible", probe=None, **options):
    options = dict(solver="picard", rtol=1e-8) | options
    return deqjax.fixed_point(
        cells.tanh_cell,
        jnp.zeros_like(x),
        theta,
        x,
        adjoint=adjoint,
        adjoint_probe=probe,
        **options,
    )


def coupled(theta, x, beta, steps):
    """The iteration by hand."""
    y = z = jnp.zeros_like(x)
    for _ in range(steps):
        y = (1 - beta) * y + beta * cells.tanh_cell(z, theta, x)
        z = (1 - beta) * z + beta * cells.tanh_cell(y, theta, x)
    return z


@pytest.mark.parametrize("beta", [0.3, 0.7])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_value_and_gradient_are_those_of_the_iteration_by_hand(beta, steps):
    theta, x = cells.tanh_parameters(N, radius=1.5)
    options = dict(rtol=0.0, atol=0.0, max_steps=steps)
    adjoint = deqjax.Reversible(damping=beta)
    value = lambda t, x: cells.loss_of(solve(t, x, adjoint, **options).z)
    hand = lambda t, x: cells.loss_of(coupled(t, x, beta, steps))
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(theta, x) for f in (value, hand))
    assert cells.relative(got, want) < 1e-9


def test_converged_it_is_the_implicit_gradient():
    theta, x = cells.tanh_parameters(N, radius=0.5)
    z = cells.tanh_solution(theta, x)
    got = jax.grad(lambda t, x: cells.loss_of(solve(t, x).z), (0, 1))(theta, x)
    assert cells.relative(got, cells.tanh_gradient(theta, z, cells.cotangent_of(z))) < 1e-6


def test_the_best_iterate_is_the_one_that_is_differentiated():
    """A diverging iteration ends far from its best iterate: those steps are only undone."""
    theta, x = cells.tanh_parameters(N, radius=1.0)
    theta = {"w": -4.0 * theta["w"] @ theta["w"].T, "b": theta["b"]}
    options = dict(rtol=0.0, atol=0.0, max_steps=12, trace=True)
    adjoint = deqjax.Reversible(damping=0.6)
    sol = solve(theta, x, adjoint, **options)
    best = int(np.argmin(np.asarray(sol.stats.trace)))
    assert 0 < best < 12
    assert cells.relative(sol.z, coupled(theta, x, 0.6, best)) < 1e-9
    got = jax.grad(lambda t: cells.loss_of(solve(t, x, adjoint, **options).z))(theta)
    want = jax.grad(lambda t: cells.loss_of(coupled(t, x, 0.6, best)))(theta)
    assert cells.relative(got, want) < 1e-6


def test_samples_stop_on_their_own_and_are_undone_on_their_own():
    theta, _ = cells.tanh_parameters(N, radius=0.6)
    x = np.random.default_rng(0).normal(size=(4, N)) * np.array([0.01, 0.5, 2.0, 9.0])[:, None]
    gradient = jax.jit(jax.grad(lambda t, x: cells.loss_of(solve(t, x, batch_axis=0).z), (0, 1)))
    steps = np.asarray(solve(theta, x, batch_axis=0).stats.steps)
    assert len(set(steps.tolist())) > 1
    theta_bar, x_bar = gradient(theta, x)
    alone = [gradient(theta, x[i : i + 1]) for i in range(4)]
    assert cells.relative(x_bar, jnp.concatenate([a[1] for a in alone])) < 1e-6
    assert cells.relative(theta_bar, jax.tree.map(lambda *t: sum(t), *[a[0] for a in alone])) < 1e-6


def test_a_step_costs_two_evaluations():
    theta, x = cells.tanh_parameters(N)
    stats = solve(theta, x).stats
    assert int(stats.f_evals) == 1 + 2 * int(stats.steps)


def test_drift_is_measured_and_too_much_is_a_failure():
    theta, x = cells.tanh_parameters(N, radius=0.8)

    def report(steps):
        loss = lambda p: cells.loss_of(
            solve(theta, x, probe=p, rtol=0.0, atol=0.0, max_steps=steps).z
        )
        return jax.grad(loss)(deqjax.adjoint_probe(dtype=jnp.float64))

    short, long = report(8), report(90)
    assert float(short.converged) == 1 and float(short.rel_residual) < 1e-10
    assert float(long.status) == Status.DIVERGED and float(long.rel_residual) > 1e-2


def test_states_are_kept_in_double_precision_where_it_is_enabled():
    theta, x = cells.tanh_parameters(N, radius=0.5)
    single = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (theta, x))

    def report(steps):
        loss = lambda p: cells.loss_of(
            solve(*single, probe=p, rtol=0.0, atol=0.0, max_steps=steps).z
        ).astype(jnp.float32)
        return jax.grad(loss)(deqjax.adjoint_probe())

    inside = float(report(12).rel_residual)
    with jax.enable_x64(False):
        outside = float(report(12).rel_residual)
    assert inside < 1e-2 * outside


def test_memory_does_not_grow_with_steps():
    x = jax.ShapeDtypeStruct((8, 256), np.float32)

    def temporary(adjoint, steps):
        def loss(w, x):
            f = lambda z, w, x: jnp.tanh(w * jnp.roll(z, 1, axis=-1)) + x
            options = dict(solver="picard", adjoint=adjoint, max_steps=steps, batch_axis=0)
            return jnp.sum(deqjax.fixed_point(f, jnp.zeros_like(x), w, x, **options).z ** 2)

        w = jax.ShapeDtypeStruct((256,), np.float32)
        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(w, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary("reversible", 256) <= 1.02 * temporary("reversible", 4)
    assert temporary("unrolled", 256) > 4 * temporary("reversible", 256)


def test_the_loop_by_itself_can_be_unrolled():
    """`Coupled` is a solver like any other."""
    theta, x = cells.tanh_parameters(N)
    options = dict(rtol=0.0, atol=0.0, max_steps=6)
    by_steps = lambda t: cells.loss_of(
        solve(t, x, "unrolled", solver=Coupled(damping=0.5), **options).z
    )
    reversed_ = lambda t: cells.loss_of(solve(t, x, **options).z)
    assert cells.relative(jax.grad(reversed_)(theta), jax.grad(by_steps)(theta)) < 1e-9


@pytest.mark.parametrize("solver", ["anderson", deqjax.Picard(damping=0.5)])
def test_needs_plain_picard(solver):
    with pytest.raises(ValueError, match="pass solver='picard'"):
        deqjax.fixed_point(jnp.cos, jnp.zeros(2), adjoint="reversible", solver=solver)


def test_wrong_damping():
    with pytest.raises(ValueError, match="cannot be undone"):
        deqjax.Reversible(damping=1.0)


def test_a_drift_is_heard_of():
    """In float32 at the defaults: the forward solve has converged, and the way back misses z0."""
    with jax.enable_x64(False):
        q = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0]
        w = jnp.asarray(0.5 * q, jnp.float32)
        x = jnp.full(32, 0.1, jnp.float32)
        f = lambda z, w: 0.5 * jnp.sin(w @ z) + 0.5 * (w @ z) + x

        def loss(w):
            sol = deqjax.fixed_point(f, jnp.zeros_like(x), w, solver="picard", adjoint="reversible")
            return jnp.sum(sol.z**2), sol.stats.converged

        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            _, converged = jax.grad(loss, has_aux=True)(w)
    assert bool(converged) and any("way back of the adjoint" in str(h.message) for h in heard)


def test_a_damping_that_cannot_be_undone_is_refused():
    with pytest.raises(ValueError, match="smaller damping"):
        deqjax.fixed_point(
            jnp.cos, jnp.zeros(2), solver="picard", adjoint=deqjax.Reversible(damping=0.999)
        )
