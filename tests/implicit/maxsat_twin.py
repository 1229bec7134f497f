"""The mixing method in scalar steps, as its paper writes it."""

import numpy as np


def sweeps(S, V, moves, count):
    """`count` passes over the coordinates of one sample.

    Args:
        S: (n, m).
        V: (n, k), the start.
        moves: bool (n,).

    Returns:
        V, and √(fall/Σ‖g‖) of the last pass.
    """
    V = np.array(V, np.float64)
    relative = np.inf
    for _ in range(count):
        fall = size = 0.0
        for i in np.flatnonzero(moves):
            g = np.zeros(V.shape[1])
            for j in range(len(S)):
                if j != i:
                    g += (S[i] @ S[j]) * V[j]
            norm = np.sqrt(g @ g)
            if norm > 0:
                new = -g / norm
                fall += norm * ((new - V[i]) @ (new - V[i]))
                size += norm
                V[i] = new
        relative = np.sqrt(fall / size) if size else 0.0
    return V, relative


def objective(S, V):
    """⟨SSᵀ, VVᵀ⟩."""
    return np.sum((S.T @ V) ** 2)
