"""What every solver promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax.solvers.base import Cell
from tests import cells


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_reaches_the_dense_solution(solver):
    theta, x = cells.tanh_parameters(8, radius=0.9)
    sol = cells.solve(cells.tanh_cell, np.zeros(8), theta, x, solver=solver, **cells.TIGHT)
    assert bool(sol.stats.converged)
    assert cells.relative(sol.z, cells.tanh_solution(theta, x)) < 1e-10


@pytest.mark.parametrize("solver", ["anderson"])
def test_root_find_is_the_fixed_point_of_z_plus_g(solver):
    theta, x = cells.tanh_parameters(8)
    sol = jax.jit(
        lambda x: deqjax.root_find(
            lambda z, theta, x: cells.tanh_cell(z, theta, x) - z,
            jnp.zeros(8),
            theta,
            x,
            solver=solver,
            **cells.TIGHT,
        )
    )(x)
    assert bool(sol.stats.converged)
    assert cells.relative(sol.z, cells.tanh_solution(theta, x)) < 1e-10


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("jit", [False, True])
def test_a_move_reports_the_step_that_rounding_left(dtype, jit):
    """z⁺ − z to the last bit, although z⁺ = z + s is rounded: secant pairs are made of it."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(3, 50)), dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    step = jnp.asarray(1e-3 * rng.normal(size=(3, 50)), wide)
    going = jnp.array([True, False, True])
    cell = Cell(lambda z: 2 * z, frozen=(z, going))
    move = jax.jit(cell.moved) if jit else cell.moved
    taken, point = move(z, step)
    np.testing.assert_array_equal(taken, point.z.astype(wide) - z.astype(wide))
    np.testing.assert_array_equal(point.z[1], z[1])
    moved = (z.astype(wide) + step).astype(dtype)
    np.testing.assert_array_equal(point.z[::2], moved[::2])
    np.testing.assert_array_equal(point.fz, 2 * point.z)


def state_bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_the_state_does_not_depend_on_max_steps(solver):
    """So that memory is flat, and a solve can be resumed with another budget."""
    theta, x = cells.tanh_parameters(6)

    def size(**options):
        shapes = jax.eval_shape(
            lambda: deqjax.fixed_point(
                cells.tanh_cell, jnp.zeros(6), theta, x, solver=solver, **options
            )
        )
        return state_bytes(shapes.state)

    assert size(max_steps=1000) == size(max_steps=50) == size(max_steps=2)
    assert size() == size(max_steps=1000)  # and the default is bounded too


@pytest.mark.parametrize("make", [deqjax.Anderson, deqjax.Broyden])
def test_history_in_bfloat16_is_half_and_still_converges(make):
    theta, x = (jax.tree.map(np.float32, p) for p in cells.tanh_parameters(12, radius=0.95))
    small, full = (
        cells.solve(
            cells.tanh_cell, np.zeros(12, np.float32), theta, x, solver=s, rtol=1e-3, trace=True
        )
        for s in (make(memory=4, history_dtype="bfloat16"), make(memory=4))
    )
    histories = [
        [x for x in jax.tree.leaves(sol.state.solver_state) if x.shape[-1] == 12]
        for sol in (small, full)
    ]
    assert state_bytes(histories[0]) * 2 == state_bytes(histories[1]) == 2 * 4 * 12 * 4
    assert small.z.dtype == jnp.float32 and bool(small.stats.converged)
    picard = cells.solve(
        cells.tanh_cell, np.zeros(12, np.float32), theta, x, solver="picard", rtol=1e-3
    )
    assert int(small.stats.steps) < int(picard.stats.steps)
    assert (
        cells.relative(small.z, cells.tanh_solution(*cells.tanh_parameters(12, radius=0.95))) < 2e-2
    )


@pytest.mark.parametrize("make", [deqjax.Anderson, deqjax.Broyden])
def test_memory_larger_than_max_steps(make):
    theta, x = cells.tanh_parameters(6, radius=0.9)
    options = dict(rtol=0.0, atol=0.0, max_steps=4, trace=True)
    huge, enough = (
        cells.solve(cells.tanh_cell, np.zeros(6), theta, x, solver=make(memory=m), **options)
        for m in (50, 4)
    )
    np.testing.assert_allclose(huge.stats.trace, enough.stats.trace, rtol=1e-9)


def test_memory_matters():
    """A longer history is really used."""
    a, b, _ = cells.linear(np.linspace(-0.9, 0.99, 10))
    for make in (deqjax.Anderson, deqjax.Broyden):
        short, long = (
            cells.solve(
                cells.linear_cell,
                np.zeros(10),
                a,
                b,
                solver=make(memory=m),
                rtol=1e-9,
                max_steps=400,
            )
            for m in (1, 6)
        )
        assert bool(long.stats.converged)
        assert int(long.stats.steps) < 0.7 * int(short.stats.steps)


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_scale_of_the_state_leaves_the_steps_unchanged(solver):
    theta, x = cells.tanh_parameters(8, radius=0.95)

    @jax.jit
    def scaled(scale):
        return deqjax.fixed_point(
            lambda z: scale * cells.tanh_cell(z / scale, theta, x),
            jnp.zeros(8),
            solver=solver,
            rtol=1e-9,
            atol=0.0,
        )

    plain = scaled(1.0)
    for scale in (1e-3, 1e3, 2.0**-60, 2.0**60):
        other = scaled(scale)
        assert bool(other.stats.converged)
        assert int(other.stats.steps) == int(plain.stats.steps)
        assert cells.relative(other.z / scale, plain.z) < 1e-8


@pytest.mark.parametrize("solver", cells.SOLVERS)
def test_leaves_of_a_pytree_are_one_vector(solver):
    theta, x = cells.tanh_parameters(9, radius=0.95)
    options = dict(solver=cells.SMALL[solver], rtol=1e-10, atol=0.0, max_steps=300, trace=True)
    flat = cells.solve(cells.tanh_cell, np.zeros(9), theta, x, **options)
    tree = cells.solve(
        cells.on_pytrees(cells.tanh_cell), cells.split(np.zeros(9)), theta, x, **options
    )
    assert jax.tree.structure(tree.z) == jax.tree.structure(cells.split(np.zeros(9)))
    assert int(tree.stats.steps) == int(flat.stats.steps)
    assert cells.relative(tree.z, cells.split(np.asarray(flat.z))) < 1e-10
    k = int(flat.stats.steps)
    # Sums in another order differ by round-off, which a quasi-Newton method amplifies.
    np.testing.assert_allclose(tree.stats.trace[:k], flat.stats.trace[:k], rtol=1e-3)


@functools.cache
def h_equation_reference(n=100):
    f = cells.chandrasekhar(n=n)
    h = np.ones(n)
    for _ in range(2000):
        h = f(h)
    return h


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_chandrasekhar_h_equation_in_14_evaluations(solver, scale):
    f = cells.chandrasekhar()
    sol = cells.solve(
        lambda h: scale * f(h / scale),
        scale * np.ones(100),
        solver=solver,
        rtol=1e-8,
        atol=0.0,
    )
    assert bool(sol.stats.converged) and int(sol.stats.f_evals) <= 14
    assert cells.relative(sol.z / scale, h_equation_reference()) < 1e-6


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_resume_continues_with_the_history(solver):
    """Twelve steps, then four more with the state, are the sixteen steps in one go."""
    theta, x = cells.tanh_parameters(10, radius=0.97, seed=3)
    call = functools.partial(
        deqjax.fixed_point,
        cells.tanh_cell,
        solver=cells.SMALL[solver],
        rtol=0.0,
        atol=0.0,
        trace=True,
    )
    whole = jax.jit(lambda x: call(jnp.zeros(10), theta, x, max_steps=16))(x)
    k = 12
    first = jax.jit(lambda x: call(jnp.zeros(10), theta, x, max_steps=k))(x)
    # z of the best iterate is where the history ends only if the last step was the best.
    assert float(first.stats.residual) == float(first.stats.trace[k])

    rest = jax.jit(lambda x, first: call(first.z, theta, x, max_steps=4, resume=first.state))
    warm = rest(x, first)
    np.testing.assert_allclose(warm.stats.trace, whole.stats.trace[k:], rtol=1e-4)
    cold = jax.jit(lambda x, z: call(z, theta, x, max_steps=4))(x, first.z)
    assert float(warm.stats.residual) < 0.5 * float(cold.stats.residual)
    assert int(warm.state.age) == 16


@pytest.mark.parametrize("history_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("make", [deqjax.Anderson, deqjax.Broyden])
def test_resume_after_a_solve_that_met_a_nan(make, history_dtype):
    """What a sample learned before f returned NaN is kept, and nothing of the NaN."""
    theta, x = cells.tanh_parameters(6, radius=0.9)

    def f(z, x, most):
        y = jax.vmap(lambda z, x: cells.tanh_cell(z, theta, x))(z, x)
        return jnp.where(jnp.linalg.norm(z, axis=-1, keepdims=True) > most, jnp.nan, y)

    call = functools.partial(
        deqjax.fixed_point,
        f,
        jnp.zeros((3, 6)),
        np.stack([x, 1.1 * x, 1.2 * x]),
        solver=make(memory=3, history_dtype=history_dtype),
        rtol=1e-5,
        batch_axis=0,
    )
    never = jnp.full((3, 1), jnp.inf)
    size = float(jnp.linalg.norm(call(never).z[1]))
    failed = call(never.at[1].set(0.99 * size))
    assert failed.stats.status[1] == deqjax.Status.NONFINITE
    assert int(failed.stats.steps[1]) > 1
    again = call(never, resume=failed.state)
    assert bool(again.stats.converged.all())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(again.state))


def test_solvers_are_static_pytrees():
    for solver in (deqjax.Picard(), deqjax.Anderson(memory=3), deqjax.Broyden(memory=2)):
        assert jax.tree.leaves(solver) == []
        assert jax.tree.map(lambda x: x, solver) == solver
        assert hash(solver) == hash(type(solver)(**vars(solver)))
