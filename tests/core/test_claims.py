"""What may be called CONVERGED and what may not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Status

QUICK = ("anderson", "broyden")
SOLVERS = [
    *QUICK,
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("newton_krylov", "picard")),
]
DTYPES = [jnp.float32, jnp.float64]


def solve(f, z0, *args, **options):
    return jax.jit(lambda z0, args: deqjax.fixed_point(f, z0, *args, **options))(z0, args)


# ------------------------------------------------------------------------------- no solution


def screw(pitch):
    """Rotation by 1 rad about an axis and a step of `pitch` along it; radius 1."""
    c, s = np.cos(1.0), np.sin(1.0)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    return lambda z: turn.astype(z.dtype) @ z + jnp.array([1.0, 0.5, pitch], z.dtype)


def undiscounted(z):
    """Values of a Markov chain with a mean reward that is not zero."""
    p = np.random.default_rng(0).uniform(size=(5, 5))
    p = jnp.asarray(p / p.sum(axis=1, keepdims=True), z.dtype)
    return p @ z + jnp.asarray([1.0, 0.2, -0.3, 0.5, 0.1], z.dtype)


UNSOLVABLE = {
    "z + 1": (lambda z: z + 1.0, 1),
    "z + c": (lambda z: z + jnp.asarray([1.0, -2.0, 0.5], z.dtype), 3),
    "mass that grows": (lambda z: jnp.full((2, 2), 0.5, z.dtype) @ z + 0.1, 2),
    "no discount": (undiscounted, 5),
    "screw": (screw(0.3), 3),
    "slow screw": (screw(0.05), 3),
    "no real root": (lambda z: z**2 + 1.0, 1),
}


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        *((solver, name) for solver in QUICK for name in UNSOLVABLE),
        ("newton_krylov", "no discount"),
        *(
            pytest.param("newton_krylov", n, marks=pytest.mark.slow)
            for n in UNSOLVABLE
            if n != "no discount"
        ),
        *(pytest.param("picard", n, marks=pytest.mark.slow) for n in UNSOLVABLE),
    ],
)
def test_an_equation_without_a_solution_is_not_solved(solver, name):
    f, n = UNSOLVABLE[name]
    run = jax.jit(
        lambda z0: deqjax.fixed_point(f, z0, solver=solver, max_steps=300), static_argnums=()
    )
    for dtype in DTYPES:
        for start in (0.0, 0.2, -3.0):
            sol = run(jnp.full(n, start, dtype))
            assert not bool(sol.stats.converged), (dtype, start)
            assert np.all(np.isfinite(sol.z)) and float(sol.stats.residual) > 1e-3
            true = np.linalg.norm(np.asarray(f(sol.z), np.float64) - np.asarray(sol.z, np.float64))
            if name != "no real root":
                assert float(sol.stats.residual) >= 0.5 * min(true, 0.04), (dtype, start)


def test_a_solve_that_ran_away_says_so():
    for dtype in DTYPES:
        sol = deqjax.fixed_point(lambda z: z + 1.0, jnp.array([0.2], dtype), solver="anderson")
        assert Status(int(sol.stats.status)) is Status.UNBOUNDED
        assert abs(float(sol.z[0])) < 1e3  # not where it went


def test_a_consistent_singular_equation_is_solved_by_a_short_step():
    """P z + r with a mean reward of zero: solutions along a line, and GMRES meets a pivot of
    round-off."""
    p = np.random.default_rng(1).uniform(size=(6, 6))
    p /= p.sum(axis=1, keepdims=True)
    mean = np.linalg.matrix_power(p, 200)[0]
    r = np.random.default_rng(2).normal(size=6)
    r -= mean @ r
    for solver in ("anderson", "newton_krylov"):
        sol = solve(lambda z, p, r: p @ z + r, jnp.zeros(6), p, r, solver=solver, rtol=1e-10)
        assert bool(sol.stats.converged)
        assert np.linalg.norm(sol.z) < 10 * np.linalg.norm(r)
        np.testing.assert_allclose(p @ sol.z + r, sol.z, atol=1e-8)


# ------------------------------------------------------------------------------- solutions


def tanh_cell(z, w, x):
    return jnp.tanh(w @ z + x)


def tanh_problem(n=12, radius=0.7, dtype=jnp.float64):
    rng = np.random.default_rng(0)
    w = rng.normal(size=(n, n))
    w *= radius / np.max(np.abs(np.linalg.eigvals(w)))
    return jnp.asarray(w, dtype), jnp.asarray(rng.normal(size=n), dtype)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_warm_start_ends_at_once(solver, dtype):
    w, x = tanh_problem(dtype=dtype)
    run = lambda z0: solve(tanh_cell, z0, w, x, solver=solver)
    z_star = solve(tanh_cell, jnp.zeros_like(x), w, x, solver="anderson", max_steps=200).z
    again = run(z_star)
    assert bool(again.stats.converged) and int(again.stats.steps) == 0
    near = run(z_star * (1 + 1e-4))
    assert bool(near.stats.converged) and 0 < int(near.stats.steps) < 25


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("dtype", "gap"), [(jnp.float32, 1e-3), (jnp.float64, 1e-6)])
def test_a_solution_may_be_long(solver, dtype, gap):
    """‖z*‖ is 1/gap times ‖f(0)‖."""
    rng = np.random.default_rng(3)
    q = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    a = (q * [1 - gap, 0.9, 0.5, 0.3, 0.1, -0.2, -0.4, -0.6]) @ q.T
    b = q[:, 0] + 0.1 * q[:, 1:] @ rng.normal(size=7)
    a, b = jnp.asarray(a, dtype), jnp.asarray(b, dtype)
    if solver == "picard" and dtype == jnp.float64:
        pytest.skip("takes five million steps")
    sol = solve(lambda z, a, b: a @ z + b, jnp.zeros_like(b), a, b, solver=solver, max_steps=9000)
    assert bool(sol.stats.converged)
    assert np.linalg.norm(sol.z) > 0.5 / gap * np.linalg.norm(b) * 0.5


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_solution_may_be_zero(solver, dtype):
    for f in (lambda z: 0.5 * z, lambda z: jnp.tanh(0.5 * z)):
        sol = solve(f, jnp.ones(3, dtype), solver=solver)
        assert bool(sol.stats.converged) and float(jnp.max(jnp.abs(sol.z))) < 1e-10


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
@pytest.mark.parametrize("radius", [0.5, 0.9])
def test_bfloat16(solver, radius):
    w, x = tanh_problem(radius=radius, dtype=jnp.bfloat16)
    sol = solve(tanh_cell, jnp.zeros_like(x), w, x, solver=solver)
    assert bool(sol.stats.converged) and sol.z.dtype == jnp.bfloat16


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
@pytest.mark.parametrize("start", [0.0, 1e-6])
def test_a_start_near_an_unstable_equilibrium(solver, start):
    """f(z0) and the first residual are a million times smaller than the solution."""
    f = lambda z: jnp.tanh(2 * z + 1e-6)
    for dtype in DTYPES:
        sol = solve(f, jnp.full(2, start, dtype), solver=solver)
        assert bool(sol.stats.converged)
        assert np.allclose(f(sol.z), sol.z, rtol=1e-4)
        assert float(sol.stats.rel_residual) <= 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
def test_nothing_depends_on_the_unit_of_z(solver):
    """In float32 from 1e-12 to 1e9; powers of two, so that f rounds alike."""
    w, x = tanh_problem(radius=0.9, dtype=jnp.float32)

    @jax.jit
    def run(unit):
        f = lambda z: unit * tanh_cell(z / unit, w, x)
        return deqjax.fixed_point(f, jnp.zeros_like(x), solver=solver, max_steps=200)

    want = run(1.0)
    assert bool(want.stats.converged)
    for unit in (2.0**-40, 2.0**-20, 2.0**30):
        got = run(unit)
        np.testing.assert_array_equal(np.asarray(got.z, np.float64) / unit, want.z)
        assert int(got.stats.steps) == int(want.stats.steps)
        np.testing.assert_array_equal(got.stats.rel_residual, want.stats.rel_residual)
        assert float(got.stats.residual) == unit * float(want.stats.residual)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_far_start(solver, dtype):
    w, x = tanh_problem(dtype=dtype)
    sol = solve(tanh_cell, jnp.full_like(x, 1e6), w, x, solver=solver, max_steps=200)
    want = solve(tanh_cell, jnp.zeros_like(x), w, x, solver="anderson", max_steps=200)
    assert bool(sol.stats.converged)
    np.testing.assert_allclose(sol.z, want.z, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------- coupled samples


@pytest.mark.parametrize("solver", SOLVERS)
def test_finished_samples_that_no_longer_hold_are_not_converged(solver):
    """A mean field: every sample's equation moves with all the others."""
    a, b = np.array([0.0, 0.9, 0.95, 0.5]), np.array([1.0, 2.0, -1.0, 0.3])
    f = lambda z: (a * jnp.mean(z) + b)[:, None]
    together = solve(f, jnp.zeros((4, 1)), solver=solver, rtol=1e-6, max_steps=300)
    exact = np.linalg.solve(np.eye(4) - np.outer(a, np.ones(4) / 4), b)
    assert bool(together.stats.converged)
    np.testing.assert_allclose(together.z[:, 0], exact, rtol=1e-4)
    sol = solve(f, jnp.zeros((4, 1)), solver=solver, rtol=1e-6, max_steps=300, batch_axis=0)
    true = np.abs(f(sol.z) - sol.z)[:, 0] / np.abs(f(sol.z))[:, 0]
    # Plain iterations may happen to end together; what is claimed holds in any case.
    assert np.all(true[np.asarray(sol.stats.converged)] <= 2e-6)
    assert solver == "picard" or not np.all(sol.stats.converged)


def test_what_is_reported_of_a_finished_sample_is_what_holds():
    f = lambda z: jnp.stack([10 * jnp.maximum(z[1] - 1, 0), 0.5 * z[1] + 1])
    sol = solve(f, jnp.zeros((2, 1)), solver="picard", batch_axis=0)
    assert [Status(int(s)) for s in sol.stats.status] == [Status.INCONSISTENT, Status.CONVERGED]
    np.testing.assert_allclose(sol.stats.residual, np.abs(f(sol.z) - sol.z)[:, 0], rtol=1e-4)


@pytest.mark.parametrize("last", ["picard", "anderson", "broyden"])
def test_a_claim_beside_a_sample_that_failed_in_a_first_phase(last):
    """Sample 1 diverges while Picard goes first; what sample 0 claims must hold beside the best z
    that is returned of it, and not beside the last one."""
    f = lambda z: jnp.stack([0.3 * z[0] + jnp.tanh(z[1]), 100 * z[1] - 5])
    solver = deqjax.WarmStart(last, start="picard", steps=12)
    for z0 in (jnp.full((2, 1), 0.3), jnp.full((2, 1), -0.2)):
        sol = solve(f, z0, solver=solver, batch_axis=0, rtol=1e-6, max_steps=100)
        status = [Status(int(s)) for s in sol.stats.status]
        assert status[1] in (Status.DIVERGED, Status.UNBOUNDED)
        true = float(jnp.abs(f(sol.z) - sol.z)[0, 0] / jnp.abs(f(sol.z))[0, 0])
        assert status[0] == Status.INCONSISTENT or true <= 2e-6, (status, true)


# ------------------------------------------------------------------------------- roots


def parabola(p, star):
    return 1 - (p / star) ** 2


ROOT_SOLVERS = ["anderson", "broyden", "newton_krylov"]
MOSTLY = [*QUICK, pytest.param("newton_krylov", marks=pytest.mark.slow)]


@pytest.mark.parametrize("solver", MOSTLY)
@pytest.mark.parametrize("dtype", DTYPES)
def test_roots_in_any_unit_of_z(solver, dtype):
    @jax.jit
    def run(star, part):
        z0 = jnp.asarray(star / part, dtype).reshape(1)
        root = lambda star: deqjax.root_find(parabola, z0, star, solver=solver).z[0]
        sol = deqjax.root_find(parabola, z0, star, solver=solver)
        return sol, jax.grad(root)(star)

    for star in (3e-9, 1.0, 300.0, 1e5, 3e6):
        for part in (1.5, 3.0):
            sol, slope = run(jnp.asarray(star, dtype), part)
            assert bool(sol.stats.converged), (star, part)
            np.testing.assert_allclose(sol.z[0], star, rtol=1e-4)
            np.testing.assert_allclose(slope, 1.0, rtol=1e-3)


@pytest.mark.parametrize("solver", ROOT_SOLVERS)
def test_roots_in_any_unit_of_g(solver):
    run = jax.jit(
        lambda c: deqjax.root_find(
            lambda z: c * (2.0 - z**2), jnp.array([0.5], jnp.float32), solver=solver
        )
    )
    for c in (1e-9, 1e-6, 1e-3, 1.0, 1e6, 1e9):
        sol = run(jnp.float32(c))
        assert bool(sol.stats.converged)
        np.testing.assert_allclose(sol.z[0], 2**0.5, rtol=1e-4)
        residual = abs(c * (2 - float(sol.z[0]) ** 2))
        np.testing.assert_allclose(sol.stats.residual, residual, rtol=0.2, atol=1e-6 * c)


@pytest.mark.parametrize("solver", ["picard", *ROOT_SOLVERS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_start_at_the_root(solver, dtype):
    star = jnp.asarray([3e6, 1e-3], dtype)
    sol = deqjax.root_find(parabola, star, star, solver=solver)
    assert bool(sol.stats.converged) and int(sol.stats.steps) == 0


@pytest.mark.parametrize("solver", ROOT_SOLVERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_root_at_zero(solver, dtype):
    sol = deqjax.root_find(lambda z: -jnp.sinh(z), jnp.full(2, 1.5, dtype), solver=solver)
    assert bool(sol.stats.converged) and float(jnp.max(jnp.abs(sol.z))) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_root_is_as_good_from_far_away(dtype):
    """‖g(z0)‖ is 1e9, and 1e-5 of that no root."""
    g = lambda z: 8 - z**3
    sol = deqjax.root_find(g, jnp.array([1e3], dtype), solver="newton_krylov")
    assert bool(sol.stats.converged)
    np.testing.assert_allclose(sol.z[0], 2.0, rtol=1e-3)


@pytest.mark.slow
def test_what_is_no_root_is_none():
    constant = functools.partial(deqjax.root_find, lambda z: 0 * z + 1.0)
    for solver in ROOT_SOLVERS:
        for z0 in (jnp.zeros(2), jnp.array([1e9, 2e9], jnp.float32)):
            sol = constant(z0, solver=solver)
            assert not bool(sol.stats.converged)
            np.testing.assert_allclose(sol.stats.residual, 2**0.5, rtol=1e-6)


@pytest.mark.parametrize("solver", [deqjax.Broyden(memory=4), deqjax.Anderson()])
def test_a_loose_tolerance_certifies_no_screw(solver):
    """Solvers leap about where nothing is to be found; their leaps are not the problem's size."""
    rng = np.random.default_rng(0)
    angle, n = rng.uniform(0.3, 2.8, 40), 40
    c, s, o = np.cos(angle), np.sin(angle), np.zeros(n)
    turn = np.stack([np.stack([c, -s, o]), np.stack([s, c, o]), np.stack([o, o, o + 1])])
    turn, step = np.moveaxis(turn, -1, 0), np.stack([*rng.normal(size=(2, n)), o + 0.5], axis=1)
    f = lambda z, turn, step: jnp.einsum("bij,bj->bi", turn, z) + step
    for dtype in DTYPES:
        args = (jnp.zeros((n, 3), dtype), jnp.asarray(turn, dtype), jnp.asarray(step, dtype))
        sol = solve(f, *args, solver=solver, batch_axis=0, rtol=1e-3, max_steps=200)
        assert not np.any(sol.stats.converged)
