"""Quadratic programs for tests, and their answers by other means."""

from __future__ import annotations

from typing import NamedTuple

import clarabel
import numpy as np
from scipy import sparse


class Dense(NamedTuple):
    """(batch, ...) float64 operands."""

    Q: np.ndarray
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray
    G: np.ndarray
    h: np.ndarray


def strictly_convex(batch: int, n: int, m: int, p: int, seed: int = 0) -> Dense:
    """Feasible, with about a third of the inequalities binding."""
    rng = np.random.default_rng(seed)
    F = rng.standard_normal((batch, n, n))
    Q = F @ F.swapaxes(1, 2) / n + 0.1 * np.eye(n)
    A, G = rng.standard_normal((batch, p, n)), rng.standard_normal((batch, m, n))
    z = rng.standard_normal((batch, n))
    b = np.einsum("bij,bj->bi", A, z)
    h = np.einsum("bij,bj->bi", G, z) + 3 * rng.random((batch, m))
    return Dense(Q, 2 * rng.standard_normal((batch, n)), A, b, G, h)


def nearly_degenerate(program: Dense, sample: int, margin: float) -> Dense:
    """The same with one inequality of a sample that just does not bind: a slack of `margin`."""
    z, _, lam = clarabel_solution(program, sample)
    slack = program.h[sample] - program.G[sample] @ z
    row = int(np.argmin(np.where(lam > 1e-6, np.inf, slack)))
    h = program.h.copy()
    h[sample, row] = program.G[sample, row] @ z + margin
    return program._replace(h=h)


def clarabel_solution(program: Dense, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, ν and λ of one sample."""
    Q, q, A, b, G, h = (x[i] for x in program)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    # Tighter ones it gives up on, at a worse point.
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-11
    cones = [clarabel.ZeroConeT(len(b)), clarabel.NonnegativeConeT(len(h))]
    rows, ends = sparse.csc_matrix(np.vstack([A, G])), np.concatenate([b, h])
    upper = sparse.csc_matrix(np.triu(Q))
    found = clarabel.DefaultSolver(upper, q, rows, ends, cones, settings).solve()
    assert str(found.status) == "Solved"
    y = np.asarray(found.z)
    return np.asarray(found.x), y[: len(b)], y[len(b) :]


def on_active_set(program: Dense, i: int, binds: np.ndarray):
    """The matrix of the conditions with the inequalities that bind as equalities, its solution, and
    these rows."""
    Q, q, A, b, G, h = (x[i] for x in program)
    M = np.vstack([A, G[binds]])
    K = np.block([[Q, M.T], [M, np.zeros((len(M), len(M)))]])
    x = np.linalg.solve(K, np.concatenate([-q, b, h[binds]]))
    return K, x[: len(q)], x[len(q) :], M


def gradients(program: Dense, i: int, z_bar: np.ndarray) -> Dense:
    """Those of one sample for the cotangent z_bar, by a dense solve on its active set."""
    _, _, lam = clarabel_solution(program, i)
    z0 = clarabel_solution(program, i)[0]
    binds = lam > program.h[i] - program.G[i] @ z0
    K, z, y, M = on_active_set(program, i, binds)
    n, p = len(z), program.A.shape[1]
    uw = np.linalg.solve(K, -np.concatenate([z_bar, np.zeros(len(M))]))
    u, w = uw[:n], uw[n:]
    M_bar = np.outer(y, u) + np.outer(w, z)
    G_bar, h_bar = np.zeros_like(program.G[i]), np.zeros_like(program.h[i])
    G_bar[binds], h_bar[binds] = M_bar[p:], -w[p:]
    Q_bar = (np.outer(u, z) + np.outer(z, u)) / 2
    return Dense(Q_bar, u, M_bar[:p], -w[:p], G_bar, h_bar)
