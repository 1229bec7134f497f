"""How samples end, with a bad one among good ones: the bad one's status, and the others' bits."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqjax import Status
from deqjax.implicit import qp
from tests.implicit.programs import strictly_convex

pytestmark = pytest.mark.usefixtures("double_precision")

BATCH, N, M, P, BAD = 4, 6, 5, 2, 1
GOOD = strictly_convex(BATCH, N, M, P)
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32])
# Programs of their own, which compile for seconds.
ALONE = pytest.mark.parametrize(
    "dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)]
)


def loss(operands, bounds):
    sol = qp(*operands, **bounds, trace=True)
    duals = (sol.nu, sol.lam, sol.slack, sol.lam_lower, sol.lam_upper)
    total = sum(jnp.where(jnp.isfinite(x), x, 0).sum() for x in (sol.z, *duals) if x is not None)
    return total, sol


@jax.jit
def solved(operands, bounds):
    (_, sol), bars = jax.value_and_grad(loss, (0, 1), has_aux=True)(operands, bounds)
    return sol, bars


def check(expected, operands, good, bounds=None, good_bounds=None, dtype=np.float64):
    """The bad sample ends as expected, and nothing else of the batch changes by a bit."""
    cast = partial(jax.tree.map, lambda x: jnp.asarray(x, dtype))
    sol, bars = solved(cast(tuple(operands)), cast(bounds or {}))
    want, want_bars = solved(cast(tuple(good)), cast(good_bounds or bounds or {}))
    assert np.all(want.stats.converged)
    expected = expected if isinstance(expected, tuple) else (expected,)
    status = Status(int(sol.stats.status[BAD]))
    assert status in expected, status.name
    mates = np.arange(BATCH) != BAD
    pairs = zip(jax.tree.leaves((sol, bars)), jax.tree.leaves((want, want_bars)), strict=True)
    for got, wanted in pairs:
        axis = 1 if got.shape[:1] == (41,) else 0
        of_mates = partial(np.compress, mates, axis=axis)
        assert np.array_equal(of_mates(got), of_mates(wanted), equal_nan=axis == 1)
    assert np.all(np.isfinite(sol.z[BAD]))
    for bar in jax.tree.leaves(bars):
        assert np.all(np.isfinite(bar))
        if status != Status.CONVERGED:
            assert not np.any(bar[BAD])
    return sol, bars


def changed(**samples):
    """The good batch with other operands of the bad sample."""
    arrays = {k: np.array(v) for k, v in GOOD._asdict().items()}
    for name, value in samples.items():
        arrays[name][BAD] = value
    return tuple(arrays.values())


def rows(name, **by_row):
    """An operand of the bad sample with some rows replaced."""
    x = np.array(getattr(GOOD, name)[BAD])
    for key, value in by_row.items():
        x[int(key[1:])] = value
    return x


A0, b0, G0, h0 = GOOD.A[BAD, 0], GOOD.b[BAD, 0], GOOD.G[BAD, 0], GOOD.h[BAD, 0]
RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.standard_normal((N, N)))[0]
INFEASIBLE = {
    "equalities that contradict each other": changed(A=rows("A", r1=A0), b=rows("b", r1=b0 + 1)),
    "inequalities that contradict": changed(G=rows("G", r1=-G0), h=rows("h", r1=-h0 - 1)),
    "an equality against an inequality": changed(G=rows("G", r0=A0), h=rows("h", r0=b0 - 1)),
    "a row of zeros": changed(G=rows("G", r0=0 * G0), h=rows("h", r0=-1)),
}
REFUSED = {
    "indefinite": (Status.NOT_CONVEX, changed(Q=GOOD.Q[BAD] - 3 * np.eye(N))),
    "negative definite": (Status.NOT_CONVEX, changed(Q=-GOOD.Q[BAD])),
    "unbounded": (Status.UNBOUNDED, changed(Q=np.zeros((N, N)), G=0, h=1)),
    **{
        f"NaN in {name}": (Status.NONFINITE, changed(**{name: np.nan}))
        for name in ("Q", "q", "A", "b", "G", "h")
    },
}
SOLVED = {
    "duplicated equalities": changed(A=rows("A", r1=A0), b=rows("b", r1=b0)),
    "redundant constraints": changed(G=rows("G", r1=G0), h=rows("h", r1=h0 + 1)),
    "duplicated inequalities that bind": changed(
        G=rows("G", r1=G0), h=rows("h", r0=h0 - 5, r1=h0 - 5)
    ),
    "empty interior": changed(G=rows("G", r1=-G0), h=rows("h", r1=-h0)),
    "an infinite end": changed(h=rows("h", r2=np.inf)),
    "singular Q": changed(Q=BASIS[:, :3] @ np.diag([1.0, 2, 3]) @ BASIS[:, :3].T),
}


@DTYPES
@pytest.mark.parametrize("name", INFEASIBLE)
def test_infeasible(name, dtype):
    check(Status.INFEASIBLE, INFEASIBLE[name], GOOD, dtype=dtype)


@DTYPES
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, dtype):
    status, operands = REFUSED[name]
    sol, _ = check(status, operands, GOOD, dtype=dtype)
    assert not sol.stats.converged[BAD]


@DTYPES
@pytest.mark.parametrize("name", SOLVED)
def test_solved(name, dtype):
    sol, bars = check(Status.CONVERGED, SOLVED[name], GOOD, dtype=dtype)
    eps = np.finfo(dtype).eps
    assert sol.stats.residual[BAD] <= 200 * eps
    assert np.max(sol.stats.rel_residual) <= 50 * eps
    # A ridge's inverse would be 1e4 in float32 and 1e12 in float64.
    assert max(np.abs(bar).max() for bar in jax.tree.leaves(bars)) < 1e3


@DTYPES
def test_degenerate_samples_are_flagged(dtype):
    for name in ("duplicated inequalities that bind", "empty interior"):
        sol, _ = check(Status.CONVERGED, SOLVED[name], GOOD, dtype=dtype)
        assert sol.stats.degenerate.tolist() == [False, True, False, False]


@ALONE
def test_linear_program(dtype):
    """Q = 0, more inequalities than unknowns: a vertex."""
    box = np.concatenate([np.eye(N), -np.eye(N)])
    G = np.concatenate([GOOD.G, np.broadcast_to(box, (BATCH, *box.shape))], axis=1)
    h = np.concatenate([GOOD.h, np.full((BATCH, 2 * N), 3.0)], axis=1)
    operands = (0 * GOOD.Q, GOOD.q, GOOD.A, GOOD.b, G, h)
    sol, (bars, _) = solved(*jax.tree.map(lambda x: jnp.asarray(x, dtype), (operands, {})))
    assert np.all(sol.stats.converged)
    assert np.all(sol.stats.residual < 1e2 * np.finfo(dtype).eps)
    binding = np.abs(np.asarray(sol.slack)) < 1e-4
    assert np.all(binding.sum(axis=1) == N - P)
    assert np.all(np.isfinite(bars[0]))


@ALONE
def test_bounds(dtype):
    no_rows = (GOOD.Q, GOOD.q, GOOD.A, GOOD.b)
    wide = dict(lower=np.full((BATCH, N), -4.0), upper=np.full((BATCH, N), 4.0))
    at = lambda which, value: {
        k: np.concatenate([v[:BAD], [value if k == which else v[BAD]], v[BAD + 1 :]])
        for k, v in wide.items()
    }
    same = dict(good=no_rows, good_bounds=wide, dtype=dtype)
    check(Status.INFEASIBLE, no_rows, bounds=at("lower", np.full(N, 5.0)), **same)
    check(Status.INFEASIBLE, no_rows, bounds=at("upper", np.full(N, -3.9)), **same)
    check(Status.NONFINITE, no_rows, bounds=at("upper", np.full(N, np.nan)), **same)
    free, _ = check(Status.CONVERGED, no_rows, bounds=at("lower", np.full(N, -np.inf)), **same)
    assert not np.any(free.lam_lower[BAD])
    flat = np.array(GOOD.Q)
    flat[BAD] = 0
    check(Status.CONVERGED, (flat, *no_rows[1:]), bounds=wide, **same)
    none = at("lower", np.full(N, -np.inf))
    none["upper"][BAD] = np.inf
    check(Status.UNBOUNDED, (flat, *no_rows[1:]), bounds=none, **same)


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_nothing_depends_on_units(scale):
    """z or the objective in another unit: same steps, same digits."""
    want, _ = solved(jax.tree.map(jnp.asarray, tuple(GOOD)), {})
    Q, q, A, b, G, h = map(jnp.asarray, GOOD)
    for operands, unit in (
        ((Q * scale, q * scale, A, b, G, h), 1),
        ((Q, q * scale, A, b * scale, G, h * scale), scale),
        ((Q, q, A * scale, b * scale, G * scale, h * scale), 1),
    ):
        sol, _ = solved(operands, {})
        assert np.all(sol.stats.converged)
        assert np.allclose(sol.z / unit, want.z, rtol=1e-12, atol=1e-12)
