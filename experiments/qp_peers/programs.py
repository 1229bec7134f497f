"""A batch of quadratic programs, its gradients by dense solves, and what a solution lacks."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from deqjax.implicit import qp


class Programs(NamedTuple):
    """(batch, ...) float64 operands."""

    Q: np.ndarray
    q: np.ndarray
    A: np.ndarray
    b: np.ndarray
    G: np.ndarray
    h: np.ndarray


# The peers' tolerances are absolute. With z of this size and q of twice it, float32 can meet 1e-5;
# at four times the size OSQP goes on to its last iteration there.
SIZE = 0.25


def strictly_convex(batch: int, n: int, m: int, p: int, seed: int = 0) -> Programs:
    """Feasible programs of which a third to a half of the inequalities binds."""
    rng = np.random.default_rng(seed)
    F = rng.standard_normal((batch, n, n))
    Q = F @ F.swapaxes(1, 2) / n + 0.1 * np.eye(n)
    A, G = rng.standard_normal((batch, p, n)), rng.standard_normal((batch, m, n))
    z = SIZE * rng.standard_normal((batch, n))
    b = np.einsum("bij,bj->bi", A, z)
    h = np.einsum("bij,bj->bi", G, z) + 3 * SIZE * rng.random((batch, m))
    return Programs(Q, 2 * SIZE * rng.standard_normal((batch, n)), A, b, G, h)


def nearly_degenerate(programs: Programs, i: int, margin: float) -> Programs:
    """The same with one inequality of sample i that nearly binds: its slack is `margin`."""
    sol = qp(*map(jnp.asarray, programs), rtol=1e-10)
    slack = np.where(sol.lam[i] > 0, np.inf, sol.slack[i])
    row = int(np.argmin(slack))
    h = programs.h.copy()
    h[i, row] -= slack[row] - margin
    return programs._replace(h=h)


def references(programs: Programs, z_bar: np.ndarray) -> list[Programs]:
    """The gradients of each sample for the cotangent z_bar, by dense solves on what binds."""
    sol = qp(*map(jnp.asarray, programs), rtol=1e-10)
    binds = np.asarray(sol.lam > sol.slack)
    return [_reference(programs, i, binds[i], z_bar[i]) for i in range(len(binds))]


def _reference(programs: Programs, i: int, binds: np.ndarray, z_bar: np.ndarray) -> Programs:
    Q, q, A, b, G, h = (x[i] for x in programs)
    M, n, p = np.vstack([A, G[binds]]), len(q), len(b)
    K = np.block([[Q, M.T], [M, np.zeros((len(M), len(M)))]])
    z, y = np.split(np.linalg.solve(K, np.concatenate([-q, b, h[binds]])), [n])
    if not (np.all(y[p:] >= 0) and np.all((h - G @ z)[~binds] >= 0)):
        raise AssertionError(f"these are not the constraints that bind in sample {i}")
    u, w = np.split(np.linalg.solve(K, -np.concatenate([z_bar, np.zeros(len(M))])), [n])
    M_bar = np.outer(y, u) + np.outer(w, z)
    G_bar, h_bar = np.zeros_like(G), np.zeros_like(h)
    G_bar[binds], h_bar[binds] = M_bar[p:], -w[p:]
    return Programs((np.outer(u, z) + np.outer(z, u)) / 2, u, M_bar[:p], -w[:p], G_bar, h_bar)


def gradient_errors(found, wanted: list[Programs]) -> np.ndarray:
    """(batch,): over the operands, the largest error relative to the largest entry."""
    Q, *others = (np.asarray(x, np.float64) for x in found)
    # Only the symmetric part of Q counts, and so of its gradient.
    found = ((Q + Q.swapaxes(1, 2)) / 2, *others)
    error = lambda x, y: float(np.abs(x - y).max() / np.abs(y).max())
    each = [
        [error(x[i], y) for x, y in zip(found, want, strict=True)] for i, want in enumerate(wanted)
    ]
    return np.max(each, axis=1)


def lacking(programs: Programs, z, nu, lam) -> np.ndarray:
    """(batch,): the largest error of the four conditions of Karush, Kuhn and Tucker."""
    Q, q, A, b, G, h = programs
    z, nu, lam = (np.asarray(x, np.float64) for x in (z, nu, lam))
    of = lambda K, x: np.einsum("bij,bj->bi", K, x)
    pulled = np.einsum("bij,bi->bj", A, nu) + np.einsum("bij,bi->bj", G, lam)
    slack = h - of(G, z)
    each = (of(Q, z) + q + pulled, of(A, z) - b, np.minimum(slack, 0), np.minimum(lam, 0))
    return np.max([np.abs(x).max(axis=1) for x in (*each, lam * slack)], axis=0)
