"""Bad and degenerate input, for every solver and adjoint that has code of its own for them.

`test_options`, `test_status` and `test_batch` do the same for the plain solvers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax import Compacted, Status, WarmStart
from tests import cells

CASES = {
    "newton_krylov": dict(solver=deqjax.NewtonKrylov(memory=4)),
    "line_search": dict(solver=deqjax.Broyden(memory=3, line_search=True)),
    "gmres_adjoint": dict(solver="picard", adjoint_solver=deqjax.GMRES(memory=4)),
    "shine": dict(solver=cells.SMALL["broyden"], adjoint=deqjax.Shine(refine=1)),
    "reversible": dict(solver="picard", adjoint="reversible"),
    "tail": dict(solver="picard", adjoint=deqjax.Tail(steps=30)),
    "compacted": dict(solver=Compacted("picard", stages=1)),
    "warm_start": dict(solver=WarmStart(cells.SMALL["anderson"], "picard", steps=2)),
}
# The others share their code with these: they run with the slow tests.
QUICK = ("newton_krylov", "reversible", "tail", "compacted")


def marked(case, *more):
    return pytest.param(case, *more, marks=() if case in QUICK else pytest.mark.slow)


each_case = pytest.mark.parametrize("case", [marked(case) for case in CASES])
# One equation has no finished samples to leave behind: `Compacted` says so (test_compose).
one_equation = pytest.mark.parametrize(
    "case", [marked(case) for case in CASES if case != "compacted"]
)


def cell(z, a, x):
    return a * jnp.sin(z) + x


def value_and_grad(case, **options):
    """Jitted (z0, a, x) -> ((loss, solution), gradients to a and x)."""

    def loss(a, x, z0):
        sol = deqjax.fixed_point(cell, z0, a, x, **(dict(rtol=1e-6) | CASES[case] | options))
        return jnp.sum(jnp.cos(sol.z)), sol

    both = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    return lambda z0, a, x: both(a, x, z0)


@each_case
def test_an_empty_batch(case):
    x = np.zeros((0, 3))
    (_, sol), (a_bar, x_bar) = value_and_grad(case, batch_axis=0, trace=True)(x, 0.4, x)
    assert sol.z.shape == x_bar.shape == (0, 3) and float(a_bar) == 0.0
    assert all(s.shape == (0,) for s in (sol.stats.status, sol.stats.steps, sol.stats.residual))
    assert sol.stats.trace.shape == (101, 0)
    assert sol.raise_unless_converged() is sol


@each_case
def test_nan_in_a_sample_of_x_or_z0(case):
    """It is reported for that sample; z and gradient of the others are as they were."""
    run = value_and_grad(case, batch_axis=0)
    x, keep = np.linspace(-2.0, 3.0, 10).reshape(5, 2), np.array([0, 1, 2, 4])
    z0, bad = np.zeros((5, 2)), np.where(np.arange(5)[:, None] == 3, np.nan, 0.0)
    (_, clean), (_, clean_bar) = run(z0, 0.4, x)
    assert np.all(clean.stats.converged)
    for start, injection in ((z0, x + bad), (z0 + bad, x)):
        (_, sol), (_, x_bar) = run(start, 0.4, injection)
        assert int(sol.stats.status[3]) == Status.NONFINITE
        assert int(sol.stats.steps[3]) == 0
        np.testing.assert_array_equal(sol.z[3], start[3])
        assert cells.relative(sol.z[keep], clean.z[keep]) < 1e-12
        assert cells.relative(x_bar[keep], clean_bar[keep]) < 1e-12
        np.testing.assert_array_equal(sol.stats.status[keep], Status.CONVERGED)


@pytest.mark.parametrize(
    ("case", "batch_axis"),
    [
        marked(case, axis)
        for case in CASES
        for axis in (None, 0)
        if (case, axis) != ("compacted", None)
    ],
)
def test_scalar_states_and_scalar_samples(case, batch_axis):
    """State () as one equation, and (3,) as three; the gradient in closed form."""
    x = np.array([0.3, 1.0, 3.0])
    x = x[1] if batch_axis is None else x
    (_, sol), (_, x_bar) = value_and_grad(case, batch_axis=batch_axis, rtol=1e-7)(
        np.zeros_like(x), 0.4, x
    )
    assert sol.z.shape == sol.stats.status.shape == x.shape and np.all(sol.stats.converged)
    z = np.zeros_like(x)
    for _ in range(60):
        z = 0.4 * np.sin(z) + x
    assert cells.relative(sol.z, z) < 1e-6
    slope = 0.4 * np.cos(z)
    want = -np.sin(z) / (1 - slope)
    if case == "shine":  # approximate, and never worse than without an inverse
        left = np.abs(slope * x_bar - np.sin(z) - x_bar)
        assert np.all(left <= np.abs(slope * np.sin(z)) * (1 + 1e-6))
    else:
        assert cells.relative(x_bar, want) < 1e-4


@one_equation
def test_max_steps_0_evaluates_f_at_z0(case):
    """The adjoint has a limit of its own and is solved at z0; back through no step it is zero."""
    z0, x = np.array([0.5, -0.2]), np.array([0.3, 1.0])
    (_, sol), (a_bar, x_bar) = value_and_grad(case, max_steps=0)(z0, 0.4, x)
    np.testing.assert_array_equal(sol.z, z0)
    assert int(sol.stats.status) == Status.MAX_STEPS
    assert (int(sol.stats.steps), int(sol.stats.f_evals)) == (0, 1)
    np.testing.assert_allclose(
        sol.stats.residual, np.linalg.norm(0.4 * np.sin(z0) + x - z0), rtol=1e-12
    )
    if case == "reversible":
        assert float(a_bar) == 0.0 and not np.any(x_bar)
    # Shine needs no step to have an inverse, −I, and refines it; Tail's gradient is taken along the
    # iterates that follow z0 (test_tail).
    elif case not in ("shine", "tail"):
        u = -np.sin(z0) / (1 - 0.4 * np.cos(z0))
        np.testing.assert_allclose(x_bar, u, rtol=1e-5)
        np.testing.assert_allclose(a_bar, u @ np.sin(z0), rtol=1e-5)


@pytest.mark.slow
def test_more_memory_than_steps_or_unknowns():
    x = np.array([0.3, 1.0])
    for solver in (
        deqjax.NewtonKrylov(memory=50),
        deqjax.Broyden(memory=50, line_search=True),
        WarmStart(deqjax.Broyden(memory=50), deqjax.Anderson(memory=50), steps=2),
    ):
        f = lambda z, x: 0.4 * z + 0.1 * z[::-1] + x
        sol = jax.jit(
            lambda x, s=solver, f=f: deqjax.fixed_point(
                f, jnp.zeros_like(x), x, solver=s, max_steps=6, rtol=1e-10
            )
        )(x)
        assert bool(sol.stats.converged), solver
        jacobian = np.array([[0.4, 0.1], [0.1, 0.4]])
        assert cells.relative(sol.z, np.linalg.solve(np.eye(2) - jacobian, x)) < 1e-9
    shine = jax.grad(
        lambda x: jnp.sum(
            deqjax.fixed_point(
                f,
                jnp.zeros_like(x),
                x,
                solver=deqjax.Broyden(memory=50),
                adjoint=deqjax.Shine(refine=8),
                max_steps=6,
            ).z
        )
    )(x)
    assert cells.relative(shine, np.linalg.solve(np.eye(2) - jacobian, np.ones(2))) < 1e-4


@pytest.mark.parametrize(
    ("kind", "f", "z0", "words"),
    [
        (ValueError, lambda z: z[:-1], np.zeros((4, 2)), ("shape", "(4, 2)", "(3, 2)")),
        (ValueError, lambda z: z.sum(0), np.zeros((4, 2)), ("shape", "(4, 2)", "(2,)")),
        (
            TypeError,
            lambda z: z.astype(jnp.float32),
            np.zeros((4, 2)),
            ("dtype", "float64", "float32"),
        ),
        (TypeError, lambda z: (z, z), np.zeros((4, 2)), ("structure",)),
        (TypeError, lambda z: z, np.zeros((4, 2), int), ("int", "floating point")),
        (ValueError, lambda z: z, np.zeros(()), ("batch_axis=0", "()")),
    ],
)
@each_case
def test_wrong_cells_and_states_get_the_sentence_of_the_plain_solvers(case, kind, f, z0, words):
    with pytest.raises(kind) as error:
        deqjax.fixed_point(f, z0, batch_axis=0, **CASES[case])
    text = str(error.value)
    assert all(word in text for word in words) and "\n" not in text and len(text) < 300
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    "make", [deqjax.NewtonKrylov, deqjax.GMRES, Compacted, WarmStart], ids=lambda m: m.__name__
)
@pytest.mark.parametrize(
    "options",
    [dict(rtol=-1e-3), dict(atol=-1.0), dict(max_steps=-1), dict(rtol=float("nan"))],
    ids=lambda o: next(iter(o)),
)
def test_tolerances_of_other_solvers_are_checked(make, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*>= 0.*got {value!r}"):
        make(**options)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: deqjax.NewtonKrylov(memory=0), ("memory", ">= 1", "0")),
        (lambda: deqjax.GMRES(memory=2.5), ("memory", "integer", "2.5")),
        (lambda: deqjax.NewtonKrylov(forcing="a"), ("forcing", "'a'")),
        (lambda: deqjax.Shine(refine=1.5), ("refine", "integer", "1.5")),
        (lambda: deqjax.Reversible(damping=0.0), ("damping", "0.0")),
        (lambda: deqjax.Reversible(damping="b"), ("damping", "'b'")),
    ],
)
def test_options_of_other_solvers_and_adjoints(make, words):
    with pytest.raises((TypeError, ValueError)) as error:
        make()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("adjoint", ["shine", "reversible"])
def test_an_adjoint_solver_means_nothing_to_those_that_solve_nothing(adjoint):
    with pytest.raises(ValueError, match="adjoint_solver= has no effect"):
        deqjax.fixed_point(
            jnp.cos,
            jnp.zeros(2),
            solver={"shine": "broyden", "reversible": "picard"}[adjoint],
            adjoint=adjoint,
            adjoint_solver="picard",
        )
