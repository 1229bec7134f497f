"""Quadratic programs: against Clarabel, the KKT system of the active set, and differences."""

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from deqjax import SolveError, Status
from deqjax.implicit import qp

pytestmark = pytest.mark.usefixtures("double_precision")

NAMES = ("Q", "q", "A", "b", "G", "h")


def programs(batch=6, n=8, p=2, m=5, seed=0):
    """Strictly convex, feasible, some of the inequalities active. The last of them nearly
    degenerate: a constraint that binds with a multiplier of about 3e-5."""
    rng = np.random.default_rng(seed)
    L = rng.normal(size=(batch, n, n)) / n**0.5
    Q = L @ L.transpose(0, 2, 1) + 0.1 * np.eye(n)
    q = rng.normal(size=(batch, n))
    A, G = rng.normal(size=(batch, p, n)), rng.normal(size=(batch, m, n))
    z = rng.normal(size=(batch, n))
    b = np.einsum("bij,bj->bi", A, z)
    h = np.einsum("bij,bj->bi", G, z) + rng.uniform(0, 1, (batch, m)) * rng.integers(
        0, 2, (batch, m)
    )
    # Where the first of its inequalities is left out, and then a little inside of that.
    free = clarabel_solution(Q[-1], q[-1], A[-1], b[-1], G[-1][1:], h[-1][1:])
    h[-1, 0] = G[-1, 0] @ free - 3e-5
    return dict(zip(NAMES, (Q, q, A, b, G, h), strict=True))


def clarabel_solution(Q, q, A, b, G, h):
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-10
    cones = [clarabel.ZeroConeT(len(b)), clarabel.NonnegativeConeT(len(h))]
    both = sparse.csc_matrix(np.concatenate([A, G]))
    end = np.concatenate([b, h])
    solver = clarabel.DefaultSolver(sparse.csc_matrix(np.triu(Q)), q, both, end, cones, settings)
    return np.array(solver.solve().x)


def on_active_set(Q, q, A, b, G, h, active):
    """z of the KKT system with the active constraints as equalities, differentiable."""
    C, d = jnp.concatenate([A, G[active]]), jnp.concatenate([b, h[active]])
    n, k = len(q), len(d)
    K = jnp.block([[(Q + Q.T) / 2, C.T], [C, jnp.zeros((k, k))]])
    return jnp.linalg.solve(K, jnp.concatenate([-q, d]))[:n]


@pytest.fixture(scope="module")
def solved():
    with jax.enable_x64(True):
        data = {k: jnp.asarray(v) for k, v in programs().items()}
        return data, jax.jit(lambda d: qp(**d))(data)


def test_optimality_and_clarabel(solved):
    data, sol = solved
    np.testing.assert_array_equal(sol.stats.status, Status.CONVERGED)
    for name in ("stationarity", "primal", "dual", "complementarity"):
        assert float(getattr(sol.stats, name).max()) <= 1e-12, name
    # Each condition by itself, from what is returned.
    Q, q, A, b, G, h = (np.asarray(data[k]) for k in NAMES)
    z, nu, lam = (np.asarray(x) for x in (sol.z, sol.nu, sol.lam))
    mv = lambda M, x: np.einsum("bij,bj->bi", M, x)
    mtv = lambda M, x: np.einsum("bij,bi->bj", M, x)
    assert abs(mv(Q, z) + q + mtv(A, nu) + mtv(G, lam)).max() <= 1e-12
    assert abs(mv(A, z) - b).max() <= 1e-12 and (mv(G, z) - h).max() <= 1e-12
    assert lam.min() >= 0 and abs(lam * (h - mv(G, z))).max() <= 1e-12
    np.testing.assert_allclose(sol.slack, h - mv(G, z), atol=1e-12)
    for i in range(len(z) - 1):
        want = clarabel_solution(*(np.asarray(data[k][i]) for k in NAMES))
        np.testing.assert_allclose(z[i], want, atol=1e-8)
    # Clarabel gives up earlier on the nearly degenerate one.
    active = np.flatnonzero(lam[-1] > 1e-9)
    want = on_active_set(*(data[k][-1] for k in NAMES), active)
    np.testing.assert_allclose(z[-1], want, atol=1e-11)


@pytest.mark.parametrize(
    ("dtype", "most"), [("float64", 1e-10), pytest.param("float32", 1e-3, marks=pytest.mark.slow)]
)
def test_gradients_are_those_of_the_active_set(solved, dtype, most):
    """To every operand; the KKT system is confirmed by central differences of Clarabel's below."""
    data, sol = solved
    c = np.random.default_rng(1).normal(size=sol.z.shape)
    keep = slice(None) if dtype == "float64" else slice(-1)  # without the nearly degenerate one
    given = {k: jnp.asarray(v[keep], dtype) for k, v in data.items()}
    loss = lambda d: jnp.sum(qp(**d).z * jnp.asarray(c[keep], dtype))
    found = jax.jit(jax.grad(loss))(given)
    for i in range(len(given["q"])):
        active = np.flatnonzero(np.asarray(sol.lam[i]) > 1e-9)
        exact = lambda d, i=i, active=active: c[i] @ on_active_set(*(d[k] for k in NAMES), active)
        want = jax.grad(exact)({k: v[i] for k, v in data.items()})
        size = max(float(abs(v).max()) for v in want.values())
        for k in NAMES:
            assert float(abs(found[k][i] - want[k]).max()) <= most * size, (k, i)


@pytest.mark.slow
def test_central_differences(solved):
    data, sol = solved
    first = {k: v[:1] for k, v in data.items()}
    c = jnp.asarray(np.random.default_rng(2).normal(size=sol.z.shape[1]))
    solve = jax.jit(lambda d: qp(**d, rtol=1e-12))
    loss = lambda d: float(jnp.sum(solve(d).z * c))
    found = jax.grad(lambda d: jnp.sum(qp(**d, rtol=1e-12).z * c))(first)
    rng = np.random.default_rng(3)
    for k in NAMES:
        way = jnp.asarray(rng.normal(size=first[k].shape))
        moved = [loss(first | {k: first[k] + s * 1e-6 * way}) for s in (1, -1)]
        slope = (moved[0] - moved[1]) / 2e-6
        np.testing.assert_allclose(jnp.vdot(found[k], way), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_shared_operands_have_summed_gradients(solved):
    data, _ = solved
    n = data["q"].shape[1]
    Q, A, b = data["Q"][0], data["A"][0], data["b"][0]
    G, h = data["G"][0], data["h"][0]
    q = data["q"]

    def shared(Q, A, G):
        return jnp.sum(qp(Q, q, A, b, G, h).z ** 2)

    def apart(Q, A, G):
        copies = (jnp.broadcast_to(x, (len(q), *x.shape)) for x in (A, b, G, h))
        A, b_, G, h_ = copies
        return jnp.sum(qp(jnp.broadcast_to(Q, (len(q), n, n)), q, A, b_, G, h_).z ** 2)

    (x, f), (y, g) = (jax.jit(jax.value_and_grad(l, (0, 1, 2)))(Q, A, G) for l in (shared, apart))
    np.testing.assert_allclose(x, y, rtol=1e-12)
    for u, v in zip(f, g, strict=True):
        assert u.shape == v.shape
        np.testing.assert_allclose(u, v, atol=1e-10)


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(st.sampled_from([1, 3]), st.sampled_from([1, 4]), st.integers(0, 99))
def test_bounds_are_rows_of_g(batch, n, seed):
    """A diagonal Q with bounds, and the same with a dense Q and rows."""
    rng = np.random.default_rng(seed)
    d, q = rng.uniform(0.1, 2, (batch, n)), rng.normal(size=(batch, n))
    lower, upper = -rng.uniform(0, 1, n), rng.uniform(0, 1, n)
    sol = qp(d, q, lower=lower, upper=upper)
    want = np.clip(-q / d, lower, upper)
    np.testing.assert_array_equal(sol.stats.status, Status.CONVERGED)
    np.testing.assert_allclose(sol.z, want, atol=1e-9)
    G, h = np.concatenate([-np.eye(n), np.eye(n)]), np.concatenate([-lower, upper])
    rows = qp(np.einsum("bi,ij->bij", d, np.eye(n)), q, G=G, h=h)
    np.testing.assert_allclose(rows.z, want, atol=1e-9)
    lam = jnp.concatenate([sol.lam_lower, sol.lam_upper], axis=1)
    np.testing.assert_allclose(lam, rows.lam, atol=1e-8)


@pytest.mark.slow
def test_a_linear_program():
    """Q = 0: minimise −z₁ − 2 z₂ where z₁ + z₂ ≤ 1, z ≥ 0, and more unknowns than rows."""
    sol = qp(jnp.zeros(2), jnp.array([[-1.0, -2.0]]), G=jnp.ones((1, 2)), h=jnp.ones(1), lower=0.0)
    assert int(sol.stats.status[0]) == Status.CONVERGED
    np.testing.assert_allclose(sol.z, [[0.0, 1.0]], atol=1e-9)
    # At a vertex z does not depend on q: the exact gradient is zero, the smoothed one is not.
    bar = {}
    for gradient in ("exact", "smoothed"):
        loss = lambda q, gradient=gradient: qp(
            jnp.zeros(2), q, G=jnp.ones((1, 2)), h=jnp.ones(1), lower=0.0, gradient=gradient
        ).z[0, 1]
        bar[gradient] = jax.grad(loss)(jnp.array([[-1.0, -2.0]]))
    assert float(abs(bar["exact"]).max()) <= 1e-9 < 1e-6 < float(abs(bar["smoothed"]).max())


def spoilt():
    """(name, changes to sample 1 of a batch of three, the status that it must have)."""
    contradiction = lambda d: (
        d | {"A": d["A"].at[1, 1].set(d["A"][1, 0]), "b": d["b"].at[1].set(jnp.array([0.0, 1.0]))}
    )
    rows = lambda d: d["G"].at[1, :2].set(jnp.stack([d["G"][1, 0], -d["G"][1, 0]]))
    half_spaces = lambda d: d | {"G": rows(d), "h": d["h"].at[1, :2].set(-1.0)}
    return {
        "contradicting equalities": (contradiction, Status.INFEASIBLE),
        "an empty intersection": (half_spaces, Status.INFEASIBLE),
        "unbounded": (
            lambda d: d | {"Q": d["Q"].at[1].set(0.0), "G": d["G"].at[1].set(0.0),
                           "h": d["h"].at[1].set(1.0)},
            Status.UNBOUNDED,
        ),
        "indefinite": (lambda d: d | {"Q": d["Q"].at[1, 0, 0].set(-5.0)}, Status.NOT_CONVEX),
        "not a number": (lambda d: d | {"q": d["q"].at[1, 0].set(jnp.nan)}, Status.NONFINITE),
    }  # fmt: skip


@pytest.mark.slow  # and with one program for all of them in test_qp_endings
@pytest.mark.parametrize("name", list(spoilt()))
def test_a_failed_sample_has_its_status_and_touches_nobody(solved, name):
    data = {k: v[:3] for k, v in solved[0].items()}
    change, status = spoilt()[name]

    @jax.jit
    def everything(d):
        loss = lambda d: (jnp.sum((sol := qp(**d, on_failure="ignore")).z ** 2), sol)
        return jax.grad(loss, has_aux=True)(d)

    want, good = everything(data)
    bars, sol = everything(change(data))
    assert Status(int(sol.stats.status[1])) == status, Status(int(sol.stats.status[1])).name
    assert np.isfinite(np.asarray(sol.z)).all()
    for k in NAMES:
        np.testing.assert_array_equal(bars[k][1], 0)
        np.testing.assert_array_equal(bars[k][::2], want[k][::2])
    np.testing.assert_array_equal(sol.z[::2], good.z[::2])
    with pytest.raises(SolveError, match=status.name.lower()):
        sol.raise_unless_converged()


@pytest.mark.slow
def test_duplicated_and_redundant_rows(solved):
    """Peers' gradients are NaN there."""
    data, sol = solved
    d = {k: v[:2] for k, v in data.items()}
    twice = lambda k: jnp.concatenate([d[k], d[k]], axis=1)
    doubled = d | {k: twice(k) for k in ("A", "b", "G", "h")}
    found = qp(**doubled)
    np.testing.assert_array_equal(found.stats.status, Status.CONVERGED)
    assert bool(found.stats.degenerate.all())
    np.testing.assert_allclose(found.z, sol.z[:2], atol=1e-8)
    bar = jax.grad(lambda d: jnp.sum(qp(**d).z ** 2))(doubled)
    want = jax.grad(lambda d: jnp.sum(qp(**d).z ** 2))(d)
    assert all(np.isfinite(np.asarray(x)).all() for x in bar.values())
    np.testing.assert_allclose(bar["q"], want["q"], atol=1e-7)


@pytest.mark.slow
def test_under_vmap_and_alone(solved):
    data, sol = solved
    one = {k: v[0] for k, v in data.items()}
    alone = qp(**one, batch_axis=None)
    assert alone.stats.status.shape == () and alone.z.shape == one["q"].shape
    np.testing.assert_allclose(alone.z, sol.z[0], atol=1e-12)
    mapped = jax.jit(jax.vmap(lambda d: qp(**d, batch_axis=None).z))(data)
    np.testing.assert_allclose(mapped, sol.z, atol=1e-12)


@pytest.mark.slow
def test_trace_falls_and_stops(solved):
    data, _ = solved
    trace = np.asarray(qp(**data, trace=True).stats.trace)
    assert trace.shape == (41, len(data["q"]))
    steps = np.isfinite(trace).sum(axis=0)
    assert (steps < 41).all() and (trace[0] > 1e-3).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(gradient="smoth"), "smoothed"),
        (dict(A=jnp.ones((1, 8))), "b"),
        (dict(smoothing=1e-3), "smoothed"),
        (dict(q=jnp.ones((6, 7))), "7"),
        (dict(max_steps=0), "max_steps"),
        (dict(rtol=-1.0), "rtol"),
    ],
)
def test_bad_input_is_one_sentence(solved, wrong, message):
    data = {k: v for k, v in solved[0].items() if k in ("Q", "q")}
    with pytest.raises((ValueError, TypeError), match=message):
        qp(**data | wrong)
