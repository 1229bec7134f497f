"""A batch of the size of the benchmark, one of its programs nearly degenerate, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deqjax.implicit import qp

from .programs import Dense, gradients, nearly_degenerate, strictly_convex

BATCH, N, M, P, MARGIN = 128, 64, 32, 16, 3e-5


@pytest.fixture(scope="module")
def program() -> Dense:
    return nearly_degenerate(strictly_convex(BATCH, N, M, P), 0, MARGIN)


def conditions(program: Dense, z, nu, lam) -> np.ndarray:
    """(4, batch): the largest errors of stationarity, feasibility, sign and complementarity."""
    Q, q, A, b, G, h = program
    of = lambda K, x: np.einsum("bij,bj->bi", K, x)
    pulled = np.einsum("bij,bi->bj", A, nu) + np.einsum("bij,bi->bj", G, lam)
    slack = h - of(G, z)
    return np.stack([
        abs(of(Q, z) + q + pulled).max(axis=1),
        np.maximum(abs(of(A, z) - b).max(axis=1), (-slack).max(axis=1)),
        (-lam).max(axis=1),
        abs(lam * slack).max(axis=1),
    ])  # fmt: skip


def test_every_condition_holds_to_rounding(program):
    with jax.enable_x64(True):
        sol = jax.jit(lambda p: qp(*p, rtol=1e-9))(jax.tree.map(jnp.asarray, program))
        z, nu, lam, slack = (np.asarray(x) for x in (sol.z, sol.nu, sol.lam, sol.slack))
    assert sol.stats.converged.all()
    assert int((conditions(program, z, nu, lam).max(axis=0) <= 1e-12).sum()) == BATCH
    assert 8 <= (lam > slack).sum(axis=1).mean() <= 16  # a third of the inequalities or so
    # The nearly degenerate one: an inequality that does not bind, by little.
    assert MARGIN / 2 < slack[0][lam[0] < slack[0]].min() < 2 * MARGIN


@pytest.mark.slow
def test_gradients_are_those_of_the_active_set(program):
    z_bar = np.random.default_rng(1).standard_normal(program.q.shape)
    with jax.enable_x64(True):
        loss = lambda p: jnp.vdot(qp(*p, rtol=1e-9).z, z_bar)
        bars = Dense(*map(np.asarray, jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, program))))
    for i in range(BATCH):
        for got, want in zip(bars, gradients(program, i, z_bar[i]), strict=True):
            np.testing.assert_allclose(got[i], want, rtol=0, atol=1e-10 * abs(want).max())
