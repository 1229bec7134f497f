"""Unknowns of different size: one norm without `scale`, and each at its own size with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells

LARGE, TINY = 1e5, 1e-6
COSINE = 0.7390851332151607  # cos x = x


def mixed(z, a):
    """z* = (1e5, 0.739e-6 at a = 1): the second is far below rtol of the first."""
    return jnp.stack([0.5 * z[0] + 0.5 * LARGE, TINY * jnp.cos(a * z[1] / TINY)])


EXACT = np.array([LARGE, COSINE * TINY])
SIZES = jnp.array([LARGE, TINY])


def as_tree(z, a):
    z = mixed(jnp.stack([z["large"], z["tiny"]]), a)
    return {"large": z[0], "tiny": z[1]}


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_each_unknown_is_solved_at_its_own_size(solver):
    run = lambda scale: deqjax.fixed_point(
        mixed, jnp.zeros(2), 1.0, solver=cells.SMALL[solver], scale=scale, max_steps=300
    )
    with_scale = run(SIZES)
    assert bool(with_scale.stats.converged)
    np.testing.assert_allclose(with_scale.z, EXACT, rtol=1e-6)
    # In units of the scale: the residual of both together, relative to both together.
    f_z = np.asarray(mixed(with_scale.z, 1.0))
    powers = np.array([2.0**17, 2.0**-20])  # nearest to the sizes
    residual = np.linalg.norm((f_z - np.asarray(with_scale.z)) / powers)
    np.testing.assert_allclose(with_scale.stats.residual, residual, rtol=1e-3, atol=1e-13)


@pytest.mark.parametrize("forward_mode", [False, True])
def test_the_gradient_too(forward_mode):
    """x = cos(a x): dx/da = −x sin x / (1 + sin x) at a = 1. Its cotangent is 1e11 times smaller
    than the other's, in the units of z."""

    def value(a):
        sol = deqjax.fixed_point(
            mixed, jnp.zeros(2), a, scale=SIZES, forward_mode=forward_mode, max_steps=300
        )
        return sol.z[1] / TINY + sol.z[0] / LARGE

    want = -COSINE * np.sin(COSINE) / (1 + np.sin(COSINE))
    np.testing.assert_allclose(jax.grad(value)(1.0), want, rtol=1e-6)
    if forward_mode:
        np.testing.assert_allclose(jax.jvp(value, (1.0,), (1.0,))[1], want, rtol=1e-6)


@pytest.mark.parametrize("scale", [{"large": LARGE, "tiny": TINY}, "arrays"])
def test_a_pytree_of_numbers_or_of_arrays(scale):
    if scale == "arrays":
        scale = {"large": jnp.asarray(LARGE), "tiny": jnp.asarray(TINY)}
    z0 = {"large": jnp.zeros(()), "tiny": jnp.zeros(())}
    sol = jax.jit(lambda s: deqjax.fixed_point(as_tree, z0, 1.0, scale=s))(scale)
    np.testing.assert_allclose([sol.z["large"], sol.z["tiny"]], EXACT, rtol=1e-6)


def test_the_statistics_tell_which_leaf_is_worst():
    z0 = {"large": jnp.zeros(()), "tiny": jnp.zeros(())}
    sol = deqjax.fixed_point(as_tree, z0, 1.0, solver="broyden")
    # One norm over both: the large one is right, the small one is not, and that can be seen.
    assert bool(sol.stats.converged) and sol.stats.leaves.shape == (2,)
    assert float(sol.stats.leaves[0]) < 1e-8 < 1e-2 < float(sol.stats.leaves[1])
    fz = as_tree(sol.z, 1.0)
    for name, found in zip(("large", "tiny"), sol.stats.leaves, strict=True):
        want = abs(float(fz[name] - sol.z[name])) / abs(float(fz[name]))
        np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-12)


def test_leaves_of_a_batch():
    f = lambda z, x: {"a": 0.5 * z["a"] + x, "b": jnp.tanh(z["a"][:, :1])}
    x = jnp.array([[1.0, 2.0], [3.0, 4.0], [1e-3, 5.0]])
    z0 = {"a": jnp.zeros((3, 2)), "b": jnp.zeros((3, 1))}
    sol = deqjax.fixed_point(f, z0, x, batch_axis=0, solver="picard", max_steps=6)
    fz = f(sol.z, x)
    for i, name in enumerate("ab"):
        r = np.linalg.norm(fz[name] - sol.z[name], axis=1) / np.linalg.norm(fz[name], axis=1)
        np.testing.assert_allclose(sol.stats.leaves[:, i], r, rtol=1e-6)
    assert deqjax.fixed_point(jnp.cos, jnp.zeros(2)).stats.leaves is None


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_a_power_of_two_for_all_changes_no_digit(solver):
    run = lambda scale: deqjax.fixed_point(
        jnp.cos, jnp.zeros(3), solver=cells.SMALL[solver], scale=scale
    )
    plain, scaled = run(None), run(2.0**-30)
    np.testing.assert_array_equal(plain.z, scaled.z)
    assert int(plain.stats.steps) == int(scaled.stats.steps)
    np.testing.assert_array_equal(plain.stats.residual * 2.0**30, scaled.stats.residual)


@pytest.mark.slow
def test_with_compaction_and_a_warm_start():
    x = jnp.linspace(0.0, 3.0, 8)[:, None] * jnp.ones((8, 2))
    f = lambda z, x: jnp.tanh(0.9 * z + x)
    plain = deqjax.fixed_point(f, jnp.zeros_like(x), x, batch_axis=0)
    for solver in (deqjax.Compacted("anderson", stages=2), deqjax.WarmStart("anderson")):
        sol = deqjax.fixed_point(
            f, jnp.zeros_like(x), x, batch_axis=0, solver=solver, scale=jnp.array([1.0, 1e-3])
        )
        assert bool(sol.stats.converged.all())
        np.testing.assert_allclose(sol.z, plain.z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "error", "words"),
    [
        (0.0, ValueError, "positive"),
        (jnp.array([1.0, -1.0]), ValueError, "positive"),
        (jnp.ones(3), ValueError, "does not fit"),
        ({"a": 1.0}, TypeError, "pytree like z0"),
    ],
)
def test_a_wrong_scale_gets_a_sentence(scale, error, words):
    with pytest.raises(error, match=words):
        deqjax.fixed_point(jnp.cos, jnp.zeros(2), scale=scale)
