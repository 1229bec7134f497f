"""Solvers made of solvers: Compacted leaves finished samples behind, WarmStart starts better.

`Compacted` must change nothing but the cost: every test compares with the solver that it wraps, or
with dense answers, and one counts on how many samples f was evaluated.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Compacted, Status, WarmStart
from deqjax._compaction import batched_args
from tests import cells

N, BATCH = 4, 7
OPTIONS = dict(batch_axis=0, rtol=1e-9, atol=0.0, max_steps=300)
THETA, _ = cells.tanh_parameters(N, radius=0.95)

QUICK = ("picard", "anderson", pytest.param("broyden", marks=pytest.mark.slow))


def injections(batch=BATCH, n=N, seed=1):
    """Samples from slow to fast (large ones saturate tanh's), in no order."""
    rng = np.random.default_rng(seed)
    return rng.permuted(
        rng.normal(size=(batch, n)) * np.geomspace(0.01, 30.0, batch)[:, None], axis=0
    )


def solve(solver, theta, x, f=cells.tanh_cell, **options):
    return deqjax.fixed_point(f, jnp.zeros_like(x), theta, x, solver=solver, **(OPTIONS | options))


@functools.cache
def plain_of(name):
    return jax.jit(lambda x: solve(cells.SMALL[name], THETA, x))(injections())


def assert_alike(got, want, *, slack=0, extra=1):
    """The same answer per sample, at the cost of `extra` evaluations: the check at the end."""
    assert jax.tree.map(jnp.shape, got.z) == jax.tree.map(jnp.shape, want.z)
    assert cells.relative(got.z, want.z) < 1e-7
    np.testing.assert_array_equal(got.stats.status, want.stats.status)
    np.testing.assert_array_equal(got.stats.converged, want.stats.converged)
    np.testing.assert_allclose(got.stats.steps, want.stats.steps, atol=slack)
    np.testing.assert_array_equal(
        got.stats.f_evals - got.stats.steps, want.stats.f_evals - want.stats.steps + extra
    )


# ------------------------------------------------------------------------------- Compacted


@pytest.mark.parametrize("name", QUICK)
def test_every_sample_takes_the_steps_that_it_would_take_without(name):
    want = plain_of(name)
    assert np.unique(want.stats.steps).size >= 3
    got = jax.jit(lambda x: solve(Compacted(cells.SMALL[name], stages=2), THETA, x))(injections())
    # Other matrix shapes round differently, which may cost an accelerated solver one step.
    assert_alike(got, want, slack=0 if name == "picard" else 1)
    assert cells.relative(got.z, cells.tanh_solution(THETA, injections())) < 1e-7
    fz = cells.tanh_cell(np.asarray(got.z), THETA, injections())
    np.testing.assert_allclose(
        got.stats.residual, np.linalg.norm(fz - got.z, axis=1), rtol=1e-4, atol=1e-15
    )


@pytest.mark.parametrize("name", QUICK)
def test_gradients_are_exact_and_the_probe_reports(name):
    x = injections()

    def gradient(solver):
        def loss(theta, x, probe):
            return cells.loss_of(solve(solver, theta, x, rtol=1e-11, adjoint_probe=probe).z)

        probe = deqjax.adjoint_probe(BATCH, jnp.float64)
        return jax.jit(jax.grad(loss, (0, 1, 2)))(THETA, x, probe)

    *got, stats = gradient(Compacted(cells.SMALL[name], stages=(5, 2)))
    z = cells.tanh_solution(THETA, x)
    assert cells.relative(tuple(got), cells.tanh_gradient(THETA, z, cells.cotangent_of(z))) < 1e-8
    *_, plain = gradient(cells.SMALL[name])
    assert np.unique(plain.steps).size > 2
    np.testing.assert_allclose(stats.steps, plain.steps, atol=0 if name == "picard" else 1)
    np.testing.assert_array_equal(stats.f_evals - stats.steps, plain.f_evals - plain.steps + 1)
    assert np.all(stats.converged == 1) and np.all(stats.status == Status.CONVERGED)
    assert np.all(np.asarray(stats.rel_residual) <= 2e-11)


def test_second_derivatives():
    x = injections(5)

    def penalty(theta, solver):
        value = lambda x: cells.loss_of(solve(solver, theta, x, rtol=1e-11).z)
        return jnp.sum(jax.grad(value)(x) ** 2)

    got, want = (
        jax.jit(jax.grad(functools.partial(penalty, solver=solver)))(THETA)
        for solver in (Compacted("picard", stages=(2,)), "picard")
    )
    assert cells.relative(got, want) < 1e-7


@pytest.mark.parametrize("axis", [-1, pytest.param(1, marks=pytest.mark.slow)])
def test_any_batch_axis(axis):
    """On (features, batch), with the batch as large as nothing else."""
    x = injections()
    transposed = lambda z, theta, x: cells.tanh_cell(z.T, theta, x.T).T

    def loss(x):
        solver = Compacted("picard", stages=2)
        sol = solve(solver, THETA, x, f=transposed, batch_axis=axis, rtol=1e-11)
        return cells.loss_of(sol.z.T), sol

    (_, sol), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(x.T)
    z = cells.tanh_solution(THETA, x)
    assert sol.stats.steps.shape == (BATCH,) and cells.relative(sol.z, z.T) < 1e-9
    assert cells.relative(grad, cells.tanh_gradient(THETA, z, cells.cotangent_of(z))[1].T) < 1e-8


def test_trace():
    x = injections()
    got, want = (
        jax.jit(lambda x, s=s: solve(s, THETA, x, trace=True).stats)(x)
        for s in (Compacted("picard", stages=2), "picard")
    )
    assert got.trace.shape == (301, BATCH)
    np.testing.assert_array_equal(np.isnan(got.trace), np.isnan(want.trace))
    np.testing.assert_allclose(got.trace, want.trace, rtol=1e-4, atol=1e-13)


def test_pytrees():
    """Of states, and of arguments, some of whose leaves carry the batch."""
    x = injections()
    f = cells.on_pytrees(lambda z, args: cells.tanh_cell(z, args["theta"], args["x"][0]))

    def run(x):
        return deqjax.fixed_point(
            f,
            cells.split(jnp.zeros_like(x)),
            {"theta": THETA, "x": (x, None)},
            solver=Compacted(cells.SMALL["broyden"], stages=(3,)),
            **OPTIONS,
        )

    sol = jax.jit(run)(x)
    assert (
        np.all(sol.stats.converged)
        and cells.relative(cells.join(sol.z), cells.tanh_solution(THETA, x)) < 1e-7
    )
    np.testing.assert_allclose(sol.stats.steps, plain_of("broyden").stats.steps, atol=1)


@pytest.mark.parametrize(
    ("batch", "stages", "sizes"),
    [
        (0, 2, ()),
        (1, 2, ()),
        (2, 6, (1,)),
        (5, 3, (2, 1)),
        (5, (40, 5, 4, 1), (4, 1)),
        (5, 0, ()),
        (5, [3], (3,)),
    ],
)
def test_any_batch_size_and_any_stages(batch, stages, sizes):
    solver = Compacted("picard", stages=stages)
    assert solver.batch_sizes(batch) == sizes
    x = injections(batch) if batch else np.zeros((0, N))
    got, want = (jax.jit(lambda x, s=s: solve(s, THETA, x))(x) for s in (solver, "picard"))
    assert_alike(got, want, extra=1 if sizes else 0)


@pytest.mark.parametrize("place", ["at z0", "before the first stage", "in the second stage"])
def test_max_steps_ends_every_stage(place):
    x = injections()
    slowest, second, *_ = sorted(np.asarray(plain_of("picard").stats.steps), reverse=True)
    assert second < slowest
    max_steps = {"at z0": 0, "in the second stage": int(second)}.get(place, 2)
    got, want = (
        jax.jit(lambda x, s=s: solve(s, THETA, x, max_steps=max_steps))(x)
        for s in (Compacted("picard", stages=(5, 3)), "picard")
    )
    assert_alike(got, want)
    unfinished = int(np.sum(want.stats.status == Status.MAX_STEPS))
    assert 1 <= unfinished <= 3 if place == "in the second stage" else unfinished > 5


def test_failing_samples_are_left_behind_too():
    """NaN at once, and divergence in the last stage; the others are as they were."""
    rates = np.array([[0.1], [np.nan], [0.5], [1.7], [0.9], [0.3]])
    got, want = (
        jax.jit(
            lambda r, s=s: deqjax.fixed_point(
                lambda z, r: r * z + 1.0, jnp.ones((6, 2)), r, solver=s, **OPTIONS
            )
        )(rates)
        for s in (Compacted("picard", stages=2), "picard")
    )
    assert_alike(got, want)
    good = Status.CONVERGED
    status = [good, Status.NONFINITE, good, Status.DIVERGED, good, good]
    np.testing.assert_array_equal(got.stats.status, status)


def test_a_poisoned_sample_leaves_the_gradients_of_the_others():
    x = injections()
    grad = jax.jit(jax.grad(lambda x: cells.loss_of(solve(Compacted("picard"), THETA, x).z)))
    clean, keep = grad(x), np.arange(BATCH) != 2
    x[2, 1] = np.nan
    assert cells.relative(grad(x)[keep], clean[keep]) < 1e-7


def test_under_vmap():
    x = np.stack([injections(5), injections(5, seed=4)])
    solver = Compacted("picard", stages=(3, 1))
    got = jax.jit(jax.vmap(lambda x: solve(solver, THETA, x)))(x)
    assert got.stats.steps.shape == (2, 5) and np.all(got.stats.converged)
    for i in range(2):
        want = jax.jit(lambda x: solve("picard", THETA, x))(x[i])
        assert_alike(jax.tree.map(lambda a, i=i: a[i], (got,))[0], want)


def test_without_a_batch_it_is_refused():
    _, x = cells.tanh_parameters(N)
    with pytest.raises(ValueError, match=r"Compacted\(\).*batch_axis=None.*pass batch_axis"):
        solve(Compacted("picard"), THETA, x, batch_axis=None)


def test_resume_continues_with_the_history():
    x = injections(5)
    solver = cells.SMALL["anderson"]
    first = jax.jit(lambda x: solve(solver, THETA, x, max_steps=4))(x)

    def again(solver, resume):
        return jax.jit(
            lambda z, resume: deqjax.fixed_point(
                cells.tanh_cell, z, THETA, x, solver=solver, resume=resume, **OPTIONS
            )
        )(first.z, resume)

    cold, want = again(solver, None), again(solver, first.state)
    got = again(Compacted(solver, stages=(3,)), first.state)
    assert np.any(cold.stats.steps != want.stats.steps)  # the history makes a difference
    assert_alike(got, want, slack=1)


# ------------------------------------------------------------------------------- its cost


def counted(f, log):
    """f that logs the batch size of every evaluation that is really made."""

    def recorded(z, *args):
        jax.debug.callback(lambda _, n=z.shape[0]: log.append(n), z[0, 0])
        return f(z, *args)

    return recorded


def test_finished_samples_are_not_evaluated():
    x, log = injections(8), []
    solver = Compacted("picard", stages=(4, 1))
    sol = jax.jit(lambda x: solve(solver, THETA, x, f=counted(cells.tanh_cell, log)))(x)
    jax.effects_barrier()
    steps = np.sort(np.asarray(sol.stats.steps))[::-1]
    # Until four are left, then until one is; the first value and the last check are on all.
    want = {8: 2 + steps[4], 4: steps[1] - steps[4], 1: steps[0] - steps[1]}
    assert min(want.values()) > 0
    assert {n: log.count(n) for n in set(log)} == want


def test_the_adjoint_does_not_multiply_finished_samples():
    """The same count of the products with Jᵀ."""
    x, log = injections(8), []

    @jax.custom_vjp
    def tap(z):
        return z

    def pulled(_, v):
        jax.debug.callback(lambda _, n=v.shape[0]: log.append(n), v[0, 0])
        return (v,)

    tap.defvjp(lambda z: (z, None), pulled)

    def loss(x, probe):
        solver = Compacted("picard", stages=(4, 1))
        f = lambda z, theta, x: cells.tanh_cell(tap(z), theta, x)
        return cells.loss_of(solve(solver, THETA, x, f=f, adjoint_probe=probe).z)

    stats = jax.jit(jax.grad(loss, 1))(x, deqjax.adjoint_probe(8))
    jax.effects_barrier()
    steps = np.sort(np.asarray(stats.steps))[::-1]
    want = {8: 2 + steps[4], 4: steps[1] - steps[4], 1: steps[0] - steps[1]}
    assert min(want.values()) > 0
    assert {n: log.count(n) for n in set(log)} == want


# ------------------------------------------------------------------------------- its arguments

# Cells on a batch of N samples of N features, so that shapes alone say nothing; which of the
# arguments carry the batch; the arguments.
X = injections(N)
W = 0.5 * np.eye(N) + 0.05
TABLE = np.random.default_rng(5).normal(size=(N, N))
CELLS = {
    "a square weight": (lambda z, w, x: jnp.tanh(z @ w) + x, [False, True], (W, X)),
    "a bias": (lambda z, b, x: 0.5 * jnp.sin(z + b) + x, [False, True], (X[0], X)),
    "a scale a sample": (
        lambda z, s, x: jax.nn.sigmoid(s)[:, None] * jnp.sin(z) + x,
        [True, True],
        (X[:, 0], X),
    ),
    "a table": (
        lambda z, t, x: jax.nn.softmax(z @ t.T) @ t * 0.3 + x,
        [False, True],
        (TABLE, X),
    ),
    "rows of a table": (
        lambda z, t, i: 0.5 * jnp.sin(z) + t[i],
        [False, True],
        (TABLE, np.array([2, 0, 0, 1])),
    ),
    "unused": (lambda z, w, x: 0.5 * jnp.sin(z) + x, [False, True], (X, X)),
    "numbers": (lambda z, c, x: c * jnp.sin(z) + x, [False, True], (0.5, X)),
    "a key": (
        lambda z, key, x: 0.5 * jnp.sin(z) + x + jax.random.normal(key, (N,)),
        [False, True],
        (jax.random.key(3), X),
    ),
    "keys": (
        lambda z, keys, x: 0.5 * jnp.sin(z) + x + jax.vmap(jax.random.normal)(keys)[:, None],
        [True, True],
        (jax.random.split(jax.random.key(3), N), X),
    ),
    # Neither fits without the other.
    "keys and values": (
        lambda z, k, v, x: jax.nn.softmax(z @ k.T) @ v * 0.3 + x,
        [False, False, True],
        (TABLE, TABLE[::-1], X),
    ),
}


@pytest.mark.parametrize("case", CELLS)
def test_which_arguments_carry_the_batch(case):
    f, carries, args = CELLS[case]
    assert batched_args(f, jnp.zeros((N, N)), jax.tree.map(jnp.asarray, args), 0) == carries


@pytest.mark.parametrize("case", ["a square weight", "a table", "keys"])
def test_solving_with_such_arguments(case):
    f, _, args = CELLS[case]

    def run(solver):
        solve = lambda *args: deqjax.fixed_point(
            f, jnp.zeros((N, N)), *args, solver=solver, **OPTIONS
        )
        return jax.jit(solve)(*args)

    got, want = run(Compacted("picard", stages=2)), run("picard")
    assert np.unique(want.stats.steps).size > 1
    assert_alike(got, want)


def test_closing_over_the_batch_gets_a_sentence():
    x = injections()
    with pytest.raises(ValueError, match=r"part of the batch.*batch_axis=0.*\*args") as error:
        deqjax.fixed_point(
            lambda z: cells.tanh_cell(z, THETA, x),
            jnp.zeros_like(x),
            solver=Compacted(),
            batch_axis=0,
        )
    assert "\n" not in str(error.value) and error.value.__cause__ is None


def test_closing_over_parameters_is_fine():
    x = injections()

    def loss(theta):
        f = lambda z, x: cells.tanh_cell(z, theta, x)
        sol = deqjax.fixed_point(
            f, jnp.zeros_like(x), x, solver=Compacted(stages=1), **(OPTIONS | {"rtol": 1e-11})
        )
        return cells.loss_of(sol.z)

    z = cells.tanh_solution(THETA, x)
    want = cells.tanh_gradient(THETA, z, cells.cotangent_of(z))[0]
    assert cells.relative(jax.jit(jax.grad(loss))(THETA), want) < 1e-8


# ------------------------------------------------------------------------------- its check


def random_mask(z, theta, x):
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, z.shape)
    return cells.tanh_cell(jnp.where(mask, z, 0.0), theta, x)


def batch_mean(z, theta, x):
    return cells.tanh_cell(z, theta, x) - 0.3 * jnp.mean(z, axis=0)


@pytest.mark.parametrize("f", [random_mask, batch_mean])
def test_samples_that_are_not_independent_are_reported(f):
    x = injections()
    sol = jax.jit(lambda x: solve(Compacted("picard", stages=(6, 3)), THETA, x, f=f))(x)
    status = np.asarray(sol.stats.status)
    holds = np.linalg.norm(f(sol.z, THETA, x) - sol.z, axis=1) <= 1e-7
    assert not holds.all()
    np.testing.assert_array_equal(status == Status.CONVERGED, holds)
    assert np.all(status[~holds] == Status.INCONSISTENT)
    np.testing.assert_array_equal(sol.stats.converged, holds)
    with pytest.raises(deqjax.SolveError, match=r"of 7 solves failed.*independent.*Compacted"):
        sol.raise_unless_converged()


def test_the_same_mask_as_an_argument_is_fine():
    x = injections()
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
    f = lambda z, theta, args: cells.tanh_cell(jnp.where(args[1], z, 0.0), theta, args[0])
    sol = jax.jit(
        lambda *args: deqjax.fixed_point(
            f, jnp.zeros_like(x), THETA, args, solver=Compacted("picard"), **OPTIONS
        )
    )(x, mask)
    assert sol.raise_unless_converged() is sol


# ------------------------------------------------------------------------------- WarmStart


@pytest.mark.parametrize("name", [*QUICK, "newton_krylov"])
def test_the_solver_goes_on_where_the_start_stopped(name):
    """As if started there, without evaluating f there again; the steps of both are counted."""
    x, solver = injections(), cells.SMALL.get(name, name)
    z = jnp.zeros_like(x)
    for _ in range(3):
        z = cells.tanh_cell(z, THETA, x)
    fresh = jax.jit(
        lambda z: deqjax.fixed_point(cells.tanh_cell, z, THETA, x, solver=solver, **OPTIONS)
    )(z)
    warm = jax.jit(lambda x: solve(WarmStart(solver, "picard", steps=3), THETA, x))(x)
    np.testing.assert_array_equal(warm.stats.steps, fresh.stats.steps + 3)
    np.testing.assert_array_equal(warm.stats.f_evals, fresh.stats.f_evals + 3)
    assert np.all(warm.stats.converged) and cells.relative(warm.z, fresh.z) < 1e-8


def test_a_cheap_start_saves_the_expensive_solver_work():
    x = injections()
    cold, warm = (
        jax.jit(lambda x, s=s: solve(s, THETA, x))(x).stats
        for s in ("newton_krylov", WarmStart("newton_krylov", cells.SMALL["anderson"], steps=8))
    )
    assert np.all(cold.converged) and np.all(warm.converged)
    assert np.sum(np.maximum(np.asarray(warm.steps) - 8, 0)) < np.sum(cold.steps)
    assert np.sum(warm.f_evals) < np.sum(cold.f_evals)


@pytest.mark.parametrize("max_steps", [0, 1, 2, 5])
def test_max_steps_counts_both(max_steps):
    _, x = cells.tanh_parameters(N)
    solver = WarmStart(cells.SMALL["anderson"], "picard", steps=2)
    sol = jax.jit(
        lambda x: solve(solver, THETA, x, batch_axis=None, max_steps=max_steps, trace=True)
    )(x)
    assert int(sol.stats.steps) == max_steps and int(sol.stats.f_evals) == max_steps + 1
    assert int(sol.stats.status) == Status.MAX_STEPS
    assert sol.stats.trace.shape == (max_steps + 1,) and np.all(np.isfinite(sol.stats.trace))


def test_a_start_that_finishes_is_the_whole_solve():
    f = lambda z, x: 1e-6 * z + x
    sol = deqjax.fixed_point(
        f, jnp.zeros(2), np.ones(2), solver=WarmStart("broyden", "picard", steps=9), rtol=1e-9
    )
    assert bool(sol.stats.converged) and int(sol.stats.steps) == 2


def test_starts_in_turn():
    """Each solver of a nested warm start takes its own steps: Picard, Anderson, then Broyden."""
    _, x = cells.tanh_parameters(N)
    nested = WarmStart(WarmStart("broyden", cells.SMALL["anderson"], steps=4), "picard", steps=3)
    sol = solve(nested, THETA, x, batch_axis=None, max_steps=7)
    first = solve("picard", THETA, x, batch_axis=None, max_steps=3, rtol=0.0)
    then = deqjax.fixed_point(
        cells.tanh_cell,
        first.z,
        THETA,
        x,
        solver=cells.SMALL["anderson"],
        rtol=0.0,
        atol=0.0,
        max_steps=4,
    )
    assert cells.relative(sol.z, then.z) < 1e-12


def test_a_function_as_the_start():
    """It is used, and no gradient reaches it; the gradient to the rest is exact."""
    x = injections()
    z_star = cells.tanh_solution(THETA, x)

    def loss(theta, guess, x):
        solver = WarmStart(cells.SMALL["broyden"], start=lambda z0: z0 + guess * z_star)
        sol = solve(solver, theta, x, rtol=1e-11)
        return cells.loss_of(sol.z), sol.stats.steps

    run = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (_, steps), (theta_bar, guess_bar) = run(THETA, 1.0, x)
    np.testing.assert_array_equal(steps, 0)
    (_, cold), _ = run(THETA, 0.0, x)
    assert np.all(cold > 0)
    assert float(guess_bar) == 0.0
    want = cells.tanh_gradient(THETA, z_star, cells.cotangent_of(z_star))[0]
    assert cells.relative(theta_bar, want) < 1e-8


def test_a_warm_start_is_not_the_adjoints():
    """u = Jᵀu + v has nothing to do with the guess for z: it is solved from v, by the solver."""
    _, x = cells.tanh_parameters(N)

    def report(solver):
        loss = lambda p: cells.loss_of(solve(solver, THETA, x, batch_axis=None, adjoint_probe=p).z)
        return jax.jit(jax.grad(loss))(deqjax.adjoint_probe(dtype=jnp.float64))

    plain = report(cells.SMALL["broyden"])
    for start in ("picard", lambda z0: z0 + 100.0):
        assert float(report(WarmStart(cells.SMALL["broyden"], start, steps=5)).steps) == plain.steps


@pytest.mark.parametrize(
    "solver",
    [
        Compacted(WarmStart(cells.SMALL["broyden"], "picard", steps=4), stages=(3,)),
        WarmStart(Compacted(cells.SMALL["broyden"], stages=(3,)), "picard", steps=4),
    ],
    ids=["start inside", "start outside"],
)
def test_nesting(solver):
    x = injections()
    want = jax.jit(lambda x: solve(WarmStart(cells.SMALL["broyden"], "picard", steps=4), THETA, x))(
        x
    )

    def loss(theta, x):
        sol = solve(solver, theta, x)
        return cells.loss_of(sol.z), sol

    (_, got), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(THETA, x)
    assert_alike(got, want, slack=1)
    z = cells.tanh_solution(THETA, x)
    assert cells.relative(grads, cells.tanh_gradient(THETA, z, cells.cotangent_of(z))) < 1e-6


def test_each_wrapper_may_hold_the_tolerances():
    outer = Compacted("picard", stages=1, rtol=1e-3, max_steps=9)
    inner = Compacted(deqjax.Picard(rtol=1e-3, max_steps=9), stages=1)
    assert outer == inner and hash(outer) == hash(inner)
    assert (outer.inner.rtol, inner.rtol, inner.max_steps) == (1e-3, 1e-3, 9)
    assert Compacted(WarmStart(outer)).with_options(rtol=1e-4).inner.inner.inner.rtol == 1e-4


# ------------------------------------------------------------------------------- wrong options


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Compacted("broydn"), ("Compacted(solver)='broydn'", "did you mean 'broyden'?")),
        (lambda: Compacted(3), ("Compacted(solver)", "int")),
        (lambda: Compacted(deqjax.Picard), ("write Picard()",)),
        (lambda: Compacted(stages=-1), ("stages", ">= 0", "-1")),
        (lambda: Compacted(stages=1.5), ("stages", "integer", "1.5")),
        (lambda: Compacted(stages="2"), ("stages", "integer", "'2'")),
        (lambda: Compacted(stages=(4, 8)), ("stages", "decreasing", "(4, 8)")),
        (lambda: Compacted(stages=(4, 4)), ("stages", "decreasing", "(4, 4)")),
        (lambda: Compacted(stages=(4, 0)), ("stages", ">= 1", "0")),
        (lambda: Compacted(stages=(4, 2.5)), ("stages", "integer", "2.5")),
        (lambda: Compacted(rtol=-1.0), ("rtol", "-1.0")),
        (lambda: WarmStart("broydn"), ("WarmStart(solver)='broydn'", "did you mean 'broyden'?")),
        (lambda: WarmStart(start="pikard"), ("WarmStart(start)='pikard'", "'picard'")),
        (lambda: WarmStart(start=3), ("WarmStart(start)", "int")),
        (lambda: WarmStart(start=deqjax.Picard), ("write Picard()",)),
        (lambda: WarmStart(steps=0), ("steps", ">= 1", "0")),
        (lambda: WarmStart(steps=2.0), ("steps", "integer", "2.0")),
        (lambda: WarmStart(max_steps=-1), ("max_steps", "-1")),
    ],
)
def test_wrong_options(make, words):
    with pytest.raises((TypeError, ValueError)) as error:
        make()
    for word in words:
        assert word in str(error.value), str(error.value)
    assert "\n" not in str(error.value) and error.value.__cause__ is None


@pytest.mark.parametrize(
    ("start", "words"),
    [(lambda z: z[:-1], ("shape",)), (lambda z: (z, z), ("structure",))],
    ids=["shape", "structure"],
)
def test_a_start_must_keep_the_state(start, words):
    """In one sentence, before f sees it."""
    with pytest.raises((TypeError, ValueError)) as error:
        deqjax.fixed_point(
            lambda z: 0.5 * jnp.sin(z) + 1.0, jnp.zeros(4), solver=WarmStart("picard", start=start)
        )
    assert all(word in str(error.value) for word in (*words, "start")), str(error.value)


@pytest.mark.parametrize(
    ("solver", "adjoint", "words"),
    [
        (Compacted("broyden"), "shine", ("'shine'", "'compacted'", "solver='broyden'")),
        (WarmStart("broyden"), "shine", ("'shine'", "'warm_start'", "solver='broyden'")),
        (Compacted("picard"), "reversible", ("'reversible'", "'compacted'", "solver='picard'")),
        (Compacted("newton_krylov"), "unrolled", ("'unrolled'", "use adjoint='implicit'")),
        (
            WarmStart("anderson", "newton_krylov"),
            "unrolled",
            ("'unrolled'", "use adjoint='implicit'"),
        ),
    ],
)
def test_adjoints_that_do_not_fit(solver, adjoint, words):
    with pytest.raises(ValueError) as error:
        solve(solver, THETA, injections(), adjoint=adjoint)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_adjoint_solver_with_other_stages():
    """The adjoint may be compacted otherwise than the forward solve, or alone."""
    x = injections(5)
    z = cells.tanh_solution(THETA, x)
    want = cells.tanh_gradient(THETA, z, cells.cotangent_of(z))[1]
    for solver in ("picard", Compacted("picard", stages=(3,))):
        adjoint_solver = Compacted("picard", stages=(2,))
        value = lambda x, s=solver, a=adjoint_solver: cells.loss_of(
            solve(s, THETA, x, rtol=1e-11, adjoint_solver=a).z
        )
        assert cells.relative(jax.jit(jax.grad(value))(x), want) < 1e-8


@pytest.mark.parametrize("options", [dict(adjoint="unrolled"), dict(forward_mode=True)])
def test_other_ways_to_differentiate_are_refused(options):
    with pytest.raises(ValueError, match=r"Compacted\(\) does not go with .*pass the solver"):
        solve(Compacted("picard", stages=1), THETA, injections(3), **options)
