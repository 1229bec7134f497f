"""Solver objects of jaxopt and optimistix, run in this library's loop."""

import collections
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import deqjax
from deqjax import Status
from tests import cells

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # jaxopt warns on import that it is not maintained
    jaxopt = pytest.importorskip("jaxopt")

THETA, X = cells.tanh_parameters()
Z_STAR = cells.tanh_solution(THETA, X)


def unused(z):
    raise AssertionError("the function that a jaxopt object was made with is not called")


def broyden(**options):
    return jaxopt.Broyden(unused, **options)


JAXOPT = {
    "anderson": functools.partial(jaxopt.AndersonAcceleration, unused),
    "broyden": broyden,
    "broyden-fixed-step": functools.partial(broyden, stepsize=1.0),
    "picard": functools.partial(jaxopt.FixedPointIteration, unused),
}
each_jaxopt = pytest.mark.parametrize("make", JAXOPT.values(), ids=JAXOPT)


def solve(solver, theta=THETA, x=X, z0=None, cell=cells.tanh_cell, **options):
    z0 = jnp.zeros(X.size) if z0 is None else z0
    return deqjax.fixed_point(cell, z0, theta, x, solver=solver, **options)


def status(sol):
    return Status(int(sol.stats.status))


class Counted:
    """The tanh cell, counting its executions."""

    def __init__(self):
        self.calls = 0

    def __call__(self, z, theta, x):
        jax.debug.callback(self._bump)
        return cells.tanh_cell(z, theta, x)

    def _bump(self):
        self.calls += 1

    def solve(self, solver, **options):
        jax.effects_barrier()
        self.calls = 0
        sol = solve(solver, cell=self, **options)
        jax.block_until_ready(sol)
        jax.effects_barrier()
        return sol


def check_gradient(solver, tolerance=1e-9):
    """Value, implicit gradient with the adjoint solved by the same object, and jit of both."""

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def gradient(theta, x, probe):
        sol = solve(solver, theta, x, adjoint_probe=probe, **cells.TIGHT)
        return cells.loss_of(sol.z), sol

    (*got, adjoint), sol = gradient(THETA, X, deqjax.adjoint_probe(dtype=jnp.float64))
    assert status(sol) is Status.CONVERGED
    assert cells.relative(sol.z, Z_STAR) < 1e-11
    assert int(adjoint.status) == Status.CONVERGED and int(adjoint.steps) > 0
    assert (
        cells.relative(got, cells.tanh_gradient(THETA, Z_STAR, cells.cotangent_of(Z_STAR)))
        < tolerance
    )


# ---------------------------------------------------------------------------------- jaxopt


@each_jaxopt
def test_value_and_gradient_under_jit(make):
    check_gradient(make())


@each_jaxopt
def test_every_evaluation_is_counted(make):
    cell = Counted()
    sol = cell.solve(make(), trace=True)
    assert int(sol.stats.f_evals) == cell.calls
    steps = int(sol.stats.steps)
    np.testing.assert_array_equal(np.isfinite(sol.stats.trace).sum(), steps + 1)
    if make is not broyden:  # whose line search takes more
        assert cell.calls == steps + 1


@pytest.mark.parametrize("condition", ["armijo", "wolfe"])
def test_line_search_is_counted(condition):
    """From a bad start on a cell that overshoots, so that steps are cut."""
    cell = Counted()
    rng = np.random.default_rng(0)
    theta = {"w": 2.5 * rng.normal(size=(6, 6)), "b": THETA["b"]}
    sol = cell.solve(broyden(condition=condition), theta=theta, z0=jnp.full(6, 3.0), max_steps=8)
    assert int(sol.stats.f_evals) == cell.calls > 2 * int(sol.stats.steps)


def test_anderson_takes_the_steps_that_jaxopt_takes():
    options = dict(history_size=3, mixing_frequency=2, beta=0.7, ridge=1e-12)
    a, b, _ = cells.linear([0.9, 0.3, -0.5, 0.6])
    theirs = jaxopt.AndersonAcceleration(lambda z: cells.linear_cell(z, a, b), **options)
    z = jnp.zeros(4)
    state = theirs.init_state(z)
    for _ in range(9):
        z, state = theirs.update(z, state)
    # jaxopt's ninth value is f of our eighth iterate: its first update only evaluates f(z₀).
    ours = solve(
        jaxopt.AndersonAcceleration(unused, **options),
        *(a, b, jnp.zeros(4), cells.linear_cell),
        **dict(max_steps=8, rtol=0.0, atol=0.0, trace=True),
    )
    np.testing.assert_allclose(ours.stats.trace[-1], state.error, rtol=1e-9)


def test_broyden_steps_to_f_first_and_treats_a_pytree_as_one_vector():
    """jaxopt's own sign would step to 2 z − f(z), and its algebra is per leaf."""
    sol = solve(broyden(), max_steps=1, trace=True)
    first = cells.tanh_cell(jnp.zeros(6), THETA, X)
    want = jnp.linalg.norm(cells.tanh_cell(first, THETA, X) - first)
    np.testing.assert_allclose(sol.stats.trace[1], want)
    tree = solve(
        broyden(), z0=cells.split(jnp.zeros(6)), cell=cells.on_pytrees(cells.tanh_cell), trace=True
    )
    whole = solve(broyden(), trace=True)
    np.testing.assert_allclose(tree.stats.trace, whole.stats.trace, rtol=1e-6)
    assert cells.relative(tree.z, cells.split(Z_STAR)) < 1e-7


@each_jaxopt
def test_no_solution_is_reported(make):
    """f(z) − z = 1 + z²: jaxopt itself returns without a word."""
    sol = deqjax.fixed_point(lambda z: z + 1 + z**2, jnp.full(3, 0.3), solver=make())
    assert status(sol) in (Status.MAX_STEPS, Status.DIVERGED, Status.NONFINITE)
    assert jnp.all(jnp.isfinite(sol.z)) and sol.stats.residual >= 1.0


def test_divergence_and_nonfinite_values_are_reported():
    picard = JAXOPT["picard"]()
    sol = deqjax.fixed_point(lambda z: 2 * z + 1, jnp.ones(3), solver=picard)
    assert status(sol) is Status.DIVERGED
    np.testing.assert_array_equal(sol.z, 1.0)
    sol = deqjax.fixed_point(
        lambda z: jnp.where(z > 1.5, jnp.nan, z + 0.4), jnp.zeros(3), solver=picard
    )
    assert status(sol) is Status.NONFINITE and jnp.all(jnp.isfinite(sol.z))


def test_a_converged_status_means_the_true_residual():
    """jaxopt's default tolerance is absolute, 1e-3 for Broyden: here it would stop at once."""

    def small(z, theta, x):
        return 1e-4 * cells.tanh_cell(1e4 * z, theta, x)

    sol = solve(broyden(), cell=small)
    assert status(sol) is Status.CONVERGED
    assert cells.relative(sol.z, 1e-4 * Z_STAR) < 1e-7


@each_jaxopt
def test_small_budgets(make):
    for steps in (0, 1, 2) if make is broyden else (1, 2):
        sol = solve(make(), max_steps=steps)
        assert status(sol) is Status.MAX_STEPS and int(sol.stats.steps) == steps


def test_what_was_set_on_the_object_counts_and_keywords_replace_it():
    loose = solve(jaxopt.AndersonAcceleration(unused, tol=1e-2, ridge=1e-10))
    assert 1e-6 < loose.stats.residual < 1e-2
    tight = solve(jaxopt.AndersonAcceleration(unused, tol=1e-11, ridge=1e-16))
    assert tight.stats.residual < 1e-11 < loose.stats.residual
    again = solve(jaxopt.AndersonAcceleration(unused, tol=1e-11, ridge=1e-16), rtol=1e-3)
    assert 1e-8 < again.stats.rel_residual < 1e-3
    few = jaxopt.FixedPointIteration(unused, maxiter=3)
    assert int(solve(few).stats.steps) == 3
    assert int(solve(few, max_steps=5).stats.steps) == 5
    # jaxopt's own default, tol=1e-5 absolute, neither stops early nor late.
    assert solve(JAXOPT["picard"]()).stats.rel_residual < 1e-8


def test_no_more_history_than_steps():
    """jaxopt's default history is maxiter = 500 vectors, twice."""
    sizes = [x.size for x in jax.tree.leaves(solve(broyden(), max_steps=7).state)]
    assert max(sizes) == 7 * X.size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [JAXOPT["anderson"], broyden], ids=["anderson", "broyden"])
def test_narrow_states_keep_their_dtype(make, dtype):
    """In double precision mode, where jaxopt's Anderson alone does not even trace."""
    theta, x = jax.tree.map(lambda a: jnp.asarray(a, dtype), (THETA, X))
    sol = solve(make(), theta, x, jnp.zeros(6, dtype))
    assert sol.z.dtype == dtype and status(sol) is Status.CONVERGED
    assert cells.relative(sol.z.astype(float), Z_STAR) < {"float32": 1e-4, "bfloat16": 3e-2}[dtype]


def test_pytrees_of_mixed_dtypes():
    def cell(z, theta, x):
        new = cells.tanh_cell(jnp.concatenate([z["a"], z["b"].astype(float)]), theta, x)
        return {"a": new[:4], "b": new[4:].astype(jnp.float32)}

    z0 = {"a": jnp.zeros(4), "b": jnp.zeros(2, jnp.float32)}
    sol = solve(broyden(), z0=z0, cell=cell)
    assert status(sol) is Status.CONVERGED
    assert cells.relative(sol.z, {"a": Z_STAR[:4], "b": Z_STAR[4:]}) < 1e-4


def test_an_explicitly_sharded_state_is_refused():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((4, 3)), NamedSharding(mesh, PartitionSpec("data")))
        with pytest.raises(ValueError, match="explicitly sharded"):
            deqjax.fixed_point(lambda z: 0.5 * z + x, x, solver=JAXOPT["picard"]())


def test_vmap_is_the_way_to_batches():
    xs = np.stack([X, 2 * X, -X])
    sol = jax.vmap(lambda x: solve(broyden(), x=x))(xs)
    assert np.all(sol.stats.converged)
    assert cells.relative(sol.z, cells.tanh_solution(THETA, xs)) < 1e-7
    with pytest.raises(ValueError, match=r"solves one equation .*use jax\.vmap"):
        solve(broyden(), z0=jnp.zeros((3, 6)), x=xs, batch_axis=0)
    one = solve(broyden(), z0=jnp.zeros((1, 6)), x=X[None], batch_axis=0)
    assert one.stats.status.shape == (1,) and cells.relative(one.z, Z_STAR[None]) < 1e-7


def test_complex_states_are_refused():
    with pytest.raises(TypeError, match="real and imaginary"):
        deqjax.fixed_point(lambda z: 0.5 * z, jnp.ones(2, complex), solver=broyden())


@each_jaxopt
def test_resume(make):
    first = solve(make())
    again = solve(make(), x=1.01 * X, z0=first.z, resume=first.state)
    assert status(again) is Status.CONVERGED
    assert cells.relative(again.z, cells.tanh_solution(THETA, 1.01 * X)) < 1e-7


def test_resume_keeps_broydens_inverse_jacobian():
    cell = cells.chandrasekhar()
    options = dict(solver=broyden(stepsize=1.0), rtol=1e-8)
    first = deqjax.fixed_point(cell, jnp.ones(100), **options)
    near = lambda h: cell(h) + 1e-3
    cold = deqjax.fixed_point(near, first.z, **options)
    warm = deqjax.fixed_point(near, first.z, resume=first.state, **options)
    assert warm.stats.converged and int(warm.stats.steps) < int(cold.stats.steps)


def test_resume_after_a_solve_that_met_a_nan():
    cell = cells.chandrasekhar()
    options = dict(solver=broyden(stepsize=1.0), rtol=1e-8)
    size = float(jnp.linalg.norm(deqjax.fixed_point(cell, jnp.ones(100), **options).z))
    broken = lambda h: jnp.where(jnp.linalg.norm(h) > 0.99 * size, jnp.nan, cell(h))
    failed = deqjax.fixed_point(broken, jnp.ones(100), **options)
    assert status(failed) is Status.NONFINITE and int(failed.stats.steps) > 1
    again = deqjax.fixed_point(cell, jnp.ones(100), resume=failed.state, **options)
    assert status(again) is Status.CONVERGED


def test_unrolled():
    want = cells.tanh_gradient(THETA, Z_STAR, cells.cotangent_of(Z_STAR))[0]

    def gradient(solver):
        options = dict(adjoint="unrolled", max_steps=40, rtol=0.0, atol=0.0)
        return jax.grad(lambda theta: cells.loss_of(solve(solver, theta, **options).z))(THETA)

    assert cells.relative(gradient(JAXOPT["picard"]()), want) < 1e-9
    with pytest.raises(ValueError, match=r"'jaxopt\.Broyden'"):
        gradient(broyden())


def test_one_object_compiles_once():
    traces = collections.Counter()

    @functools.partial(jax.jit, static_argnums=0)
    def run(solver, x):
        traces["run"] += 1
        return solve(solver, x=x).z

    ours = deqjax.solvers.as_solver(broyden())
    same = deqjax.solvers.as_solver(ours.solver)
    assert ours == same and hash(ours) == hash(same)
    assert ours != deqjax.solvers.as_solver(broyden()) and ours != ours.with_options(rtol=0.1)
    run(ours, X), run(same, 2 * X)
    assert traces["run"] == 1


def test_as_adjoint_solver():
    value = lambda x: cells.loss_of(
        solve("anderson", x=x, adjoint_solver=broyden(), **cells.TIGHT).z
    )
    want = cells.tanh_gradient(THETA, Z_STAR, cells.cotangent_of(Z_STAR))[1]
    assert cells.relative(jax.grad(value)(X), want) < 1e-9


def test_other_objects_are_refused():
    with pytest.raises(
        TypeError, match=r"jaxopt\.LBFGS.*AndersonAcceleration, Broyden.*optimistix"
    ):
        solve(jaxopt.LBFGS(unused))
    with pytest.raises(TypeError, match=r"adjoint_solver= does not take jaxopt\.GradientDescent"):
        solve("anderson", adjoint_solver=jaxopt.GradientDescent(unused))
    with pytest.raises(TypeError, match="not object"):
        solve(object())
    with pytest.raises(TypeError, match=r"needs an object: write jaxopt\.Broyden"):
        solve(jaxopt.Broyden)


# ---------------------------------------------------------------------------------- optimistix


@pytest.fixture(scope="session")
def optx():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("optimistix")


def optimistix_solver(optx, name, **options):
    return getattr(optx, name)(rtol=1e-8, atol=1e-13, **options)


# Per step: evaluations of f, and whether a dense Jacobian of it.
OPTIMISTIX = {
    "FixedPointIteration": (1, False),
    "Newton": (2, True),
    "Chord": (1, False),  # and one Jacobian in all
    "GaussNewton": (2, True),
    "LevenbergMarquardt": (2, True),
    "IndirectLevenbergMarquardt": (2, True),
    "Dogleg": (2, True),
    "BFGS": (2, False),
    "LBFGS": (2, False),
    "NonlinearCG": (2, False),
}


@pytest.mark.parametrize("name", OPTIMISTIX)
def test_optimistix_value_gradient_and_count(optx, name):
    solver = optimistix_solver(optx, name)
    check_gradient(solver)
    cell = Counted()
    sol = cell.solve(solver)
    calls, jacobian = OPTIMISTIX[name]
    steps, n, chord = int(sol.stats.steps), X.size, name == "Chord"
    assert status(sol) is Status.CONVERGED and cells.relative(sol.z, Z_STAR) < 1e-7
    assert cell.calls == 1 + calls * steps + chord
    assert int(sol.stats.f_evals) == cell.calls + n * (steps * jacobian + chord)


@pytest.mark.parametrize(
    "name",
    ["FixedPointIteration", "Newton", pytest.param("LevenbergMarquardt", marks=pytest.mark.slow)],
)
def test_optimistix_transforms_and_failures(optx, name):
    solver = optimistix_solver(optx, name)
    sol = solve(solver, z0=cells.split(jnp.zeros(6)), cell=cells.on_pytrees(cells.tanh_cell))
    assert cells.relative(sol.z, cells.split(Z_STAR)) < 1e-7
    xs = np.stack([X, 2 * X])
    sol = jax.vmap(lambda x: solve(solver, x=x))(xs)
    assert cells.relative(sol.z, cells.tanh_solution(THETA, xs)) < 1e-7
    sol = deqjax.fixed_point(lambda z: z + 1 + z**2, jnp.full(3, 0.3), solver=solver)
    assert not sol.stats.converged and jnp.all(jnp.isfinite(sol.z))
    assert int(solve(solver, max_steps=2).stats.steps) == 2
    assert solve(solver, rtol=1e-2).stats.rel_residual > 1e-8
    again = solve(solver, x=1.01 * X, z0=Z_STAR, resume=solve(solver).state)
    assert cells.relative(again.z, cells.tanh_solution(THETA, 1.01 * X)) < 1e-7
    with pytest.raises(ValueError, match=f"{name} solves one equation"):
        solve(solver, z0=jnp.zeros((2, 6)), x=xs, batch_axis=0)


def test_optimistix_singular_jacobian_is_reported(optx):
    """f(z) − z = 1: optimistix's linear solve fails."""
    sol = deqjax.fixed_point(
        lambda z: z + 1.0, jnp.zeros(3), solver=optimistix_solver(optx, "Newton"), max_steps=5
    )
    assert not sol.stats.converged and sol.stats.residual > 1.0


def test_optimistix_least_squares_at_a_local_minimum_is_not_converged(optx):
    """Dogleg stops, successful, at the minimum of ‖1 + z²‖, which is no root."""
    sol = deqjax.fixed_point(
        lambda z: z + 1 + z**2, jnp.full(1, 0.3), solver=optimistix_solver(optx, "Dogleg")
    )
    assert status(sol) is Status.MAX_STEPS


def test_optimistix_refusals(optx):
    for name in ("Bisection", "GoldenSearch", "NelderMead"):
        with pytest.raises(TypeError, match=f"does not take optimistix.{name}; .*root finders"):
            solve(optimistix_solver(optx, name))
    with pytest.raises(TypeError, match=r"write optimistix\.Newton"):
        solve(optx.Newton)
    with pytest.raises(TypeError, match=r"does not take optimistix\.NewtonDescent"):
        solve(optx.NewtonDescent())
    optax = pytest.importorskip("optax")
    search = optx.OptaxMinimiser(optax.lbfgs(), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="times a step in ways that cannot be counted"):
        solve(search)
