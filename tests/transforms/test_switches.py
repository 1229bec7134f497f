"""JAX's debugging switches are for the user's f, and find nothing in the library's arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax

W = 0.3 * np.eye(3, dtype=np.float32)
SOLVERS = [
    "picard",
    "anderson",
    "broyden",
    "newton_krylov",
    deqjax.Broyden(line_search=True),
    deqjax.WarmStart("broyden"),
    deqjax.Compacted("anderson", stages=2),
]
OPTIONS = [
    *(dict(solver=solver, batch_axis=0) for solver in SOLVERS),
    dict(adjoint="phantom"),
    dict(solver="broyden", adjoint="shine"),
    dict(adjoint="unrolled"),
    dict(solver="picard", adjoint="reversible"),
    dict(adjoint_solver="gmres"),
    dict(forward_mode=True),
    dict(scale=2.0),
    dict(trace=True),
    dict(on_failure="nan"),
]


def gradient(dtype=jnp.float32, **options):
    w, x, z0 = jnp.asarray(W, dtype), jnp.ones((4, 3), dtype), jnp.zeros((4, 3), dtype)

    def loss(w):
        f = lambda z, w, x: jnp.tanh(z @ w + x)
        return deqjax.fixed_point(f, z0, w, x, **options).z.sum()

    return jax.grad(loss)(w)


OTHERS = [pytest.param(o, marks=pytest.mark.slow) for o in OPTIONS if o not in (dict(trace=True),)]
FIRST = [dict(solver="anderson", batch_axis=0), dict(adjoint_solver="gmres"), dict(trace=True)]


@pytest.mark.parametrize("options", [*FIRST, *OTHERS], ids=str)
def test_strict_promotion(options):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        assert np.isfinite(gradient(**options)).all()


@pytest.mark.parametrize("options", [dict(), dict(trace=True)], ids=str)
def test_strict_promotion_in_bfloat16(options):
    with jax.numpy_dtype_promotion("strict"):
        assert np.isfinite(np.asarray(gradient(jnp.bfloat16, **options), np.float32)).all()


def test_they_still_look_at_f():
    with jax.numpy_dtype_promotion("strict"), pytest.raises(Exception, match="promotion"):
        deqjax.fixed_point(lambda z: z * 0.5 + jnp.arange(3), jnp.zeros(3))


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(), *OTHERS], ids=str)
def test_no_tracer_leaks(options):
    with jax.checking_leaks():
        assert np.isfinite(gradient(**options)).all()
        assert np.isfinite(jax.jit(lambda: gradient(**options))()).all()


@pytest.mark.parametrize("options", [dict(), dict(trace=True, batch_axis=0)], ids=str)
def test_no_nan_is_made_on_the_way(options):
    with jax.debug_nans(True):
        assert np.isfinite(gradient(**options)).all()


@pytest.mark.slow
def test_nothing_compiled():
    with jax.disable_jit():
        found = gradient(max_steps=50)
    np.testing.assert_allclose(found, gradient(), rtol=1e-4)


@pytest.fixture
def coming_defaults():
    """What JAX is about to switch on, as far as this version has it."""
    names = [
        n for n in ("jax_custom_vjp3", "jax_custom_jvp3", "jax_remat3") if n in jax.config.values
    ]
    for name in names:
        jax.config.update(name, True)
    yield names
    for name in names:
        jax.config.update(name, False)


@pytest.mark.parametrize("options", [dict(trace=True), *OTHERS], ids=str)
def test_the_defaults_that_are_coming(options, coming_defaults):
    found = gradient(**options)
    compiled = jax.jit(lambda: gradient(**options))()
    for name in coming_defaults:
        jax.config.update(name, False)
    for value in (found, compiled):
        np.testing.assert_allclose(value, gradient(**options), rtol=1e-5, atol=1e-6)
