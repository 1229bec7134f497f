"""What a test problem is, and the dense Newton method that makes references for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

TOL = 1e-8


@dataclass(frozen=True)
class Problem:
    """g(z) = 0 from a standard start, and the roots to be found.

    The sign of g is chosen once for all solvers, SciPy's too, as `deqjax.root_find` asks: so that
    the trace of ∂g/∂z is negative at the root, as it is for g = f − z. `sign` is what turns the
    published function into g.

    Attributes:
        name: as in the tables.
        function: (*parameters, z) -> values: the published function in jax.numpy on a flat vector.
        sign: +1 or −1.
        start: the published start.
        references: makes the roots that count as right; none if g has no root at all.
        wrong: makes roots that g has, but that are not the answer: another branch, say.
        radius: how far from a root a z with ‖g(z)‖ ≤ TOL may lie. None: five times what the
            smallest singular value of ∂g/∂z at the root allows to first order. Problems whose root
            is singular, or nearly so, state their own.
        symmetric: g does not depend on the order of the components of z: roots are compared sorted.
    """

    name: str
    function: Callable
    sign: int
    start: np.ndarray
    references: Callable[[], tuple[np.ndarray, ...]]
    wrong: Callable[[], tuple[np.ndarray, ...]] = tuple
    radius: float | None = None
    canonical: Callable = np.asarray
    parameters: tuple = ()

    @property
    def n(self) -> int:
        return self.start.size

    def g(self, z):
        return self.sign * self.function(*self.parameters, z)

    @functools.cached_property
    def evaluate(self) -> Callable[[np.ndarray], np.ndarray]:
        """g on numpy arrays."""
        return on_numpy(self.g)

    def norm(self, z) -> float:
        """‖g(z)‖₂."""
        return float(np.linalg.norm(self.evaluate(np.asarray(z, np.float64))))

    def round_off(self, z) -> float:
        """How much ‖g(z)‖ may change with the order of additions in g and in (z + g) − z.

        As much as g changes when the last bits of z do; ten times that, since it is an estimate,
        and a hundred times the last bit of 1, which stands for the constants in g.
        """
        z = np.asarray(z, np.float64)
        eps = np.finfo(np.float64).eps
        value = self.evaluate(z)
        noise = np.random.default_rng(0).choice([-2.0, 2.0], size=(4, z.size)) * eps
        moved = max(np.linalg.norm(self.evaluate(z * (1 + x)) - value) for x in noise)
        size = np.linalg.norm(z) + np.linalg.norm(value)
        return float(10 * moved + 4 * eps * size + 100 * eps)

    @functools.cached_property
    def roots(self) -> tuple[np.ndarray, ...]:
        return self.references()

    @functools.cached_property
    def wrong_roots(self) -> tuple[np.ndarray, ...]:
        return self.wrong()

    def distance(self, z, root) -> float:
        return float(np.linalg.norm(self.canonical(z) - self.canonical(root)))

    def reach(self, root) -> float:
        """How far from the root a z with ‖g(z)‖ ≤ TOL may lie."""
        if self.radius is not None:
            return self.radius
        smallest = np.linalg.svd(jacobian(self.evaluate, root), compute_uv=False)[-1]
        return 5 * TOL / smallest + 1e-14 * float(np.linalg.norm(root))

    def is_at(self, z, roots) -> bool:
        if not roots:
            return False
        nearest = min(roots, key=lambda root: self.distance(z, root))
        return self.distance(z, nearest) <= self.reach(nearest)


def on_numpy(function: Callable) -> Callable[[np.ndarray], np.ndarray]:
    function = jax.jit(function)
    return lambda z: np.array(function(np.asarray(z, np.float64)))


def jacobian(g: Callable, z: np.ndarray) -> np.ndarray:
    """∂g/∂z by central differences."""
    columns = []
    for j in range(z.size):
        step = np.zeros_like(z)
        step[j] = 6e-6 * max(abs(z[j]), 1e-2)
        columns.append((g(z + step) - g(z - step)) / (2 * step[j]))
    return np.stack(columns, 1)


def newton(g: Callable, z: np.ndarray, steps: int = 40) -> np.ndarray:
    """The root of g near z: Newton's method with a dense Jacobian, to round-off.

    g may return more values than z has: then the step is Gauss and Newton's.
    """
    z = np.array(z, np.float64)
    best, size = z, np.inf
    for _ in range(steps):
        value = g(z)
        if not np.linalg.norm(value) < size:
            break
        best, size = z, np.linalg.norm(value)
        step = np.linalg.lstsq(jacobian(g, z), -value, rcond=None)[0]
        while not np.linalg.norm(g(z + step)) < size and np.linalg.norm(step) > 1e-3:
            step = step / 2
        z = z + step
    if not size < 1e-9:
        raise AssertionError(f"the reference was not found: ‖g‖ = {size:.1e}")
    return best
