"""Programs made around a solution, degenerate and in any units: what `qp` says of them is so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqjax import Status
from deqjax.implicit import qp

from .programs import Dense, strictly_convex

pytestmark = pytest.mark.usefixtures("double_precision")

BATCH, N, M, P, ODD = 3, 4, 6, 2, 1
MATES = np.arange(BATCH) != ODD
GOOD = strictly_convex(BATCH, N, M, P)

KINDS = (
    "plain",
    "duplicated rows",
    "opposite rows",
    "redundant rows",
    "rows of zeros",
    "no curvature",
    "flat directions",
    "weakly binding",
    "everything binds",
    "nothing binds",
)


@jax.jit
def solved(operands):
    def loss(operands):
        sol = qp(*operands)
        return sum(jnp.sum(jnp.sin(x)) for x in (sol.z, sol.nu, sol.lam, sol.slack)), sol

    (_, sol), bars = jax.value_and_grad(loss, has_aux=True)(operands)
    return sol, bars


def around_a_solution(kind: str, whole: bool, seed: int) -> Dense:
    """One program with a solution: what its conditions ask for is chosen first."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.integers(-2, 3, shape) if whole else rng.standard_normal(shape)
    F, A, G, z, nu = (np.asarray(draw(*s), float) for s in ((N, N), (P, N), (M, N), (N,), (P,)))
    lam, slack = rng.integers(1, 3, (2, M)).astype(float)
    binds = rng.random(M) < 0.4
    if kind == "no curvature":
        F[:] = 0
        binds[: N - P] = True
    elif kind == "flat directions":
        F[1:] = 0
    elif kind == "duplicated rows":
        A[1], G[1], binds[:2] = A[0], G[0], True
    elif kind == "opposite rows":
        G[1], binds[:2] = -G[0], True
    elif kind == "redundant rows":
        G[1], binds[:2], slack[1] = G[0], (True, False), 1.0
    elif kind == "rows of zeros":
        A[1], G[:2], binds[0] = 0, 0, True
    elif kind == "everything binds":
        binds[:] = True
    elif kind == "nothing binds":
        binds[:] = False
    lam, slack = np.where(binds, lam, 0), np.where(binds, 0, slack)
    if kind == "weakly binding":
        lam[binds] = 0
    Q = F.T @ F
    return Dense(Q, -(Q @ z + A.T @ nu + G.T @ lam), A, A @ z, G, G @ z + slack)


def in_units(program: Dense, length: float, value: float) -> Dense:
    """The same with z in units of 1/length and the objective in units of 1/value."""
    Q, q, A, b, G, h = program
    return Dense(value / length**2 * Q, value / length * q, A, b * length, G, h * length)


def conditions(program: Dense, z, nu, lam) -> tuple[dict[str, float], dict[str, float]]:
    """The four errors, and the size of what each is made of."""
    Q, q, A, b, G, h = (np.asarray(x, np.float64) for x in program)
    big = lambda x: float(np.max(np.abs(x), initial=0))
    slack = h - G @ z
    errors = dict(
        stationarity=big(Q @ z + q + A.T @ nu + G.T @ lam),
        primal=max(big(A @ z - b), big(np.minimum(slack, 0))),
        dual=big(np.minimum(lam, 0)),
        complementarity=big(lam * slack),
    )
    reach = max(big(z), big(b), big(h))  # rows have a length of one or so
    pull = big(q) + N * (big(Q) * reach + big(A) * big(nu) + big(G) * big(lam))
    sizes = dict(
        stationarity=pull,
        primal=max(1, N * big(A), N * big(G)) * reach,
        dual=big(lam),
        complementarity=pull * reach,
    )
    return errors, sizes


def check(program: Dense, dtype) -> Status:
    """The program between two good ones. Its status."""
    batch = [np.array(x, dtype) for x in GOOD]
    for operand, value in zip(batch, program, strict=True):
        operand[ODD] = value
    sol, bars = solved(tuple(map(jnp.asarray, batch)))
    want, want_bars = solved(tuple(jnp.asarray(x, dtype) for x in GOOD))
    for got, wanted in zip(
        jax.tree.leaves((sol, bars)), jax.tree.leaves((want, want_bars)), strict=True
    ):
        assert np.array_equal(np.asarray(got)[MATES], np.asarray(wanted)[MATES])
        assert np.isfinite(got).all()
    status = Status(int(sol.stats.status[ODD]))
    # There is a solution, so nothing may be proved against it.
    assert status in (Status.CONVERGED, Status.MAX_STEPS), status.name
    given = Dense(*(x[ODD].astype(np.float64) for x in batch))
    z, nu, lam = (np.asarray(x[ODD], np.float64) for x in (sol.z, sol.nu, sol.lam))
    errors, sizes = conditions(given, z, nu, lam)
    eps, rtol = np.finfo(dtype).eps, 1e-8 if dtype == np.float64 else 1e-5
    for name, error in errors.items():
        reported = float(getattr(sol.stats, name)[ODD])
        assert abs(reported - error) <= 50 * eps * sizes[name], (name, reported, error)
        if status == Status.CONVERGED:
            assert error <= rtol * sizes[name], (name, error, sizes[name])
    if status != Status.CONVERGED:
        assert not any(np.any(bar[ODD]) for bar in bars)
    return status


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    whole=st.booleans(),
    seed=st.integers(0, 99),
    length=st.sampled_from([1.0, 1e-6, 1e6]),
    value=st.sampled_from([1.0, 1e-9, 1e9]),
)
def test_what_is_said_is_so(kind, whole, seed, length, value):
    check(in_units(around_a_solution(kind, whole, seed), length, value), np.float64)


@pytest.mark.slow  # a program of its own to compile
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    whole=st.booleans(),
    seed=st.integers(0, 99),
    length=st.sampled_from([1.0, 1e-3, 1e3]),
    value=st.sampled_from([1.0, 1e-3, 1e3]),
)
def test_what_is_said_is_so_in_float32(kind, whole, seed, length, value):
    check(in_units(around_a_solution(kind, whole, seed), length, value), np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_solved(kind):
    """Every one of them has a solution, and it is found."""
    for seed in range(3):
        program = around_a_solution(kind, bool(seed % 2), seed)
        assert check(program, np.float64) == Status.CONVERGED
