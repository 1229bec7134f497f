"""Exact answers about z = relu(A z + b) for small A of whole numbers over a power of two."""

from __future__ import annotations

from itertools import combinations, product
from typing import NamedTuple

import numpy as np

GRID = 64  # entries are multiples of 1/GRID


class Drawn(NamedTuple):
    """A = K/GRID, (n, n)."""

    K: np.ndarray

    @property
    def A(self) -> np.ndarray:
        return self.K / GRID


def draw(count: int, seed: int = 0) -> list[Drawn]:
    """Random matrices with n = 1 to 4, of sizes around the border of being well-posed.

    A third is scaled so that its ∞-norm, its spectral radius or λ_pf(|A|) is near 1, and a third of
    them is block triangular, sparse or nearly skew: what the certificates differ on. Some have a
    row whose absolute values sum to 1 exactly.
    """
    rng = np.random.default_rng(seed)

    def one() -> Drawn:
        n = int(rng.integers(1, 5))
        a = rng.normal(size=(n, n))
        shape = rng.integers(4)
        if shape == 1:
            a = np.triu(a)
        elif shape == 2:
            a = a - a.T + rng.normal(scale=0.3) * np.eye(n)
        elif shape == 3:
            a *= rng.uniform(size=(n, n)) < 0.5
        sizes = [
            np.abs(a).sum(axis=1).max(),
            np.abs(np.linalg.eigvals(a)).max(),
            np.abs(np.linalg.eigvals(np.abs(a))).max(),
        ]
        size = sizes[rng.integers(3)]
        K = np.rint(GRID * a * rng.uniform(0.6, 2.5) / max(size, 1e-3)).astype(np.int64)
        if rng.uniform() < 0.1:
            K[0] = 0
            K[0, rng.integers(n)] = GRID * rng.choice([-1, 1])
        return Drawn(np.clip(K, -(2**12), 2**12))

    return [one() for _ in range(count)]


def determinant(m: list[list[int]]) -> int:
    """Of whole numbers, exactly: Python's integers have no end."""
    if len(m) == 1:
        return m[0][0]
    minors = ([row[:j] + row[j + 1 :] for row in m[1:]] for j in range(len(m)))
    return sum((-1) ** j * m[0][j] * determinant(minor) for j, minor in enumerate(minors))


def is_well_posed(drawn: Drawn) -> bool:
    """Whether z = relu(A z + b) has exactly one solution for every b: if and only if I − A is a
    P-matrix, every principal minor positive (Samelson, Thrall, Wesler 1958; the equation is the
    linear complementarity problem of I − A)."""
    n = len(drawn.K)
    m = GRID * np.eye(n, dtype=np.int64) - drawn.K
    subsets = (s for k in range(1, n + 1) for s in combinations(range(n), k))
    return all(determinant(m[np.ix_(s, s)].tolist()) > 0 for s in subsets)


def solutions(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """All isolated z = relu(A z + b): each of the 2ⁿ linear pieces solved for itself."""
    found = []
    for piece in product((0.0, 1.0), repeat=len(a)):
        d = np.diag(piece)
        try:
            z = np.linalg.solve(np.eye(len(a)) - d @ a, d @ b)
        except np.linalg.LinAlgError:
            continue
        y = a @ z + b
        if np.all(np.where(np.diag(d) > 0, y >= -1e-12, y <= 1e-12)):
            found.append(z)
    return [z for i, z in enumerate(found) if all(np.abs(z - w).max() > 1e-9 for w in found[:i])]
