"""Systems of nonlinear equations of Moré, Garbow and Hillstrom (ACM TOMS 7(1), 1981).

Numbers, starts and solutions are theirs; functions and scales are those of their program, in which
Wood and Watson are gradients and the sum of squares' factor two is left out.
"""

from __future__ import annotations

import functools
import itertools

import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Polynomial

from .problem import Problem, newton, on_numpy


def rosenbrock(z):
    """(1)"""
    x, y = z
    return jnp.stack([10 * (y - x**2), 1 - x])


def powell_badly_scaled(z):
    """(3)"""
    x, y = z
    return jnp.stack([1e4 * x * y - 1, jnp.exp(-x) + jnp.exp(-y) - 1.0001])


def helical_valley(z):
    """(7)"""
    x, y, height = z
    theta = 0.25 + jnp.arctan2(-x, y) / (2 * jnp.pi)  # the turn from the x axis, in (−¼, ¾]
    return jnp.stack([10 * (height - 10 * theta), 10 * (jnp.sqrt(x**2 + y**2) - 1), height])


def powell_singular(z):
    """(13)"""
    a, b, c, d = z
    return jnp.stack(
        [a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2],
    )


def wood(z):
    """(14), gradient"""
    a, b, c, d = z
    return jnp.stack(
        [
            -200 * a * (b - a**2) - (1 - a),
            200 * (b - a**2) + 20.2 * (b - 1) + 19.8 * (d - 1),
            -180 * c * (d - c**2) - (1 - c),
            180 * (d - c**2) + 20.2 * (d - 1) + 19.8 * (b - 1),
        ]
    )


def watson(z):
    """(20), gradient"""
    t = np.arange(1, 30)[:, None] / 29
    j = np.arange(z.size)
    powers = t**j
    slopes = j * t ** np.maximum(j - 1, 0)
    s = powers @ z
    r = slopes @ z - s**2 - 1
    gradient = (slopes - 2 * s[:, None] * powers).T @ r
    last = z[1] - z[0] ** 2 - 1
    gradient = gradient.at[0].add(z[0] - 2 * z[0] * last)
    return gradient.at[1].add(last)


def trigonometric(z):
    """(26)"""
    i = np.arange(1, z.size + 1)
    return z.size - jnp.sum(jnp.cos(z)) + i * (1 - jnp.cos(z)) - jnp.sin(z)


def brown_almost_linear(z):
    """(27)"""
    return (z + jnp.sum(z) - (z.size + 1)).at[-1].set(jnp.prod(z) - 1)


def discrete_boundary_value(z):
    """(28)"""
    h = 1 / (z.size + 1)
    t = h * np.arange(1, z.size + 1)
    padded = jnp.pad(z, 1)
    return 2 * z - padded[:-2] - padded[2:] + h**2 * (z + t + 1) ** 3 / 2


def discrete_integral_equation(z):
    """(29)"""
    h = 1 / (z.size + 1)
    t = h * np.arange(1, z.size + 1)
    green = np.minimum(t[:, None], t) * (1 - np.maximum(t[:, None], t))
    return z + h / 2 * green @ (z + t + 1) ** 3


def variably_dimensioned(z):
    """(25)"""
    j = np.arange(1, z.size + 1)
    total = jnp.sum(j * (z - 1))
    return z - 1 + j * total * (1 + 2 * total**2)


def broyden_tridiagonal(z):
    """(30)"""
    padded = jnp.pad(z, 1)
    return (3 - 2 * z) * z - padded[:-2] - 2 * padded[2:] + 1


def broyden_banded(z):
    """(31)"""
    offset = np.arange(z.size) - np.arange(z.size)[:, None]
    band = ((offset >= -5) & (offset <= 1) & (offset != 0)).astype(float)
    return z * (2 + 5 * z**2) + 1 - band @ (z * (1 + z))


def chebyquad(z):
    """(35)"""
    last, polynomial = jnp.ones_like(z), 2 * z - 1
    values = []
    for i in range(1, z.size + 1):
        values.append(jnp.mean(polynomial) - (0 if i % 2 else -1 / (i**2 - 1)))
        last, polynomial = polynomial, 2 * (2 * z - 1) * polynomial - last
    return jnp.stack(values)


# ----------------------------------------------------------------------------------- roots


def near(function, *guesses):
    """Roots by dense Newton from guesses: published digits, or what is close to them."""
    return lambda: tuple(newton(on_numpy(function), z) for z in guesses)


def powell_badly_scaled_roots():
    """x y = 1e-4 leaves one equation in log x; the mirror image (y, x) is a root as well."""
    w = newton(lambda w: np.exp(-np.exp(w)) + np.exp(-1e-4 * np.exp(-w)) - 1.0001, [np.log(1.1e-5)])
    x, y = np.exp(w[0]), 1e-4 * np.exp(-w[0])
    return np.array([x, y]), np.array([y, x])


def brown_roots(n):
    """(α, …, α, α^(1−n)) with n αⁿ − (n + 1) α^(n−1) + 1 = 0; α = 1 is one of them."""
    coefficients = np.zeros(n + 1)
    coefficients[[0, n - 1, n]] = 1, -(n + 1), n
    alpha = Polynomial(coefficients).roots()
    alpha = alpha[np.abs(alpha.imag) < 1e-9].real
    function = on_numpy(brown_almost_linear)
    return tuple(newton(function, np.append(np.full(n - 1, a), a ** (1 - n))) for a in alpha)


def chebyshev_nodes(n):
    """Nodes of the quadrature with equal weights, from their power sums by Newton's identities."""
    powers = [n * (1 + (-1) ** k) / 2 / (k + 1) for k in range(n + 1)]
    e = [1.0]
    for k in range(1, n + 1):
        e.append(sum((-1) ** (i - 1) * e[k - i] * powers[i] for i in range(1, k + 1)) / k)
    nodes = np.sort(np.roots([(-1) ** k * e[k] for k in range(n + 1)]).real)
    return (newton(on_numpy(chebyquad), (1 + nodes) / 2),)


def boundary_value_guess(n):
    """The solution of the differential equation, z = 2/(2 − t) − t − 1."""
    t = np.arange(1, n + 1) / (n + 1)
    return 2 / (2 - t) - t - 1


def trigonometric_roots(n=10):
    """All roots in (−π, π]ⁿ but 0.

    With C = Σ cos zⱼ − n, each zᵢ solves i (1 − cos zᵢ) − sin zᵢ = C, so it is one of two numbers,
    φᵢ ± arccos((i − C) / √(i² + 1)): for each choice of signs, one equation in C is left.
    """
    i = np.arange(1, n + 1)
    angle, length = np.arctan2(1, i), np.sqrt(i**2 + 1)
    signs = np.array(list(itertools.product([-1, 1], repeat=n)))

    def solutions(c):
        return angle + signs * np.arccos(np.minimum((i - c) / length, 1))

    # C lies between n − √(n² + 1), where the arccos of i = n has a square root, and 0, the root 0.
    cs = (n - length[-1]) * (1 - np.linspace(0, 0.99, 400) ** 2)
    equation = on_numpy(trigonometric)
    found, last = [], None
    for c in cs:
        z = solutions(c)
        left = np.cos(z).sum(1) - n - c
        if last is not None:
            found += [newton(equation, x) for x in z[left * last < 0]]
        last = left
    return tuple(found)


# The two stationary points of Wood's function that are not its minimum, to a few digits.
WOOD = np.array(
    [[-0.96797, 0.94714, -0.96952, 0.95125], [-0.031251, 0.165971, -0.031258, 0.184264]]
)
WATSON = np.array(
    [-0.01572508640, 1.012434869, -0.2329916259, 1.260430087, -1.513728922, 0.9929964324]
)


def problems() -> tuple[Problem, ...]:
    ramp = np.arange(1, 11) / 11
    return (
        Problem("rosenbrock", rosenbrock, 1, np.array([-1.2, 1.0]), lambda: (np.ones(2),)),
        Problem(
            "powell badly scaled",
            powell_badly_scaled,
            -1,
            np.array([0.0, 1.0]),
            powell_badly_scaled_roots,
        ),
        Problem(
            "helical valley",
            helical_valley,
            -1,
            np.array([-1.0, 0.0, 0.0]),
            lambda: (np.array([1.0, 0.0, 0.0]),),
        ),
        Problem(
            "powell singular",
            powell_singular,
            -1,
            np.array([3.0, -1.0, 0.0, 1.0]),
            lambda: (np.zeros(4),),
            radius=3e-4,  # as (b − 2c)² ≤ 1e-8 and (a − d)² ≤ 1e-8 / √10 allow
        ),
        Problem(
            "wood",
            wood,
            -1,
            np.array([-3.0, -1.0, -3.0, -1.0]),
            lambda: (np.ones(4),),
            wrong=near(wood, *WOOD),
        ),
        Problem("watson", watson, -1, np.zeros(6), near(watson, WATSON)),
        Problem(
            "variably dimensioned",
            variably_dimensioned,
            -1,
            1 - np.arange(1, 11) / 10,
            lambda: (np.ones(10),),
        ),
        Problem(
            "trigonometric",
            trigonometric,
            1,
            np.full(10, 0.1),
            lambda: (np.zeros(10),),
            wrong=trigonometric_roots,
            canonical=lambda z: (z + np.pi) % (2 * np.pi) - np.pi,
        ),
        *(
            Problem(
                f"brown almost linear {n}",
                brown_almost_linear,
                -1,
                np.full(n, 0.5),
                functools.partial(brown_roots, n),
            )
            for n in (5, 10, 20)
        ),
        Problem(
            "discrete boundary value",
            discrete_boundary_value,
            -1,
            ramp * (ramp - 1),
            near(discrete_boundary_value, boundary_value_guess(10)),
        ),
        Problem(
            "discrete integral equation",
            discrete_integral_equation,
            -1,
            ramp * (ramp - 1),
            near(discrete_integral_equation, boundary_value_guess(10)),
        ),
        Problem(
            "broyden tridiagonal",
            broyden_tridiagonal,
            -1,
            -np.ones(10),
            near(broyden_tridiagonal, np.linspace(-0.6, -0.4, 10)),
        ),
        Problem(
            "broyden banded",
            broyden_banded,
            -1,
            -np.ones(10),
            near(broyden_banded, np.full(10, -0.5)),
        ),
        *(
            Problem(
                f"chebyquad {n}",
                chebyquad,
                -1 if n == 9 else 1,
                np.arange(1, n + 1) / (n + 1),
                functools.partial(chebyshev_nodes, n),
                canonical=np.sort,
            )
            for n in (5, 6, 7, 9)
        ),
    )
