"""Calls outside of `jit`: programs are found again, and never the wrong ones."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax

W = 0.3 * jax.random.normal(jax.random.key(0), (8, 8)) / 3
X = jnp.linspace(-1.0, 1.0, 8)


@pytest.fixture
def compilations():
    """How many programs were compiled since the last call of it."""
    counted = [0]

    def listen(event, *_, **__):
        counted[0] += "backend_compile" in event

    jax.monitoring.register_event_duration_secs_listener(listen)

    def since():
        found, counted[0] = counted[0], 0
        return found

    yield since
    jax.monitoring.clear_event_listeners()


def solve(w, x, act=jnp.tanh, **options):
    """A new function, and a new closure, at every call."""
    return deqjax.fixed_point(lambda z: act(w @ z + x), jnp.zeros(8), **options).z


@pytest.mark.parametrize(
    "options",
    [
        dict(solver="anderson"),
        dict(solver="picard", batch_axis=0),
        pytest.param(dict(solver="newton_krylov"), marks=pytest.mark.slow),
        pytest.param(dict(adjoint="phantom"), marks=pytest.mark.slow),
        pytest.param(dict(solver=deqjax.WarmStart("broyden"), trace=True), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_second_call_compiles_nothing(compilations, options):
    axis = options.get("batch_axis")
    w = W if axis is None else jnp.eye(8) / 3
    gradient = jax.grad(lambda w, x: solve(w, x, **options).sum(), (0, 1))
    for scale in (1.0, 2.0, 3.0):
        compilations()
        found = solve(w, scale * X, **options)
        grads = gradient(w, scale * X)
        if scale > 1:
            assert compilations() == 0
        want = jax.jit(lambda w, x: solve(w, x, **options))(w, scale * X)
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
        want = jax.jit(gradient)(w, scale * X)
        for a, b in zip(grads, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_function_that_has_changed_is_another_one():
    """Neither what it closes over, nor a constant in it, nor the function itself gets stale."""
    for scale in (0.1, 0.2, 0.0, -0.0):
        z = solve(scale * W, X, act=lambda y, scale=scale: jnp.tanh(y) * (1 + scale))
        want = np.zeros(8)
        for _ in range(200):
            want = np.tanh(scale * np.asarray(W) @ want + np.asarray(X)) * (1 + scale)
        np.testing.assert_allclose(z, want, rtol=1e-4, atol=1e-6)
    factor = {"value": 0.5}
    f = lambda z: factor["value"] * jnp.cos(z)  # the same object throughout
    first = deqjax.fixed_point(f, jnp.zeros(()))
    factor["value"] = 0.9
    second = deqjax.fixed_point(f, jnp.zeros(()))
    assert abs(float(first.z - 0.5 * jnp.cos(first.z))) < 1e-5
    assert abs(float(second.z - 0.9 * jnp.cos(second.z))) < 1e-5


def test_zero_and_minus_zero_are_other_constants():
    for zero in (0.0, -0.0):
        f = lambda z, zero=zero: jnp.arctan2(zero * jnp.cosh(z), -1.0)
        want = np.arctan2(zero, -1.0)
        np.testing.assert_allclose(deqjax.fixed_point(f, jnp.zeros(())).z, want, rtol=1e-6)


def test_rules_of_ones_own_are_heard(compilations):
    """Forward solves need none; derivatives use those of this very f."""

    def cell(factor):
        @jax.custom_jvp
        def act(y):
            return jnp.tanh(y)

        act.defjvp(lambda p, t: (act(*p), factor * (1 - jnp.tanh(p[0]) ** 2) * t[0]))
        return act

    for factor in (1.0, 0.5):
        act = cell(factor)
        compilations()
        solve(W, X, act=act)
        assert factor == 1.0 or compilations() == 0
        eager = jax.grad(lambda w, act=act: solve(w, X, act=act).sum())(W)
        jitted = jax.jit(jax.grad(lambda w, act=act: solve(w, X, act=act).sum()))(W)
        np.testing.assert_allclose(eager, jitted, rtol=1e-4, atol=1e-6)
    assert np.abs(eager).max() > 0


def test_a_jitted_function_inside_is_known_again(compilations):
    act = jax.jit(lambda y: jax.nn.relu(y) + jnp.sin(y) / 2)
    solve(0.1 * W, X, act=act)
    compilations()
    solve(0.2 * W, X, act=act)
    assert compilations() == 0


def test_no_array_outlives_its_use():
    w = jnp.array(np.asarray(W) / 2)
    alive = weakref.ref(w)
    z = solve(w, X)
    gradient = jax.grad(lambda x: solve(w, x).sum())(X)
    jax.block_until_ready((z, gradient))
    w = None
    gc.collect()
    assert alive() is None


def test_vmap_outside_of_jit():
    xs = jnp.stack([X, 2 * X, -X])
    want = jnp.stack([solve(W, x) for x in xs])
    np.testing.assert_allclose(jax.vmap(lambda x: solve(W, x))(xs), want, rtol=1e-4, atol=1e-6)
    gradient = jax.grad(lambda x: solve(W, x).sum())
    want = jnp.stack([gradient(x) for x in xs])
    np.testing.assert_allclose(jax.vmap(gradient)(xs), want, rtol=1e-4, atol=1e-5)


def test_a_failed_gradient_is_said_once_for_each_line():
    """What runs compiled is heard outside of it."""
    w = jnp.diag(jnp.linspace(0.9, 0.999, 8))
    adjoint = deqjax.adjoints.Implicit(solver=deqjax.Picard(max_steps=2))

    def loss(x):
        f = lambda z: w @ z + x
        return deqjax.fixed_point(f, jnp.zeros(8), adjoint=adjoint, max_steps=2000).z.sum()

    for _ in range(2):  # a program that was there already speaks too
        with deqjax.checking_solves("raise"), pytest.raises(deqjax.SolveError, match="adjoint"):
            jax.grad(loss)(X)


@pytest.mark.slow
def test_second_derivatives_outside_of_jit():
    loss = lambda x: (solve(W, x, rtol=1e-7, max_steps=300) ** 2).sum()
    direction = jnp.cos(jnp.arange(8.0))
    product = lambda x: jnp.vdot(jax.grad(loss)(x), direction)
    np.testing.assert_allclose(
        jax.grad(product)(X), jax.jit(jax.grad(product))(X), rtol=1e-3, atol=1e-5
    )
