"""The tuned solvers against plain ones (`reference`), iterate by iterate, in values and gradients.

The library orders its reads and writes for a compiler, works on histories as rings, carries Gram
matrices along and freezes samples. None of that may show: an iterate and its derivative are those
of the formula in the paper.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from tests import cells

from . import reference

N, STEPS = 7, 6
# Memories below and above the number of steps.
METHODS = {
    "picard": (reference.picard, deqjax.Picard, dict(damping=0.7)),
    "anderson": (reference.anderson, deqjax.Anderson, dict(memory=2)),
    "anderson, long": (reference.anderson, deqjax.Anderson, dict(memory=9, mixing=0.8)),
    "anderson, ridge": (reference.anderson, deqjax.Anderson, dict(memory=3, ridge=0.1)),
    "broyden": (reference.broyden, deqjax.Broyden, dict(memory=2)),
    "broyden, long": (reference.broyden, deqjax.Broyden, dict(memory=9)),
}
SLOW = pytest.mark.slow


def slow_unless(quick):
    return [pytest.param(name, marks=() if name == quick else SLOW) for name in METHODS]


def problem(cell) -> tuple[Callable, np.ndarray, Any]:
    """f(z, *args), z0 and args, numpy."""
    z0 = np.random.default_rng(1).normal(size=N)
    if cell == "tanh":
        return cells.tanh_cell, z0, cells.tanh_parameters(N, radius=0.95)
    a, b, _ = cells.linear(np.linspace(-0.9, 0.8, N), symmetric=False)
    return cells.linear_cell, z0, (a, b)


def residuals_of(f, zs):
    return jax.vmap(lambda z: jnp.linalg.norm(f(z) - z))(zs)


@functools.cache
def plain(name, cell):
    """Of all iterates of the plain solver: z, ‖f(z) − z‖, and the gradients of the loss to z0 and
    args."""
    f, z0, args = problem(cell)
    method, _, options = METHODS[name]

    def losses(z0, args):
        zs = method(lambda z: f(z, *args), z0, STEPS, **options)
        return jax.vmap(cells.loss_of)(zs), (zs, residuals_of(lambda z: f(z, *args), zs))

    gradients, (zs, residuals) = jax.jit(jax.jacrev(losses, (0, 1), has_aux=True))(z0, args)
    return zs, residuals, gradients


def at(step, tree):
    return jax.tree.map(lambda x: x[step], tree)


def forward(f, z0, *args, **options):
    """Every step, unless told otherwise."""
    every_step: dict[str, Any] = dict(rtol=0.0, atol=0.0, trace=True)
    return deqjax.fixed_point(f, z0, *args, **every_step | options)


def tuned(name, f, loss, steps, **options):
    """(z, trace) and the gradient of the loss to z0 and args, of the library's solver."""
    _, make, own = METHODS[name]

    def run(z0, args):
        options_ = dict(solver=make(**own), max_steps=steps, adjoint="unrolled") | options
        sol = forward(f, z0, *args, **options_)
        return loss(sol.z), sol

    return jax.jit(jax.grad(run, (0, 1), has_aux=True))


@pytest.mark.parametrize(
    ("name", "cell", "steps"),
    [
        pytest.param(name, cell, steps, marks=() if quick else SLOW)
        for name in METHODS
        for cell in ("tanh", "linear")
        for steps in (STEPS, 1, 2, 4)
        for quick in [(cell, steps) == ("tanh", STEPS) and "," not in name]
    ],
)
def test_iterates_and_their_gradients(name, cell, steps):
    """The trace holds the residuals of all iterates, so that the last budget sees most."""
    f, z0, args = problem(cell)
    zs, residuals, gradients = plain(name, cell)
    got, sol = tuned(name, f, cells.loss_of, steps)(z0, args)
    best = int(np.argmin(residuals[: steps + 1]))
    np.testing.assert_allclose(sol.stats.trace, residuals[: steps + 1], rtol=1e-7)
    assert cells.relative(sol.z, zs[best]) < 1e-9
    assert cells.relative(got, at(best, gradients)) < 1e-7


@pytest.mark.parametrize("name", slow_unless("broyden"))
def test_several_leaves_are_one_vector(name):
    f, z0, args = problem("tanh")
    zs, residuals, (z0_bar, args_bar) = plain(name, "tanh")
    loss = lambda tree: cells.loss_of(jnp.concatenate([tree["a"], tree["b"][0]]))
    got, sol = tuned(name, cells.on_pytrees(f), loss, STEPS)(cells.split(z0), args)
    best = int(np.argmin(residuals))
    assert cells.relative(sol.z, cells.split(zs[best])) < 1e-9
    assert cells.relative(got, (cells.split(z0_bar[best]), at(best, args_bar))) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless("anderson"))
def test_samples_of_a_batch_stop_each_at_their_own_iterate(name):
    """And their gradients are those of these iterates: nothing of the steps that the others went
    on for."""
    f, z0, (theta, x) = problem("tanh")
    sizes = np.array([1e-3, 0.3, 1.0])
    # The batch on the last axis.
    z0, x = np.outer(z0, sizes), np.outer(x, [1e-2, 3.0, 1.0])
    rtol, steps = 3e-2, 9

    cell = jax.vmap(f, in_axes=(1, None, 1), out_axes=1)
    loss = lambda z: cells.loss_of(z.T)
    run = tuned(name, cell, loss, steps, batch_axis=1, rtol=rtol)
    (z0_bar, (theta_bar, x_bar)), sol = run(z0, (theta, x))

    method, _, options = METHODS[name]

    @jax.jit
    def alone(z0, theta, x):
        def losses(z0, theta, x):
            g = lambda z: f(z, theta, x)
            zs = method(g, z0, steps, **options)
            sizes = jax.vmap(lambda z: jnp.linalg.norm(g(z)))(zs)
            return jax.vmap(cells.loss_of)(zs), (zs, residuals_of(g, zs), sizes)

        return jax.jacrev(losses, (0, 1, 2), has_aux=True)(z0, theta, x)

    ends, total = [], jax.tree.map(np.zeros_like, theta)
    for i in range(3):
        gradients, (zs, residuals, sizes) = alone(z0[:, i], theta, x[:, i])
        k = int(np.argmax(residuals <= rtol * sizes))
        want = at(k, gradients)
        assert cells.relative(sol.z[:, i], zs[k]) < 1e-9
        assert int(sol.stats.steps[i]) == k > 0
        assert cells.relative((z0_bar[:, i], x_bar[:, i]), (want[0], want[2])) < 1e-7
        total = jax.tree.map(np.add, total, want[1])
        ends.append(k)
    assert len(set(ends)) > 1  # if not, another example is needed
    assert cells.relative(theta_bar, total) < 1e-7


# ------------------------------------------------------------------------------- Newton, GMRES


@pytest.mark.parametrize(
    ("radius", "memory"),
    [(4.0, 20), *(pytest.param(*p, marks=SLOW) for p in [(4.0, 2), (0.95, 20), (0.95, 2)])],
)
def test_newton_krylov_step_by_step(radius, memory):
    """Radius 4 is where its line search has work to do."""
    theta, x = cells.tanh_parameters(N, radius=radius)
    f = lambda z: cells.tanh_cell(z, theta, x)
    zs = reference.newton_krylov(f, np.zeros(N), 5, memory=memory)
    residuals = residuals_of(f, zs)
    for steps in (2, 5):
        sol = forward(f, np.zeros(N), solver=deqjax.NewtonKrylov(memory=memory), max_steps=steps)
        # Not what rounding has left in the place of a residual.
        clear = residuals[: steps + 1] > 1e-7
        assert clear.sum() > 2
        np.testing.assert_allclose(sol.stats.trace[clear], residuals[: steps + 1][clear], rtol=1e-7)
        assert cells.relative(sol.z, zs[int(np.argmin(residuals[: steps + 1]))]) < 1e-8


def test_newton_is_done_with_a_linear_equation_in_one_step():
    f, z0, (a, b) = problem("linear")
    solver = deqjax.NewtonKrylov(memory=N, forcing=1e-12)
    sol = deqjax.fixed_point(f, z0, a, b, solver=solver, max_steps=1)
    assert cells.relative(sol.z, np.linalg.solve(np.eye(N) - a, b)) < 1e-9


@pytest.mark.parametrize("memory", [1, 3])
def test_gmres_cycle_by_cycle(memory):
    f, z0, (a, b) = problem("linear")
    zs = [z0]
    for _ in range(4):
        d, _ = reference.gmres(np.eye(N) - a, b + a @ zs[-1] - zs[-1], memory=memory)
        zs.append(zs[-1] + d)
    residuals = residuals_of(lambda z: f(z, a, b), np.stack(zs))
    for cycles in (1, 4):
        sol = forward(f, z0, a, b, solver=deqjax.GMRES(memory=memory), max_steps=cycles)
        assert cells.relative(sol.z, zs[cycles]) < 1e-9
        np.testing.assert_allclose(sol.stats.trace, residuals[: cycles + 1], rtol=1e-8)


@pytest.mark.parametrize("rtol", [3e-1, 1e-1])
def test_gmres_takes_no_more_products_than_it_needs(rtol):
    f, z0, (a, b) = problem("linear")
    r = b + a @ z0 - z0
    target = 0.5 * rtol * np.linalg.norm(a @ z0 + b)
    d, products = reference.gmres(np.eye(N) - a, r, memory=20, target=target)
    sol = deqjax.fixed_point(f, z0, a, b, solver=deqjax.GMRES(rtol=rtol), max_steps=1)
    assert 0 < products < N
    assert int(sol.stats.f_evals) == 1 + products + 2
    assert cells.relative(sol.z, z0 + d) < 1e-9
