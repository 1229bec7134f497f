"""The solvers as their papers write them: dense, on one vector, and differentiable by JAX.

Each returns all iterates, (steps + 1, n), the start first. None of them knows of round-off, masks,
pytrees, batches or the order of reads and writes: that is what the library's are compared in.
"""

import jax
import jax.numpy as jnp
import numpy as np

EPS = float(np.finfo(float).eps)


def picard(f, z, steps, *, damping=1.0):
    """z⁺ = z + λ (f(z) − z)."""
    zs = [z]
    for _ in range(steps):
        zs.append(zs[-1] + damping * (f(zs[-1]) - zs[-1]))
    return jnp.stack(zs)


def anderson(f, z, steps, *, memory=5, mixing=1.0, ridge=10 * EPS):
    """z⁺ = z + β r − ΔY γ,  γ = argmin ‖r − ΔR γ‖² + λ ‖Dγ‖²,  by the QR factors of [ΔR; √λ D].

    Walker and Ni (SIAM J. Numer. Anal. 49(4), 2011), with columns of unit length.
    """
    zs, rs = [z], [f(z) - z]
    for k in range(steps):
        z, r, m = zs[-1], rs[-1], min(k, memory)
        step = mixing * r
        if m > 0:
            d_z, d_r = (jnp.diff(jnp.stack(x[-m - 1 :], 1), axis=1) for x in (zs, rs))
            lengths = jnp.linalg.norm(d_r, axis=0)
            system = jnp.concatenate([d_r / lengths, np.sqrt(ridge) * jnp.eye(m)])
            q, triangle = jnp.linalg.qr(system)
            gamma = jnp.linalg.solve(triangle, q.T @ jnp.append(r, jnp.zeros(m))) / lengths
            step = step - (d_z + mixing * d_r) @ gamma
        zs.append(z + step)
        rs.append(f(zs[-1]) - zs[-1])
    return jnp.stack(zs)


def broyden(f, z, steps, *, memory=10):
    """z⁺ = z − B⁻¹ g,  B = −I updated by the last m pairs:  B⁺ = B + (y − B s) sᵀ / (sᵀs).

    The "good" method of Broyden (Math. Comp. 19, 1965).
    """
    zs, gs = [z], [f(z) - z]
    for _ in range(steps):
        b = -jnp.eye(z.size)
        d_z, d_g = (jnp.diff(jnp.stack(x[-memory - 1 :]), axis=0) for x in (zs, gs))
        for s, y in zip(d_z, d_g, strict=True):
            b = b + jnp.outer(y - b @ s, s) / (s @ s)
        zs.append(zs[-1] - jnp.linalg.solve(b, gs[-1]))
        gs.append(f(zs[-1]) - zs[-1])
    return jnp.stack(zs)


def gmres(a, b, *, memory, target=0.0):
    """x in the Krylov space of (A, b) with the least ‖b − A x‖, and the size of the space: the
    first that reaches `target`, or `memory`. NumPy."""
    basis, x, left = b[:, None] / np.linalg.norm(b), np.zeros_like(b), np.linalg.norm(b)
    for j in range(1, memory + 1):
        y = np.linalg.lstsq(a @ basis, b, rcond=None)[0]
        x, left = basis @ y, np.linalg.norm(b - a @ basis @ y)
        if left <= target or j == min(memory, b.size):
            return x, j
        basis = np.linalg.qr(np.column_stack([basis, a @ basis[:, -1]]))[0]
    return x, memory


def newton_krylov(f, z, steps, *, memory=20, forcing=0.1):
    """z⁺ = z + t d,  ‖(I − J) d − r‖ ≤ η ‖r‖,  with Armijo's condition on ‖r‖ and the parabola of
    Dennis and Schnabel (1983), and η by Eisenstat and Walker's choice 2 (1996). NumPy."""
    jacobian, residual = jax.jacobian(f), lambda z: np.asarray(f(z)) - z
    zs, eta = [np.asarray(z)], forcing
    for _ in range(steps):
        z, r = zs[-1], residual(zs[-1])
        size = np.linalg.norm(r)
        a = np.eye(z.size) - np.asarray(jacobian(z))
        d, _ = gmres(a, r, memory=memory, target=float(eta * size))
        t, tried = 1.0, []
        while not tried or (tried[-1][0] > (1 - 1e-4 * t) * size and len(tried) < 10):
            if tried:
                relative = (tried[-1][0] / size) ** 2
                t = np.clip(t**2 / (relative - 1 + 2 * t), 0.1 * t, 0.5 * t)
            tried.append((np.linalg.norm(residual(z + t * d)), t))
        after, t = min(tried)
        zs.append(z + t * d)
        safeguard = 0.9 * eta**2 if 0.9 * eta**2 > 0.1 else 0.0
        eta = min(max(0.9 * (after / size) ** 2, safeguard), forcing)
    return np.stack(zs)


def kept_pivots(k, squares, *, drop, first=0):
    """Which unknowns of a small system are kept: i, in turn from `first`, if what the kept ones
    before it leave of Kᵢᵢ (its Schur complement) is above drop·‖sᵢ‖². NumPy."""
    kept = []
    for i in np.roll(np.arange(squares.size), -first):
        explained = k[i, kept] @ np.linalg.solve(k[np.ix_(kept, kept)], k[kept, i]) if kept else 0.0
        if abs(k[i, i] - explained) > drop * squares[i]:
            kept.append(i)
    return np.array(kept, int)


def small_system(k, b, kept):
    """K⁻¹ b on the unknowns that are kept; the others are zero."""
    some = jnp.linalg.solve(k[np.ix_(kept, kept)], b[kept])
    return jnp.zeros_like(b).at[kept].set(some)
