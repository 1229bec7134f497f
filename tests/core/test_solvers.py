"""Each solver against its textbook definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax.solvers.base import Cell, Point

from .cells import (
    SMALL,
    SOLVERS,
    TIGHT,
    chandrasekhar,
    linear,
    linear_cell,
    on_pytrees,
    relative,
    split,
    tanh_cell,
    tanh_parameters,
    tanh_solution,
)


def solve(f, z0, *args, **options):
    return jax.jit(lambda z0, args: deqjax.fixed_point(f, z0, *args, **options))(z0, args)


def trace_of(sol):
    trace = np.asarray(sol.stats.trace)
    return trace[: int(sol.stats.steps) + 1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_reaches_the_dense_solution(solver):
    theta, x = tanh_parameters(8, radius=0.9)
    sol = solve(tanh_cell, np.zeros(8), theta, x, solver=solver, **TIGHT)
    assert bool(sol.stats.converged)
    assert relative(sol.z, tanh_solution(theta, x)) < 1e-10


@pytest.mark.parametrize("solver", ["anderson"])
def test_root_find_is_the_fixed_point_of_z_plus_g(solver):
    theta, x = tanh_parameters(8)
    sol = jax.jit(
        lambda x: deqjax.root_find(
            lambda z, theta, x: tanh_cell(z, theta, x) - z,
            jnp.zeros(8),
            theta,
            x,
            solver=solver,
            **TIGHT,
        )
    )(x)
    assert bool(sol.stats.converged)
    assert relative(sol.z, tanh_solution(theta, x)) < 1e-10


# ------------------------------------------------------------------------------- Picard


@pytest.mark.parametrize("damping", [1.0, 0.3])
def test_picard_is_plain_damped_iteration(damping):
    theta, x = tanh_parameters(6)
    sol = solve(
        tanh_cell,
        np.zeros(6),
        theta,
        x,
        solver=deqjax.Picard(damping=damping),
        rtol=0.0,
        atol=0.0,
        max_steps=7,
        trace=True,
    )
    z = np.zeros(6)
    residuals = []
    for _ in range(8):
        last, fz = z, np.tanh(theta["w"] @ z + theta["b"]) + x
        residuals.append(np.linalg.norm(fz - z))
        z = (1 - damping) * z + damping * fz
    np.testing.assert_allclose(sol.z, last, rtol=1e-14)
    np.testing.assert_allclose(sol.stats.trace, residuals, rtol=1e-12)


def test_damping_tames_a_negative_eigenvalue():
    f = lambda z: -1.5 * z + 1.0
    undamped = solve(f, np.zeros(2), solver="picard", rtol=1e-8)
    damped = solve(f, np.zeros(2), solver=deqjax.Picard(damping=0.4), rtol=1e-8)
    assert not bool(undamped.stats.converged)
    # (1 − 0.4) − 0.4 · 1.5 = 0: one step is exact.
    assert int(damped.stats.steps) == 1
    np.testing.assert_allclose(damped.z, 0.4, rtol=1e-15)


# ------------------------------------------------------------------------------- Anderson


def gmres_residuals(a, b, steps):
    """rₖ = b − (I − A) zₖ minimal over zₖ in the Krylov space of (I − A, b)."""
    system = np.eye(b.size) - a
    residuals, krylov = [b], []
    vector = b
    for _ in range(steps):
        for q in krylov:
            vector = vector - q * (q @ vector)
        krylov.append(vector / np.linalg.norm(vector))
        image = system @ np.stack(krylov, 1)
        residuals.append(b - image @ np.linalg.lstsq(image, b, rcond=None)[0])
        vector = system @ krylov[-1]
    return residuals


@pytest.mark.parametrize("symmetric", [True, False])
def test_anderson_with_full_memory_is_gmres(symmetric):
    """Walker and Ni, theorem 2.2: z of step k + 1 is f of GMRES's k-th iterate."""
    n = 6
    a, b, z_star = linear(np.linspace(-0.9, 1.6, n), symmetric=symmetric)
    sol = solve(
        linear_cell,
        np.zeros(n),
        a,
        b,
        solver=deqjax.Anderson(memory=n),
        rtol=1e-9,
        atol=0.0,
        max_steps=20,
        trace=True,
    )
    assert bool(sol.stats.converged) and int(sol.stats.steps) <= n + 1
    assert relative(sol.z, z_star) < 1e-7
    expected = [np.linalg.norm(a @ r) for r in gmres_residuals(a, b, n - 1)]
    np.testing.assert_allclose(trace_of(sol)[1:n], expected[: n - 1], rtol=1e-5)


def test_anderson_mixing_is_the_alpha_form():
    """z⁺ = Σ αᵢ [β f(zᵢ) + (1 − β) zᵢ] with α minimising ‖Σ αᵢ rᵢ‖ under Σ αᵢ = 1."""
    theta, x = tanh_parameters(7, radius=0.9)
    memory, beta, steps = 2, 0.6, 6
    f = lambda z: np.tanh(theta["w"] @ z + theta["b"]) + x
    zs = [np.zeros(7)]
    for _ in range(steps):
        window = zs[-(memory + 1) :]
        r = np.stack([f(z) - z for z in window], 1)
        kkt = np.block([[r.T @ r, np.ones((len(window), 1))], [np.ones((1, len(window))), 0.0]])
        alpha = np.linalg.solve(kkt, np.r_[np.zeros(len(window)), 1.0])[:-1]
        zs.append(
            sum(c * (beta * f(z) + (1 - beta) * z) for c, z in zip(alpha, window, strict=True))
        )
    sol = solve(
        tanh_cell,
        np.zeros(7),
        theta,
        x,
        solver=deqjax.Anderson(memory=memory, mixing=beta),
        rtol=0.0,
        atol=0.0,
        max_steps=steps,
        trace=True,
    )
    np.testing.assert_allclose(sol.stats.trace, [np.linalg.norm(f(z) - z) for z in zs], rtol=1e-6)
    assert relative(sol.z, zs[-1]) < 1e-7


def test_anderson_without_memory_is_picard():
    theta, x = tanh_parameters(6)
    options = dict(rtol=1e-8, atol=0.0, trace=True)
    plain, picard = (
        solve(tanh_cell, np.zeros(6), theta, x, solver=s, **options)
        for s in (deqjax.Anderson(memory=0), "picard")
    )
    np.testing.assert_array_equal(plain.z, picard.z)
    np.testing.assert_array_equal(plain.stats.trace, picard.stats.trace)
    mixed, damped = (
        solve(tanh_cell, np.zeros(6), theta, x, solver=s, **options)
        for s in (deqjax.Anderson(memory=0, mixing=0.4), deqjax.Picard(damping=0.4))
    )
    assert int(mixed.stats.steps) == int(damped.stats.steps) > int(picard.stats.steps)
    assert relative(mixed.z, damped.z) < 1e-14


def anderson_gamma(d_r, r):
    """The coefficients that Anderson chooses, read off a step whose ΔY is the identity."""
    n, m = d_r.shape
    solver = deqjax.Anderson(memory=m)
    z = jnp.zeros((1, n))
    point = Point.of(z, jnp.asarray(r)[None])
    state = solver.init(point, 100)
    gram = d_r.T @ d_r
    state = state._replace(
        w=type(state.w)(jnp.asarray(d_r.T)[None]),
        y=type(state.y)(jnp.eye(m, n)[None]),
        system=jnp.asarray(np.column_stack([gram, np.zeros(m), np.diag(gram)]))[None],
    )
    state = solver.resume(state, point, jnp.int32(m))
    new = solver.step(Cell(lambda z: z), point, state, jnp.int32(m), None).point.z[0]
    return np.asarray(r - new)[:m]


@pytest.mark.parametrize("order", ["worst last", "worst first"])
def test_anderson_solves_a_gram_of_condition_1e12(order):
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(8, 4)))[0]
    d_r = np.stack([q[:, 0], q[:, 1], q[:, 0] + q[:, 1] + 2e-6 * q[:, 2]], 1)
    d_r = d_r if order == "worst last" else d_r[:, ::-1]
    assert 1e11 < np.linalg.cond(d_r.T @ d_r) < 1e14
    r = q @ np.array([1.0, -0.5, 1e-3, 0.7])
    left = np.linalg.norm(r - d_r @ anderson_gamma(d_r, r))
    assert left < 0.7 * 1.01  # the part of r outside the span of ΔR


@pytest.mark.parametrize("gap", [1e-12, 0.0])
def test_anderson_drops_what_a_singular_history_cannot_tell(gap):
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.normal(size=(8, 3)))[0]
    d_r = np.stack([q[:, 0], q[:, 0] + gap * q[:, 1], np.zeros(8)], 1)
    r = q @ np.array([1.0, 1.0, 1.0])
    gamma = anderson_gamma(d_r, r)
    assert np.all(np.isfinite(gamma)) and np.max(np.abs(gamma)) < 1e3
    assert np.linalg.norm(r - d_r @ gamma) < np.sqrt(2) * 1.01


def test_anderson_survives_a_clustered_spectrum():
    """Residual differences are parallel to 1e-6: every least-squares problem is near-singular."""
    a, b, z_star = linear(0.95 + 1e-6 * np.arange(8))
    sol = solve(linear_cell, np.zeros(8), a, b, solver="anderson", rtol=1e-10, atol=0.0, trace=True)
    assert bool(sol.stats.converged) and int(sol.stats.steps) <= 8
    assert relative(sol.z, z_star) < 1e-7
    assert np.all(np.diff(trace_of(sol)) <= 0)


# ------------------------------------------------------------------------------- Broyden


def dense_broyden(f, z, memory, steps):
    """Good Broyden by its textbook update, from B₀ = −I with the last `memory` pairs.

    B⁺ = B + (y − B s) sᵀ / (sᵀs), pairs applied from oldest to newest; z⁺ = z − B⁻¹ g.
    """
    zs, pairs = [z], []
    g = f(z) - z
    for _ in range(steps):
        b = -np.eye(z.size)
        for s, y in pairs[-memory:]:
            b = b + np.outer(y - b @ s, s) / (s @ s)
        z_new = z - np.linalg.solve(b, g)
        g_new = f(z_new) - z_new
        pairs.append((z_new - z, g_new - g))
        z, g = z_new, g_new
        zs.append(z)
    return zs


@pytest.mark.parametrize("memory", [1, 3, 10])
def test_broyden_is_the_textbook_method_iterate_by_iterate(memory):
    theta, x = tanh_parameters(8, radius=0.95)
    steps = 9
    solver = deqjax.Broyden(memory=memory)
    f = lambda z: tanh_cell(z, theta, x)
    step = jax.jit(lambda point, state, k: solver.step(Cell(f), point, state, k, None))
    point = Point.of(jnp.zeros((1, 8)), f(jnp.zeros((1, 8))))
    state = solver.init(point, 100)
    iterates = [point.z[0]]
    for k in range(steps):
        point, state, _ = step(point, state, jnp.int32(k))
        iterates.append(point.z[0])
    reference = dense_broyden(
        lambda z: np.tanh(theta["w"] @ z + theta["b"]) + x, np.zeros(8), memory, steps
    )
    for got, want in zip(iterates, reference, strict=True):
        assert np.linalg.norm(got - want) < 1e-8 * np.linalg.norm(reference[-1])


def test_broyden_run_by_the_driver_is_the_textbook_method():
    theta, x = tanh_parameters(8, radius=0.95)
    f = lambda z: np.tanh(theta["w"] @ z + theta["b"]) + x
    sol = solve(
        tanh_cell,
        np.zeros(8),
        theta,
        x,
        solver=deqjax.Broyden(memory=2),
        rtol=0.0,
        atol=0.0,
        max_steps=8,
        trace=True,
    )
    residuals = [np.linalg.norm(f(z) - z) for z in dense_broyden(f, np.zeros(8), 2, 8)]
    np.testing.assert_allclose(sol.stats.trace, residuals, rtol=1e-6)


@pytest.mark.parametrize("steps", [5, 7])
def test_broyden_secant_condition_of_the_newest_pair(steps):
    """B⁻¹ Δg = Δz, with B⁻¹ built from the returned state; older pairs were dropped already."""
    memory, n = 3, 8
    theta, x = tanh_parameters(n, radius=0.95)
    sol = solve(
        tanh_cell,
        np.zeros(n),
        theta,
        x,
        solver=deqjax.Broyden(memory=memory),
        rtol=0.0,
        atol=0.0,
        max_steps=steps,
    )
    newest = (steps - 1) % memory
    state = sol.state.solver_state
    d_z, d_f = (np.asarray(h.values)[0].T for h in (state.w, state.y))
    assert d_z.shape == (n, memory)
    kernel, squares = state.system[0, :, :memory], state.system[0, :, -1]
    inverse = -np.eye(n) + d_f @ np.linalg.solve(np.asarray(kernel), d_z.T)
    s, y = d_z[:, newest], d_f[:, newest] - d_z[:, newest]
    assert relative(inverse @ y, s) < 1e-9
    np.testing.assert_allclose(squares, np.sum(d_z**2, axis=0))
    # It is the inverse of the matrix that the textbook update makes of the same pairs.
    b = -np.eye(n)
    for j in (np.arange(memory) + newest + 1) % memory:
        b += np.outer(d_f[:, j] - d_z[:, j] - b @ d_z[:, j], d_z[:, j]) / (d_z[:, j] @ d_z[:, j])
    assert relative(inverse, np.linalg.inv(b)) < 1e-9


def test_broyden_starts_with_a_picard_step():
    """B₀ = −I; from +I the first step would go the other way."""
    theta, x = tanh_parameters(6)
    solver = deqjax.Broyden()
    f = lambda z: tanh_cell(z, theta, x)
    z = jnp.ones((1, 6))
    point = Point.of(z, f(z))
    new = solver.step(Cell(f), point, solver.init(point, 10), jnp.int32(0), None).point
    np.testing.assert_allclose(new.z, point.fz, rtol=1e-15)


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


# ------------------------------------------------------------------------------- history


def state_bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_the_state_does_not_depend_on_max_steps(solver):
    """So that memory is flat, and a solve can be resumed with another budget."""
    theta, x = tanh_parameters(6)

    def size(**options):
        shapes = jax.eval_shape(
            lambda: deqjax.fixed_point(tanh_cell, jnp.zeros(6), theta, x, solver=solver, **options)
        )
        return state_bytes(shapes.state)

    assert size(max_steps=1000) == size(max_steps=50) == size(max_steps=2)
    assert size() == size(max_steps=1000)  # and the default is bounded too


@pytest.mark.parametrize("make", [deqjax.Anderson, deqjax.Broyden])
def test_history_in_bfloat16_is_half_and_still_converges(make):
    theta, x = (jax.tree.map(np.float32, p) for p in tanh_parameters(12, radius=0.95))
    small, full = (
        solve(tanh_cell, np.zeros(12, np.float32), theta, x, solver=s, rtol=1e-3, trace=True)
        for s in (make(memory=4, history_dtype="bfloat16"), make(memory=4))
    )
    histories = [
        [x for x in jax.tree.leaves(sol.state.solver_state) if x.shape[-1] == 12]
        for sol in (small, full)
    ]
    assert state_bytes(histories[0]) * 2 == state_bytes(histories[1]) == 2 * 4 * 12 * 4
    assert small.z.dtype == jnp.float32 and bool(small.stats.converged)
    picard = solve(tanh_cell, np.zeros(12, np.float32), theta, x, solver="picard", rtol=1e-3)
    assert int(small.stats.steps) < int(picard.stats.steps)
    assert relative(small.z, tanh_solution(*tanh_parameters(12, radius=0.95))) < 2e-2


@pytest.mark.parametrize("make", [deqjax.Anderson, deqjax.Broyden])
def test_memory_larger_than_max_steps(make):
    theta, x = tanh_parameters(6, radius=0.9)
    options = dict(rtol=0.0, atol=0.0, max_steps=4, trace=True)
    huge, enough = (
        solve(tanh_cell, np.zeros(6), theta, x, solver=make(memory=m), **options) for m in (50, 4)
    )
    np.testing.assert_allclose(huge.stats.trace, enough.stats.trace, rtol=1e-9)


def test_memory_matters():
    """A longer history is really used."""
    a, b, _ = linear(np.linspace(-0.9, 0.99, 10))
    for make in (deqjax.Anderson, deqjax.Broyden):
        short, long = (
            solve(linear_cell, np.zeros(10), a, b, solver=make(memory=m), rtol=1e-9, max_steps=400)
            for m in (1, 6)
        )
        assert bool(long.stats.converged)
        assert int(long.stats.steps) < 0.7 * int(short.stats.steps)


# ------------------------------------------------------------------------------- invariances


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_scale_of_the_state_leaves_the_steps_unchanged(solver):
    theta, x = tanh_parameters(8, radius=0.95)

    @jax.jit
    def scaled(scale):
        return deqjax.fixed_point(
            lambda z: scale * tanh_cell(z / scale, theta, x),
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
        assert relative(other.z / scale, plain.z) < 1e-8


@pytest.mark.parametrize("solver", SOLVERS)
def test_leaves_of_a_pytree_are_one_vector(solver):
    theta, x = tanh_parameters(9, radius=0.95)
    options = dict(solver=SMALL[solver], rtol=1e-10, atol=0.0, max_steps=300, trace=True)
    flat = solve(tanh_cell, np.zeros(9), theta, x, **options)
    tree = solve(on_pytrees(tanh_cell), split(np.zeros(9)), theta, x, **options)
    assert jax.tree.structure(tree.z) == jax.tree.structure(split(np.zeros(9)))
    assert int(tree.stats.steps) == int(flat.stats.steps)
    assert relative(tree.z, split(np.asarray(flat.z))) < 1e-10
    k = int(flat.stats.steps)
    # Sums in another order differ by round-off, which a quasi-Newton method amplifies.
    np.testing.assert_allclose(tree.stats.trace[:k], flat.stats.trace[:k], rtol=1e-3)


@functools.cache
def h_equation_reference(n=100):
    f = chandrasekhar(n=n)
    h = np.ones(n)
    for _ in range(2000):
        h = f(h)
    return h


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_chandrasekhar_h_equation_in_14_evaluations(solver, scale):
    f = chandrasekhar()
    sol = solve(
        lambda h: scale * f(h / scale),
        scale * np.ones(100),
        solver=solver,
        rtol=1e-8,
        atol=0.0,
    )
    assert bool(sol.stats.converged) and int(sol.stats.f_evals) <= 14
    assert relative(sol.z / scale, h_equation_reference()) < 1e-6


# ------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_resume_continues_with_the_history(solver):
    """Twelve steps, then four more with the state, are the sixteen steps in one go."""
    theta, x = tanh_parameters(10, radius=0.97, seed=3)
    call = functools.partial(
        deqjax.fixed_point, tanh_cell, solver=SMALL[solver], rtol=0.0, atol=0.0, trace=True
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
    theta, x = tanh_parameters(6, radius=0.9)

    def f(z, x, most):
        y = jax.vmap(lambda z, x: tanh_cell(z, theta, x))(z, x)
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
