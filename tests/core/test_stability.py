"""`stability=`: whether plain iteration would keep a solution, told by products with J."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells


def solve(f, z0, *args, count=40, **options):
    given = dict(solver="newton_krylov", batch_axis=0, rtol=1e-10, stability=count) | options
    return deqjax.fixed_point(f, z0, *args, **given)


def test_an_equilibrium_that_iteration_would_leave_is_told():
    """z = tanh(a z) has one at 0, of slope a, and for a > 1 one on either side, of slope < 1."""
    a = jnp.array([[0.5], [2.0], [2.0]])
    z0 = jnp.array([[0.1], [1e-3], [1.5]])
    sol = solve(lambda z, a: jnp.tanh(a * z), z0, a, atol=1e-12)
    np.testing.assert_array_equal(sol.stats.converged, True)
    wanted = a[:, 0] * (1 - sol.z[:, 0] ** 2)
    np.testing.assert_allclose(sol.stats.stability.radius, wanted, rtol=1e-12)
    np.testing.assert_array_equal(sol.stats.stable, np.asarray(wanted) < 1)
    assert not sol.stats.stable[1] and abs(sol.z[1, 0]) < 1e-6 and sol.z[2, 0] > 0.9
    assert "2/3 stable" in str(sol)


@pytest.mark.parametrize("scale", [0.6, 0.95, 1.3])
def test_the_radius_of_matrices_is_within_its_error(scale):
    """Of any spectrum: real, complex, far from normal."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(12, 9, 9))
    a[6:] = np.triu(a[6:])  # far from normal
    radii = np.abs(np.linalg.eigvals(a)).max(axis=1)
    a = jnp.array(a * scale / radii[:, None, None])
    f = lambda z, a: jnp.einsum("bij,bj->bi", a, z) + 1.0
    found = solve(f, jnp.zeros((12, 9)), a, count=300, solver=deqjax.Anderson(memory=9)).stats
    np.testing.assert_allclose(found.stability.radius, scale, atol=0.02)
    np.testing.assert_array_equal(found.stable, scale < 1)
    short = solve(f, jnp.zeros((12, 9)), a, count=16).stats.stability
    off = np.abs(np.asarray(short.radius) - scale)
    assert np.median(np.asarray(short.error)) > 0.2 * np.median(off)


def test_samples_one_equation_pytrees_and_eager_calls_agree():
    theta, x = cells.tanh_batch()
    options = dict(solver="picard", rtol=1e-10, max_steps=500, stability=30)
    f = lambda z, theta, x: cells.tanh_cell(z, theta, x)
    both = deqjax.fixed_point(f, jnp.zeros_like(x), theta, x, batch_axis=0, **options).stats
    jitted = jax.jit(
        lambda: deqjax.fixed_point(f, jnp.zeros_like(x), theta, x, batch_axis=0, **options)
    )
    np.testing.assert_allclose(jitted().stats.stability.radius, both.stability.radius, rtol=1e-6)
    for i in range(len(x)):
        tree = lambda z, i=i: {"z": f(z["z"][None], theta, x[i : i + 1])[0]}
        one = deqjax.fixed_point(tree, {"z": jnp.zeros_like(x[i])}, **options).stats.stability
        assert one.radius.shape == () and one.stable
        np.testing.assert_allclose(one.radius, both.stability.radius[i], rtol=1e-6)


def test_few_products_do_not_see_what_grows_little_more_than_the_rest():
    """The limit that the page on certificates names: it is an estimate from below."""
    growth = jnp.full(1000, 0.99).at[0].set(1.05)
    f = lambda z: growth * z + 1.0
    found = {
        count: deqjax.fixed_point(f, jnp.zeros(1000), solver="gmres", stability=count).stats
        for count in (16, 64)
    }
    assert found[16].converged and found[64].converged
    assert found[16].stable and found[16].stability.radius < 1
    assert not found[64].stable


def test_a_sample_without_numbers_is_not_stable_and_leaves_the_others():
    a = jnp.array([[0.5], [jnp.nan], [0.3]])
    f = lambda z, a: jnp.tanh(a * z + a)
    sol = solve(f, jnp.zeros((3, 1)), a, count=8, solver="picard", on_failure="ignore")
    clean = solve(f, jnp.zeros((2, 1)), a[jnp.array([0, 2])], count=8, solver="picard")
    np.testing.assert_array_equal(sol.stats.stable, [True, False, True])
    keep = np.asarray(sol.stats.stability.radius)[[0, 2]]
    np.testing.assert_array_equal(keep, clean.stats.stability.radius)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_units_play_no_part(unit):
    f = lambda z: unit * jnp.tanh(0.7 * z / unit + 0.1)
    found = deqjax.fixed_point(f, jnp.zeros(5), stability=16, rtol=1e-8).stats.stability
    z = deqjax.fixed_point(lambda z: jnp.tanh(0.7 * z + 0.1), jnp.zeros(()), rtol=1e-10).z
    np.testing.assert_allclose(found.radius, 0.7 * (1 - z**2), rtol=1e-6)


def test_a_plain_twin():
    """The same products with J by a loop in numpy."""
    theta, x = cells.tanh_parameters(6)
    f = lambda z: cells.tanh_cell(z, theta, x)
    sol = deqjax.fixed_point(f, jnp.zeros(6), solver="picard", stability=12, rtol=1e-6)
    jacobian = np.asarray(jax.jacobian(f)(sol.z))
    unit = lambda v: v / np.linalg.norm(v)
    noise = jax.random.normal(jax.random.split(jax.random.key(0), 1)[0], (6,), sol.z.dtype)
    residual = np.asarray(f(sol.z) - sol.z)
    v = 0.5 * unit(np.asarray(noise))
    v = unit(v + unit(residual) if np.any(residual) else v)
    growth = []
    for _ in range(12):
        v = jacobian @ v
        growth.append(np.linalg.norm(v))
        v = unit(v)
    log = np.log(growth[6:])
    np.testing.assert_allclose(sol.stats.stability.radius, np.exp(log.mean()), rtol=1e-6)
    error = abs(np.exp(log[3:].mean()) - np.exp(log[:3].mean()))
    np.testing.assert_allclose(sol.stats.stability.error, error, rtol=1e-3, atol=1e-9)


def test_nothing_else_changes_and_gradients_pass():
    theta, x = cells.tanh_parameters(6)
    plain = jax.grad(lambda t: cells.tanh_loss(t, x, **cells.TIGHT))(theta)
    given = jax.grad(lambda t: cells.tanh_loss(t, x, **cells.TIGHT, stability=8))(theta)
    jax.tree.map(np.testing.assert_array_equal, plain, given)
    assert deqjax.fixed_point(jnp.cos, jnp.zeros(())).stats.stable is None


def test_in_bfloat16_and_for_a_constant_map():
    z0 = jnp.zeros((2, 3), jnp.bfloat16)
    sol = solve(lambda z: 0 * z + 1, z0, rtol=1e-2, solver="picard", count=4)
    assert sol.stats.stable.all() and sol.stats.stability.radius.dtype == jnp.float32
    np.testing.assert_array_equal(sol.stats.stability.radius < 1e-30, True)


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="stability must be an integer >= 4"):
        deqjax.fixed_point(jnp.cos, jnp.zeros(()), stability=1)
    with pytest.raises(ValueError, match="a root of g has no iteration"):
        deqjax.root_find(jnp.cos, jnp.zeros(()), stability=8)
