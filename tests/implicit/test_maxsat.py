"""The MAXSAT layer against scalar sweeps, closed forms and central differences."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as given_cases
from hypothesis import settings
from hypothesis import strategies as st

import deqjax
from deqjax import SolveError, SolveWarning, Status
from deqjax.implicit import _mixing, maxsat

from .maxsat_twin import objective, sweeps

KEY = jax.random.key(5)
N, AUX, M, K, BATCH = 9, 8, 24, 7, 4
TIGHT = dict(rtol=1e-12, max_sweeps=20_000, damping=0.0, adjoint_rtol=1e-10, adjoint_max_steps=2000)
ALL_TIGHT = tuple(TIGHT.items())


def problem(dtype=np.float64):
    """Boards of binary values and of probabilities, each with a mask of its own."""
    rng = np.random.default_rng(0)
    S = rng.normal(size=(N + AUX + 1, M))
    z, given = rng.uniform(0.05, 0.95, (BATCH, N)), rng.random((BATCH, N)) < 0.5
    z[0] = np.round(z[0])
    return jnp.asarray(S, dtype), jnp.asarray(z, dtype), jnp.asarray(given)


solve = partial(maxsat, key=KEY, aux=AUX, k=K)
report_of = jax.jit(solve, static_argnames=("max_sweeps", "rtol"))


def weights(z):
    """A loss whose cotangent differs from entry to entry."""
    return jnp.sum(z**2 * jnp.cos(jnp.arange(z.size).reshape(z.shape)))


@partial(jax.jit, static_argnames="options")
def gradients(S, z, given, probe, options=ALL_TIGHT):
    def loss(S, z, probe):
        return weights(solve(S, z, given, adjoint_probe=probe, **dict(options)).z)

    return jax.value_and_grad(loss, (0, 1, 2))(S, z, probe)


def relative(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


# ------------------------------------------------------------------------------- values


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("count", [1, 3])
def test_blocks_are_the_scalar_sweep(count):
    S, z, given = problem()
    assert len(S) % _mixing.BLOCK  # a block that is not full
    start = jax.jit(_mixing.start, static_argnums=(3, 4))
    begin = start(KEY[None], z, given, len(S), K).v
    free = np.asarray(_mixing.is_free(given, len(S)))
    sol = report_of(S, z, given, max_sweeps=count, rtol=0.0)
    for b in range(BATCH):
        V, rel = sweeps(np.asarray(S), begin[:, b], free[:, b], count)
        np.testing.assert_allclose(sol.state[b], V, atol=1e-12, rtol=0)
        np.testing.assert_allclose(sol.stats.rel_residual[b], rel, rtol=1e-10)
        inputs = np.arccos(-V[1 : N + 1] @ V[0]) / np.pi
        want = np.where(given[b], z[b], inputs)
        np.testing.assert_allclose(sol.z[b], want, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("double_precision")
def test_the_truth_and_what_is_given_stay_and_the_objective_falls():
    S, z, given = problem()
    values = []
    for count in (1, 2, 4, 40):
        sol = report_of(S, z, given, max_sweeps=count, rtol=0.0)
        np.testing.assert_array_equal(sol.z[given], z[given])
        np.testing.assert_allclose(np.linalg.norm(sol.state, axis=-1), 1, rtol=1e-14)
        seen = -np.sum(sol.state[:, 1 : N + 1] * sol.state[:, :1], axis=-1)
        np.testing.assert_allclose(seen[given], np.cos(np.pi * z[given]), atol=1e-14)
        values.append([objective(np.asarray(S), np.asarray(V)) for V in sol.state])
    assert (np.diff(values, axis=0) < 0).all()


@pytest.mark.usefixtures("double_precision")
def test_residuals_are_what_the_docstring_says():
    S, z, given = problem()
    before, after = (report_of(S, z, given, max_sweeps=t, rtol=0.0) for t in (5, 6))
    fall = [
        objective(np.asarray(S), np.asarray(a)) - objective(np.asarray(S), np.asarray(b))
        for a, b in zip(before.state, after.state, strict=True)
    ]
    np.testing.assert_allclose(after.stats.residual**2, fall, rtol=1e-9)


@pytest.mark.usefixtures("double_precision")
def test_each_sample_stops_by_itself():
    S, z, given = problem()
    sol = report_of(S, z, given, rtol=1e-5, max_sweeps=2000)
    assert sol.stats.converged.all()
    assert len(set(sol.stats.steps.tolist())) > 2
    for b in range(BATCH):
        alone = report_of(S, z[b : b + 1], given[b : b + 1], rtol=1e-5, max_sweeps=2000)
        assert alone.stats.steps[0] == sol.stats.steps[b]
        np.testing.assert_allclose(alone.z[0], sol.z[b], atol=1e-12)
    V, rel = sol.state, sol.stats.rel_residual
    assert (rel <= 1e-5).all()
    short = report_of(S, z, given, max_sweeps=3, rtol=1e-5)
    assert (short.stats.status == Status.MAX_STEPS).all() and (short.stats.steps == 3).all()
    assert V.shape == (BATCH, len(S), K)


def test_a_key_decides_and_places_do_not():
    S, z, given = problem(np.float32)
    one, same = report_of(S, z, given), report_of(S, z, given)
    np.testing.assert_array_equal(one.state, same.state)
    other = maxsat(S, z, given, key=jax.random.key(6), aux=AUX, k=K, max_sweeps=40)
    assert relative(other.state, one.state) > 0.1
    moved = report_of(S, z[::-1], given[::-1])
    np.testing.assert_allclose(moved.z[::-1], one.z, atol=1e-5)


def test_a_key_each_and_raw_keys():
    """Each sample is what its key alone gives; raw keys are the same as typed ones."""
    S, z, given = problem(np.float32)
    keys = jax.random.split(KEY, BATCH)
    several = maxsat(S, z, given, key=keys, aux=AUX, k=K)
    for b in (0, 2):
        alone = maxsat(S, z[b : b + 1], given[b : b + 1], key=keys[b], aux=AUX, k=K)
        np.testing.assert_allclose(several.state[b], alone.state[0], atol=1e-3)
    raw = maxsat(S, z, given, key=jax.random.key_data(keys), aux=AUX, k=K)
    np.testing.assert_array_equal(raw.z, several.z)


@pytest.mark.parametrize("size", [2.0**-90, 2.0**90])
def test_the_units_of_S_do_not_matter(size):
    S, z, given = problem(np.float32)
    probe = deqjax.adjoint_probe(BATCH)
    options = (("max_sweeps", 30),)
    want, got = (gradients(s * S, z, given, probe, options) for s in (1, size))
    assert got[0] == want[0]
    np.testing.assert_array_equal(np.asarray(got[1][0]) * size, want[1][0])
    np.testing.assert_array_equal(got[1][1], want[1][1])


# ------------------------------------------------------------------------------- gradients


@pytest.mark.usefixtures("double_precision")
def test_gradients_are_central_differences():
    """To S, of binary boards and of probabilities, and to probabilities. (At binary values a board
    can turn about v₀, and where it turns to depends on the step: see the closed form below.)"""
    S, z, given = problem()
    _, (S_bar, z_bar, report) = gradients(S, z, given, deqjax.adjoint_probe(BATCH, jnp.float64))
    assert report.converged.all() and (report.rel_residual < 1e-9).all()
    assert not z_bar[~given].any()
    values = jax.jit(lambda S, z: weights(solve(S, z, given, **TIGHT).z))
    rng, step = np.random.default_rng(2), 1e-6
    for _ in range(3):
        d = rng.normal(size=S.shape)
        want = (values(S + step * d, z) - values(S - step * d, z)) / (2 * step)
        assert abs(np.sum(S_bar * d) - want) < 1e-6 * np.linalg.norm(S_bar)
        d = rng.normal(size=z.shape)
        d[0] = 0
        want = (values(S, z + step * d) - values(S, z - step * d)) / (2 * step)
        assert abs(np.sum(z_bar * d) - want) < 1e-6 * np.linalg.norm(z_bar[1:])


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
def test_one_free_variable_in_closed_form():
    """g = s_b·s_0 v₀ + s_b·s_a v_a, so cos πz_b = g·v₀/‖g‖: cosines with their signs, and no π too
    many, whether a is true, false or neither."""
    S = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)))
    given = jnp.array([[True, False]] * 4)
    z = jnp.array([[0.0, 0.5], [0.3, 0.5], [0.8, 0.5], [1.0, 0.5]])

    def closed(S, a):
        truth, by_a = S[2] @ S[0], S[2] @ S[1]
        v_a = jnp.stack([-jnp.cos(jnp.pi * a), jnp.sin(jnp.pi * a)], axis=-1)
        g = truth * jnp.array([1.0, 0.0]) + by_a * v_a
        return jnp.arctan2(jnp.abs(g[..., 1]), g[..., 0]) / jnp.pi

    layer = lambda S, z: maxsat(S, z, given, key=KEY, k=3, damping=0.0).z[:, 1]
    np.testing.assert_allclose(layer(S, z), closed(S, z[:, 0]), atol=1e-14)
    middle = jnp.array([0.0, 1.0, 1.0, 0.0])  # at a = 0 and 1, b is at a cone point
    got = jax.grad(lambda S, z: layer(S, z) @ middle, (0, 1))(S, z)
    want = jax.grad(lambda S, a: closed(S, a) @ middle, (0, 1))(S, z[:, 0])
    np.testing.assert_allclose(got[0], want[0], atol=1e-12)
    np.testing.assert_allclose(got[1][:, 0], want[1] * middle, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
def test_damping_is_as_wrong_as_it_says():
    S, z, given = problem()
    probe = deqjax.adjoint_probe(BATCH, jnp.float64)

    def at(damping):
        return gradients(S, z, given, probe, tuple((TIGHT | dict(damping=damping)).items()))[1]

    exact, (by_little, _, small), (by_much, _, large) = at(0.0), at(1e-6), at(1e-2)
    assert relative(by_little, exact[0]) < 1e-3
    assert relative(by_much, exact[0]) > 1e-2
    assert (small.status == Status.CONVERGED).all()
    assert (large.status == Status.LIMITED).all() and not large.converged.any()


def test_float32_gradients():
    S, z, given = problem(np.float32)
    options = (("rtol", 1e-6), ("max_sweeps", 3000), ("adjoint_rtol", 1e-4))
    _, got = gradients(S, z, given, deqjax.adjoint_probe(BATCH), options)
    with jax.enable_x64(True):
        exact = gradients(*problem(), deqjax.adjoint_probe(BATCH, jnp.float64))[1]
    assert got[0].dtype == got[1].dtype == jnp.float32
    assert relative(got[0], exact[0]) < 1e-3
    assert relative(got[1], exact[1]) < 1e-3
    assert got[2].converged.all()


def test_the_adjoint_reports_a_solve_that_fell_short():
    S, z, given = problem(np.float32)
    options = (("max_sweeps", 400), ("adjoint_rtol", 1e-5), ("adjoint_max_steps", 2))
    _, (_, _, report) = gradients(S, z, given, deqjax.adjoint_probe(BATCH), options)
    assert (report.status == Status.MAX_STEPS).all() and (report.steps == 2).all()
    assert (report.rel_residual > 1e-5).all()
    assert (report.rel_residual <= 1).all()  # the best, and U = 0 is one


def test_an_answer_at_a_cone_point_has_no_derivative_and_says_so():
    """Where the relaxation is integral, z is 0 or 1 and the angle is at its end."""
    S = jnp.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 0.0]])
    z, given = jnp.array([[0.0, 0.5]]), jnp.array([[True, False]])

    def loss(S, probe):
        sol = maxsat(S, z, given, key=KEY, adjoint_probe=probe)
        return sol.z[0, 1], sol

    probe = deqjax.adjoint_probe(1)
    (b_is, sol), (S_bar, report) = jax.value_and_grad(loss, (0, 1), has_aux=True)(S, probe)
    assert b_is == 1 and sol.stats.converged.all()
    assert not S_bar.any() and report.status == Status.LIMITED


# ------------------------------------------------------------------------------- failures


def test_what_is_not_given_may_be_anything():
    S, z, given = problem(np.float32)
    z_nan = jnp.where(given, z, jnp.nan)
    np.testing.assert_array_equal(report_of(S, z_nan, given).z, report_of(S, z, given).z)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_leaves_its_neighbours_alone(bad):
    S, z, given = problem(np.float32)
    given = given.at[1, 2].set(True)
    spoilt = z.at[1, 2].set(bad)
    probe, options = deqjax.adjoint_probe(BATCH), (("max_sweeps", 60),)
    sol, clean = report_of(S, spoilt, given), report_of(S, z, given)
    assert sol.stats.status[1] == Status.NONFINITE
    others = np.array([0, 2, 3])
    np.testing.assert_array_equal(sol.z[others], clean.z[others])
    np.testing.assert_array_equal(sol.z[1][~given[1]], 0.5)
    assert np.isfinite(sol.z).all() and sol.z[1, 2] == 0.5

    _, (S_bar, z_bar, report) = gradients(S, spoilt, given, probe, options)
    assert report.status[1] == Status.NONFINITE and (report.status[others] != 12).all()
    assert np.isfinite(S_bar).all() and not z_bar[1].any()
    np.testing.assert_array_equal(
        z_bar[others], gradients(S, z, given, probe, options)[1][1][others]
    )


def test_clauses_that_are_not_finite():
    S, z, given = problem(np.float32)
    probe, options = deqjax.adjoint_probe(BATCH), (("max_sweeps", 60),)
    spoilt = S.at[3, 1].set(jnp.nan)
    sol = report_of(spoilt, z, given)
    assert (sol.stats.status == Status.NONFINITE).all() and np.isfinite(sol.z).all()
    _, (S_bar, z_bar, report) = gradients(spoilt, z, given, probe, options)
    assert (report.status == Status.NONFINITE).all()
    assert not S_bar.any() and not z_bar.any()


def test_a_loss_that_is_not_finite_is_told_and_stays_in_its_sample():
    """Not zeros without a word."""
    S, z, given = problem(np.float32)
    probe = deqjax.adjoint_probe(BATCH)

    @jax.jit
    def grad(S, z, weight):
        f = lambda S, z, p: jnp.sum(weight[:, None] * solve(S, z, given, adjoint_probe=p).z ** 2)
        return jax.grad(f, (0, 1, 2))(S, z, probe)

    good = grad(S, z, jnp.array([1.0, 0.0, 1.0, 1.0]))
    bad = grad(S, z, jnp.array([1.0, jnp.nan, 1.0, 1.0]))
    assert bad[2].status[1] == Status.NONFINITE
    np.testing.assert_array_equal(bad[0], good[0])
    np.testing.assert_array_equal(bad[1], good[1].at[1].set(0))

    def loss(S):
        return jnp.nan * solve(S, z, given, on_failure="warn", max_sweeps=3000).z.sum()

    with pytest.warns(SolveWarning, match=r"adjoint solve.*nonfinite"):
        jax.grad(loss)(S)


def test_policies():
    S, z, given = problem(np.float32)
    spoilt, given = z.at[1, 2].set(jnp.nan), given.at[1, 2].set(True)
    few = dict(max_sweeps=3000)
    with pytest.raises(SolveError, match=r"forward solve.*nonfinite"):
        solve(S, spoilt, given, on_failure="raise", **few)
    with pytest.warns(SolveWarning, match="nonfinite"):
        solve(S, spoilt, given, on_failure="warn", **few)
    marked = solve(S, spoilt, given, on_failure="nan", **few)
    np.testing.assert_array_equal(np.isnan(marked.z).all(axis=1), np.arange(BATCH) == 1)
    assert np.isnan(marked.z).sum() == N
    loss = lambda z: jnp.sum(solve(S, z, given, on_failure="nan", **few).z[::2])
    assert np.isfinite(jax.grad(loss)(z)[::2]).all()
    with pytest.raises(SolveError, match="adjoint solve"):
        jax.grad(
            lambda S: solve(S, z, given, on_failure="raise", adjoint_max_steps=1, **few).z.sum()
        )(S)
    with pytest.raises(SolveError):
        solve(S, z, given, max_sweeps=1, on_failure="ignore").raise_unless_converged()


# ------------------------------------------------------------------------------- transforms


def test_jit_is_eager():
    S, z, given = problem(np.float32)
    eager, jitted = solve(S, z, given), report_of(S, z, given)
    np.testing.assert_allclose(eager.z, jitted.z, atol=1e-6)
    np.testing.assert_array_equal(eager.stats.steps, jitted.stats.steps)


@pytest.mark.slow
@pytest.mark.usefixtures("double_precision")
def test_vmap_over_clauses_and_its_gradient():
    S, z, given = problem()
    several = jnp.stack([S, S + 0.1])
    probe = deqjax.adjoint_probe(BATCH, jnp.float64)
    mapped = jax.vmap(lambda S: gradients(S, z, given, probe))(several)
    for i, each in enumerate(several):
        value, (S_bar, z_bar, report) = gradients(each, z, given, probe)
        np.testing.assert_allclose(mapped[0][i], value, rtol=1e-8)
        np.testing.assert_allclose(mapped[1][0][i], S_bar, atol=1e-5)
        np.testing.assert_allclose(mapped[1][1][i], z_bar, atol=1e-5)
        np.testing.assert_array_equal(mapped[1][2].status[i], report.status)


@pytest.mark.usefixtures("double_precision")
def test_a_row_of_given_stands_for_all():
    S, z, given = problem()
    each = jnp.broadcast_to(given[0], z.shape)
    np.testing.assert_array_equal(report_of(S, z, given[0]).z, report_of(S, z, each).z)


def test_second_derivatives_are_refused():
    S, z, given = problem(np.float32)
    first = lambda S: jnp.sum(jax.grad(lambda S: solve(S, z, given).z.sum())(S) ** 2)
    with pytest.raises(TypeError, match="first derivatives only"):
        jax.grad(first)(S)


def test_half_precision_is_computed_in_float32():
    S, z, given = problem(np.float32)
    half = maxsat(S.astype(jnp.bfloat16), z.astype(jnp.bfloat16), given, key=KEY, aux=AUX, k=K)
    assert half.z.dtype == jnp.bfloat16 and half.state.dtype == jnp.float32


@pytest.mark.slow
def test_on_four_devices(on_devices):
    from . import maxsat_programs

    on_devices(4, maxsat_programs.__file__, "shard_map_is_one_device")


# ------------------------------------------------------------------------------- degenerate


@partial(jax.jit, static_argnames="aux")
def value_and_gradients(S, z, mask, aux):
    def loss(S, z):
        sol = maxsat(S, z, mask, key=KEY, aux=aux, k=4, max_sweeps=30)
        return jnp.sum(sol.z**2), sol

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(S, z)


@settings(max_examples=18, deadline=None, derandomize=True)
@given_cases(
    shape=st.sampled_from([(3, 1)]),
    kind=st.sampled_from(["zero", "equal rows", "no truth", "one clause", "integers", "tiny"]),
    masks=st.sampled_from(["none", "all", "some"]),
)
def test_degenerate_problems_end_in_numbers(shape, kind, masks):
    n, aux = shape
    rng = np.random.default_rng(n)
    S = rng.normal(size=(n + aux + 1, 3)).astype(np.float32)
    if kind == "zero":
        S[:] = 0
    elif kind == "equal rows":
        S[:] = S[:1]
    elif kind == "no truth":
        S[0] = 0
    elif kind == "one clause":
        S[:, 1:] = 0
    elif kind == "tiny":
        S[1:] *= 1e-20
    else:
        S = np.sign(S)
    given = {"none": np.zeros(n, bool), "all": np.ones(n, bool), "some": np.arange(n) % 2 == 0}
    mask = np.broadcast_to(given[masks], (2, n))
    z = rng.integers(0, 2, (2, n)).astype(np.float32)
    (_, sol), bars = value_and_gradients(S, z, mask, aux)
    assert np.isfinite(sol.z).all() and (sol.z >= 0).all() and (sol.z <= 1).all()
    np.testing.assert_array_equal(sol.z[mask], z[mask])
    assert all(np.isfinite(bar).all() for bar in bars)
    assert set(sol.stats.status.tolist()) <= {Status.CONVERGED, Status.MAX_STEPS}
    if masks == "all":
        np.testing.assert_array_equal(bars[1], 2 * z)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (dict(S=jnp.ones((3, 2), int)), TypeError, "S must be floating-point"),
        (dict(z=jnp.ones((1, 2), int)), TypeError, "z must be floating-point"),
        (dict(given=jnp.ones((1, 2))), TypeError, "given must be bool"),
        (dict(given=jnp.ones((2, 2), bool)), ValueError, "given must have the shape of z"),
        (dict(z=jnp.ones(2)), ValueError, r"shape \(batch, n\)"),
        (dict(S=jnp.ones((4, 2))), ValueError, r"\(n \+ aux \+ 1, m\) = \(3, m\)"),
        (dict(S=jnp.ones((3, 0))), ValueError, "at least one clause"),
        (dict(z=jnp.array([[1.5, 0.0]])), ValueError, "probabilities"),
        (dict(k=1), ValueError, "k must be an integer >= 2"),
        (dict(aux=-1), ValueError, "aux must be an integer >= 0"),
        (dict(max_sweeps=0), ValueError, "max_sweeps must be"),
        (dict(rtol=-1.0), ValueError, "rtol must be"),
        (dict(damping=jnp.inf), ValueError, "damping must be"),
        (dict(tol=1.0), TypeError, "rtol"),
        (dict(on_failure="shout"), ValueError, "shout"),
        (dict(key=3), TypeError, r"key must come from jax.random.key"),
        (dict(adjoint_probe=deqjax.adjoint_probe(3)), ValueError, r"adjoint_probe\(batch=1\)"),
    ],
)
def test_bad_input_is_one_sentence(change, error, says):
    arguments = dict(S=jnp.ones((3, 2)), z=jnp.ones((1, 2)), given=jnp.ones((1, 2), bool), key=KEY)
    with pytest.raises(error, match=says):
        maxsat(**(arguments | change))
