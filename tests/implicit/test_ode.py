"""Flows against matrix exponentials and closed forms, in double precision."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.scipy.linalg import expm

import deqjax
import deqjax.implicit
from deqjax import Status
from deqjax.implicit import ode

from . import ode_programs

# Two of the three for every run, since a program takes seconds to compile.
LONG = (*(pytest.param(a, marks=pytest.mark.slow) for a in ("recursive", "direct")), "backsolve")
A = np.array([[-0.3, 1.0], [-1.0, -0.2]])
Z0 = np.array([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]])


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def linear(t, z, a):
    return z @ a.T


# ------------------------------------------------------------------------------- exact answers


@pytest.mark.parametrize("adjoint", LONG)
def test_a_linear_flow_is_a_matrix_exponential(adjoint):
    """Values and the gradients to A, z0, t0 and t1, of samples with steps of their own."""
    a, z0 = jnp.asarray(A), jnp.asarray(Z0)
    options = dict(adjoint=adjoint, batch_axis=0, rtol=1e-10, max_steps=128)

    def loss(a, z, t0, t1):
        sol = ode(linear, z, a, t0=t0, t1=t1, **options)
        return jnp.sin(sol.z).sum(), sol

    exact = lambda a, z, t0, t1: jnp.sin(z @ expm((t1 - t0) * a).T).sum()
    given = (a, z0, 0.5, 2.0)
    (_, sol), got = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(*given)
    np.testing.assert_allclose(sol.z, z0 @ expm(1.5 * a).T, atol=1e-9)
    for x, y in zip(got, jax.grad(exact, (0, 1, 2, 3))(*given), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-8)
    assert sol.stats.converged.all() and (sol.stats.rel_residual == 0).all()
    assert (sol.stats.steps > 5).all()
    if adjoint == "backsolve":
        assert (sol.stats.reconstruction < 1e-8).all() and (sol.stats.reconstruction > 0).all()
    else:
        assert sol.stats.reconstruction is None


@pytest.mark.slow
def test_time_arguments_and_closures_against_differences():
    """dz/dt = c·cos(t)·tanh(wz) + x[k], with a batch in x alone, an integer k and a closure c."""
    rng = np.random.default_rng(0)
    w, x, z0 = (jnp.asarray(rng.normal(size=s)) for s in ((2, 2), (3, 2, 2), (3, 2)))
    k = jnp.int32(1)

    def loss(c, w, x, z0):
        f = lambda t, z, w, x, k: c * jnp.cos(t) * jnp.tanh(z @ w) + x[:, k]
        axes = (None, 0, None)
        sol = ode(f, z0, w, x, k, t1=-1.0, rtol=1e-9, max_steps=64, batch_axis=0, args_axes=axes)
        return (sol.z**2).sum()

    point = (0.7, w, x, z0)
    value = jax.jit(loss)
    got = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*point)
    for _ in range(2):
        step = [jnp.asarray(rng.normal(size=np.shape(p))) for p in point]
        ahead = [p + 1e-5 * d for p, d in zip(point, step, strict=True)]
        behind = [p - 1e-5 * d for p, d in zip(point, step, strict=True)]
        slope = (value(*ahead) - value(*behind)) / 2e-5
        want = sum(jnp.vdot(g, d) for g, d in zip(got, step, strict=True))
        np.testing.assert_allclose(slope, want, rtol=1e-6)
    assert not jnp.any(got[2][:, 0]) and jnp.all(got[2][:, 1] != 0)


def test_equal_steps_are_a_power():
    """Euler on dz/dt = az: (1 + a/n)ⁿ, and its exact derivative."""
    n, a = 10, -0.7

    def end(a):
        sol = ode(lambda t, z: a * z, jnp.ones(()), solver="euler", steps=n)
        return sol.z, sol.stats

    (z, stats), slope = (
        jax.value_and_grad(end, has_aux=True)(a)[0],
        jax.grad(lambda a: end(a)[0])(a),
    )
    np.testing.assert_allclose(z, (1 + a / n) ** n, rtol=1e-14)
    np.testing.assert_allclose(slope, (1 + a / n) ** (n - 1), rtol=1e-14)
    assert stats.steps == n and stats.converged


# ------------------------------------------------------------------------------- backsolve


@pytest.mark.slow
def test_backsolve_is_wrong_where_the_flow_contracts():
    """Rates 0.1 and 6 to t = 12: the slow one is felt at the end, the fast one grows backwards by
    e^72. z̃0 is lost, and with it a gradient that depends on z."""
    rates = jnp.array([0.1, 6.0])

    def loss(rates, adjoint, t1):
        f = lambda t, z, r: -r * z + 0.1 * jnp.sin(z.sum()) * jnp.array([1.0, 0.0])
        sol = ode(f, jnp.array([1.0, 2.0]), rates, t1=t1, adjoint=adjoint, max_steps=512)
        return sol.z.sum(), sol.stats

    grad = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    exact, stats = grad(rates, "recursive", 12.0)
    assert stats.converged and jnp.abs(exact[0]) > 0.1
    wrong, stats = grad(rates, "backsolve", 12.0)
    assert stats.converged  # forward, nothing is wrong
    assert stats.reconstruction > 1
    assert jnp.linalg.norm(wrong - exact) > 0.05 * jnp.linalg.norm(exact)
    # Over a short time the same program is right, and says that too.
    right, stats = grad(rates, "backsolve", 0.5)
    exact, _ = grad(rates, "recursive", 0.5)
    assert stats.reconstruction < 1e-5
    np.testing.assert_allclose(right, exact, rtol=1e-5)


@pytest.mark.slow
def test_a_backward_solve_that_does_not_arrive_is_heard():
    """Euler backwards doubles z at every step, beyond what a number can be."""
    f = lambda t, z, w: jnp.tanh(w * z + 1) - z
    options = dict(t1=2000.0, steps=2000, solver="euler", adjoint="backsolve")
    run = lambda w: ode(f, jnp.zeros(1), w, **options).z.sum()
    sol = ode(f, jnp.zeros(1), 0.5, **options)
    assert sol.stats.converged and jnp.isinf(sol.stats.reconstruction)
    assert jax.grad(run)(0.5) == 0
    with (
        deqjax.checking_solves("raise"),
        pytest.raises(deqjax.SolveError, match=r"adjoint solve .* failed .nonfinite"),
    ):
        jax.grad(run)(0.5)


# ------------------------------------------------------------------------------- failures


@pytest.mark.parametrize("adjoint", LONG)
def test_a_sample_that_fails_has_its_own_ending_and_no_gradient(adjoint):
    """Good, escapes at t = 1/2, NaN, starts where f has no value, good."""
    z0 = jnp.array([0.5, 2.0, jnp.nan, -1.0, 0.25])[:, None]
    f = lambda t, z, c: c * jnp.where(z < 0, jnp.nan, z**2)

    def loss(z0, c):
        sol = ode(f, z0, c, batch_axis=0, rtol=1e-6, max_steps=1024, adjoint=adjoint)
        return jnp.where(jnp.isnan(sol.z), 0, sol.z).sum(), sol

    program = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    (of_z, of_c), sol = program(z0, 1.0)
    C, N, U = Status.CONVERGED, Status.NONFINITE, Status.UNBOUNDED
    np.testing.assert_array_equal(sol.stats.status, [C, U, N, N, C])
    good = np.array([0, 4])
    exact = 1 / (1 / z0[good, 0] - 1)
    np.testing.assert_allclose(sol.z[good, 0], exact, rtol=1e-4)
    assert jnp.isfinite(sol.z[1]).all() and sol.z[1, 0] > 1e3
    np.testing.assert_allclose(sol.stats.rel_residual, [0, 0.5, 1, 1, 0], atol=1e-3)
    assert not of_z[1:4].any()
    np.testing.assert_allclose(of_c, (exact**2).sum(), rtol=1e-4)
    np.testing.assert_allclose(of_z[good, 0], (exact / z0[good, 0]) ** 2, rtol=1e-4)
    # Neighbours that fail change no bit.
    calm = jnp.where(jnp.isin(jnp.arange(5), good)[:, None], z0, 0.1)
    (alone, _), also = program(calm, 1.0)
    np.testing.assert_array_equal(also.z[good], sol.z[good])
    np.testing.assert_array_equal(alone[good], of_z[good])
    np.testing.assert_array_equal(also.stats.steps[good], sol.stats.steps[good])


def test_steps_that_run_out_and_what_is_done_about_it():
    run = partial(ode, lambda t, z: -1e3 * z, jnp.ones(2), max_steps=16)
    sol = run()
    assert sol.stats.status == Status.MAX_STEPS and sol.stats.steps == 16
    assert 0 < sol.stats.rel_residual < 1 and jnp.all(sol.z < 1)
    np.testing.assert_allclose(sol.z, jnp.exp(-1e3 * (1 - sol.stats.rel_residual)), rtol=1e-5)
    assert jnp.isnan(run(on_failure="nan").z).all()
    with pytest.raises(deqjax.SolveError, match=r"forward solve .* failed .max_steps"):
        run(on_failure="raise")


def test_equal_steps_end_at_the_last_number():
    f = lambda t, z: jnp.where(t > 0.45, jnp.nan, 1.0) * jnp.ones_like(z)
    sol = ode(f, jnp.zeros(2), solver="heun", steps=8)
    assert sol.stats.status == Status.NONFINITE
    np.testing.assert_allclose(sol.z, 0.375, rtol=1e-14)
    np.testing.assert_allclose(sol.stats.residual, 0.625, rtol=1e-14)


# ------------------------------------------------------------------------------- contract


@pytest.mark.parametrize("options", [{}, dict(solver="heun", steps=5)], ids=["chosen", "equal"])
def test_evaluations_are_counted(options):
    calls = []

    def f(t, z):
        jax.debug.callback(lambda: calls.append(None))
        return jnp.cos(t) - z

    sol = jax.jit(lambda: ode(f, jnp.ones(2), rtol=1e-4, **options))()
    jax.effects_barrier()
    # diffrax drops callbacks where it chooses the first step, by two evaluations.
    seen = len(calls) + (0 if "steps" in options else 2)
    assert seen == sol.stats.f_evals > sol.stats.steps > 0


def test_no_unit_matters():
    small, large = (ode(linear, s * Z0[0], A, rtol=1e-6) for s in (1.0, 2.0**40))
    np.testing.assert_array_equal(small.z * 2.0**40, large.z)
    assert small.stats.steps == large.stats.steps


@pytest.mark.slow
def test_vmap_is_a_batch():
    """Samples along the last axis, of a state of two leaves."""
    f = lambda t, z, r: dict(a=-r * z["b"], b=z["a"])
    z0 = dict(a=jnp.ones((2, 3)), b=jnp.linspace(0.0, 1.0, 6).reshape(2, 3))
    r = jnp.array([[1.0, 2.0, 3.0]])
    options = dict(rtol=1e-6, max_steps=64)
    solved = jax.jit(lambda z, r: ode(f, z, r, batch_axis=-1, args_axes=(1,), **options))(z0, r)
    mapped = jax.jit(jax.vmap(lambda z, r: ode(f, z, r, **options), in_axes=(-1, -1), out_axes=-1))(
        z0, r
    )
    for x, y in zip(jax.tree.leaves(solved.z), jax.tree.leaves(mapped.z), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)
    np.testing.assert_array_equal(solved.stats.steps, mapped.stats.steps)
    assert len(set(solved.stats.steps.tolist())) > 1
    turn = jnp.sqrt(r[0])
    np.testing.assert_allclose(
        solved.z["b"], z0["b"] * jnp.cos(turn) + jnp.sin(turn) / turn, rtol=1e-5
    )


@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
def test_dtypes_are_kept_and_arithmetic_is_wide(dtype):
    rate = jnp.ones((), dtype)
    run = lambda z, r: (
        ode(lambda t, z, r: (-r * z).astype(z.dtype), z, r, solver="heun", steps=40).z
    )
    z, pull = jax.vjp(run, jnp.ones(2, dtype), rate)
    assert z.dtype == dtype and {x.dtype for x in pull(z)} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(np.asarray(z, float), np.exp(-1), rtol=1e-2)


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    axis=st.integers(-3, 2),
    span=st.sampled_from([0.0, 1.0, -2.0]),
)
def test_any_shape_and_axis(shape, axis, span):
    if not -len(shape) <= axis < len(shape):
        axis = None
    z0 = jnp.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
    sol = ode(lambda t, z: -z, z0, t1=span, solver="euler", steps=2, batch_axis=axis)
    np.testing.assert_allclose(sol.z, z0 * (1 - span / 2) ** 2, rtol=1e-14)
    assert sol.stats.status.shape == (() if axis is None else (shape[axis],))


@pytest.mark.slow
def test_on_four_devices(on_devices):
    on_devices(4, ode_programs.__file__, "flow_direct a_closure_is_refused")


@pytest.mark.slow
def test_other_adjoints_on_four_devices(on_devices):
    on_devices(4, ode_programs.__file__, "flow_recursive flow_backsolve")


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("wrong", "kind", "says"),
    [
        (dict(solver="tsit"), ValueError, "did you mean 'tsit5'"),
        (dict(solver=3), TypeError, "diffrax.Tsit5"),
        (dict(solver="euler"), ValueError, "give steps="),
        (dict(adjoint="recursiv"), ValueError, "did you mean 'recursive'"),
        (dict(rtol=-1.0), ValueError, "rtol must be"),
        (dict(rtol=0), ValueError, "rtol=0"),
        (dict(max_steps=0), ValueError, "max_steps"),
        (dict(steps=2.5), TypeError, "steps must be an integer"),
        (dict(stepz=2), TypeError, "did you mean 'steps'"),
        (dict(t1=[1.0, 2.0]), ValueError, "t1 must be a scalar"),
        (dict(t1="late"), TypeError, "t1 must be a number"),
        (dict(args_axes=(0,)), ValueError, "give batch_axis="),
        (dict(batch_axis=3), ValueError, "batch_axis=3 does not exist"),
        (dict(batch_axis=0, args_axes=(0, 0)), ValueError, "args_axes"),
        (dict(on_failure="stop"), ValueError, "on_failure"),
    ],
)
def test_options_are_checked(wrong, kind, says):
    with pytest.raises(kind, match=says):
        ode(linear, Z0, A, **wrong)


def test_fields_and_states_are_checked():
    with pytest.raises(TypeError, match="floating point"):
        ode(linear, jnp.arange(3), A)
    with pytest.raises(TypeError, match="complex"):
        ode(linear, jnp.ones(2, complex), A)
    with pytest.raises(ValueError, match="keep the shape"):
        ode(lambda t, z: z.sum(), Z0)
    with pytest.raises(ValueError, match="keep the shape") as caught:
        ode(lambda t, z, x: z + x, Z0, Z0, batch_axis=0)
    assert "args_axes" in "".join(caught.value.__notes__)
    with pytest.raises(TypeError) as caught:
        ode(lambda z: -z, Z0)
    assert "f(t, z, *args)" in "".join(caught.value.__notes__)


def test_diffrax_is_asked_for_in_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    for name in ("_flow", "_equal_steps"):
        monkeypatch.delitem(sys.modules, f"deqjax.implicit.{name}", raising=False)
        monkeypatch.delattr(deqjax.implicit, name, raising=False)
    with pytest.raises(ImportError, match=r"pip install 'deqjax\[ode\]'"):
        ode(linear, Z0, A)
