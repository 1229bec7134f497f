"""Integral equations, boundary value problems and stiff kinetics."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np

from .problem import Problem, newton, on_numpy

# ---------------------------------------------------------------------- Chandrasekhar


def h_kernel(c, n):
    mu = (np.arange(n) + 0.5) / n
    return 0.5 * c / n * mu[:, None] / (mu[:, None] + mu)


def h_equation(c, z):
    """H(μ) = 1 / (1 − c/2 ∫ μ H(ν) / (μ + ν) dν) by the midpoint rule (Chandrasekhar 1950)."""
    return 1 / (1 - h_kernel(c, z.size) @ z) - z


def h_mean(c, branch):
    """∫H = 2 (1 ∓ √(1 − c)) / c, which the midpoint rule keeps exactly. −1 is the physical one."""
    return 2 * (1 + branch * np.sqrt(1 - c)) / c


def h_root(c, n=100, branch=-1):
    """Newton with the mean as one more equation: c = 1 is then regular, the branches apart."""
    kernel = h_kernel(c, n)
    mean = h_mean(c, branch)

    def g(z):
        return np.append(1 - z * (1 - kernel @ z), np.mean(z) - mean)

    z = np.ones(n)
    for target in np.linspace(1, mean, 8):
        z = z * target / np.mean(z)
    return (newton(g, z),)


# ---------------------------------------------------------------------- Bratu

FOLD_1D = 3.513830719


def bratu_1d(scale, lam, z):
    """u″ + λ exp(u) = 0, u(0) = u(1) = 0, central differences, times `scale`."""
    h = 1 / (z.size + 1)
    u = jnp.pad(z, 1)
    return scale * ((u[:-2] - 2 * z + u[2:]) / h**2 + lam * jnp.exp(z))


def bratu_1d_exact(lam, n, branch):
    """u = 2 log(cosh(θ/4) / cosh((x − ½) θ/2)),  θ = √(2λ) cosh(θ/4), the lower or upper θ."""
    height = lambda theta: theta - np.sqrt(2 * lam) * np.cosh(theta / 4)
    low, high = (0.0, 4.798714561) if branch < 0 else (4.798714561, 30.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (height(middle) < 0) == (branch < 0) else (low, middle)
    x = np.arange(1, n + 1) / (n + 1)
    return 2 * np.log(np.cosh(low / 4) / np.cosh((x - 0.5) * low / 2))


def bratu_1d_root(lam, n, branch):
    function = functools.partial(bratu_1d, 1 / (n + 1) ** 2, lam)
    return (newton(on_numpy(function), bratu_1d_exact(lam, n, branch)),)


def bratu_2d(lam, z):
    """Δu + λ exp(u) = 0 on the unit square, fourth-order nine-point formula, unit diagonal.

    The five-point formula moves the fold below 6.8 on a mesh as coarse as this one.
    """
    side = round(z.size**0.5)
    h = 1 / (side + 1)
    u = jnp.pad(z.reshape(side, side), 1)
    source = lam * jnp.exp(u)

    def cross(v):
        return v[:-2, 1:-1] + v[2:, 1:-1] + v[1:-1, :-2] + v[1:-1, 2:]

    corners = u[:-2, :-2] + u[:-2, 2:] + u[2:, :-2] + u[2:, 2:]
    laplacian = 4 * cross(u) + corners - 20 * u[1:-1, 1:-1]
    mass = 8 * source[1:-1, 1:-1] + cross(source)
    return (laplacian + h**2 / 2 * mass).reshape(-1) / 20


def bratu_2d_root(lam, side, branch):
    """From a bump below or above the fold's, whose height is 1.39."""
    x = np.arange(1, side + 1) / (side + 1)
    bump = 16 * np.outer(x * (1 - x), x * (1 - x)).reshape(-1)
    height = {(5.0, -1): 0.7, (5.0, 1): 3.0, (6.8, -1): 1.3, (6.8, 1): 1.5}[lam, branch]
    function = functools.partial(bratu_2d, lam)
    return (newton(on_numpy(function), height * bump),)


# ---------------------------------------------------------------------- reaction and diffusion


def diffusion_with_decay(z):
    """u″/20 − u − u³ + s(x) = 0, s made for u = sin πx + ½ sin 3πx on the mesh.

    The operator is monotone: there is no other root.
    """
    h = 1 / (z.size + 1)

    def operator(u, xp):
        padded = xp.pad(u, 1)
        return 0.05 * (padded[:-2] - 2 * u + padded[2:]) / h**2 - u - u**3

    source = -operator(manufactured(z.size), np)
    return (operator(z, jnp) + source) * h**2 / 0.1


def manufactured(n):
    x = np.arange(1, n + 1) / (n + 1)
    return np.sin(np.pi * x) + 0.5 * np.sin(3 * np.pi * x)


def brusselator(z):
    """u̇ = u″/50 + 1 − 4u + u²v, v̇ = v″/50 + 3u − u²v; 1 and 3 at both ends, and so throughout.

    Hairer and Wanner's, at its steady state, which is unstable in time.
    """
    u, v = z.reshape(2, -1)
    h = 1 / (u.size + 1)

    def diffused(w, end):
        padded = jnp.pad(w, 1, constant_values=end)
        return (padded[:-2] - 2 * w + padded[2:]) / (50 * h**2)

    reaction = u**2 * v
    return jnp.concatenate(
        [diffused(u, 1.0) + 1 - 4 * u + reaction, diffused(v, 3.0) + 3 * u - reaction]
    )


def brusselator_start(n):
    x = np.arange(1, n + 1) / (n + 1)
    return np.concatenate([1 + 0.5 * np.sin(2 * np.pi * x), np.full(n, 3.0)])


# ---------------------------------------------------------------------- Robertson

K1, K2, K3 = 0.04, 3e7, 1e4


def robertson(h, z):
    """One implicit Euler step of length h from (1, 0, 0): y₀ + h ẏ − y."""
    a, b, c = z
    slow, fast, back = K1 * a, K2 * b**2, K3 * b * c
    rate = jnp.stack([back - slow, slow - back - fast, fast])
    return np.array([1.0, 0.0, 0.0]) + h * rate - z


def robertson_roots(h, physical=True):
    """Mass is kept and c = h K₂ b², which leaves a cubic in b; concentrations are not negative."""
    k = h * K2
    cubic = [-k * (h * K3), -k * (1 + h * K1), -(1 + h * K1), h * K1]
    found = []
    for b in np.roots(cubic):
        if abs(b.imag) < 1e-14 and (b.real >= 0) == physical:
            b = b.real
            found.append(np.array([1 - b - k * b**2, b, k * b**2]))
    return tuple(found)


def problems() -> tuple[Problem, ...]:
    partial = functools.partial
    n, side = 31, 9
    return (
        *(
            Problem(
                f"h-equation {c}",
                h_equation,
                1,
                np.ones(100),
                partial(h_root, c),
                wrong=partial(h_root, c, branch=1) if 0.5 < c < 1 else tuple,
                radius=1e-3 if c == 1 else None,  # a double root: ‖g‖ is of second order
                parameters=(np.array(c),),
            )
            for c in (0.5, 0.9, 0.99, 0.9999, 1.0)
        ),
        Problem(
            "h-equation 1.1, no root",
            h_equation,
            1,
            np.ones(100),
            tuple,
            parameters=(np.array(1.1),),
        ),
        *(
            Problem(
                name,
                bratu_1d,
                1,
                np.zeros(n),
                partial(bratu_1d_root, lam, n, -1) if lam < FOLD_1D else tuple,
                wrong=partial(bratu_1d_root, lam, n, 1) if lam < FOLD_1D else tuple,
                parameters=(np.array(scale), np.array(lam)),
            )
            for name, scale, lam in (
                ("bratu 1-d 1", 0.5 / (n + 1) ** 2, 1.0),
                ("bratu 1-d 3.5", 0.5 / (n + 1) ** 2, 3.5),
                ("bratu 1-d 4, no root", 0.5 / (n + 1) ** 2, 4.0),
                ("bratu 1-d unscaled", 1.0, 1.0),
            )
        ),
        *(
            Problem(
                f"bratu 2-d {lam:g}",
                bratu_2d,
                1,
                np.zeros(side**2),
                partial(bratu_2d_root, lam, side, -1),
                wrong=partial(bratu_2d_root, lam, side, 1),
                parameters=(np.array(lam),),
            )
            for lam in (5.0, 6.8)
        ),
        Problem(
            "diffusion with decay",
            diffusion_with_decay,
            1,
            np.zeros(n),
            lambda: (manufactured(n),),
        ),
        Problem(
            "brusselator",
            brusselator,
            1,
            brusselator_start(15),
            lambda: (np.repeat([1.0, 3.0], 15),),
        ),
        *(
            Problem(
                f"robertson {h:g}",
                robertson,
                1,
                np.array([1.0, 0.0, 0.0]),
                partial(robertson_roots, h),
                wrong=partial(robertson_roots, h, physical=False) if h < 100 else tuple,
                parameters=(np.array(h),),
            )
            for h in (0.01, 1.0, 100.0)
        ),
    )
