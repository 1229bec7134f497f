"""The comparison reports what the solves report, and measures the residual itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deqjax
from deqjax.diagnostics import compare_solvers

from .cells import matrix

A = 0.9 * matrix("symmetric", 6) / np.linalg.norm(matrix("symmetric", 6), 2)
X = np.random.default_rng(1).normal(size=(3, 6))


def f(z, x):
    return z @ jnp.asarray(A) + x


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True):
        solvers = {"short": deqjax.Picard(max_steps=4), "anderson": "anderson"}
        x = jnp.asarray(X)
        return compare_solvers(f, jnp.zeros_like(x), x, solvers=solvers, batch_axis=0, repeats=2)


def test_rows_are_the_solves(found):
    for row in found.rows:
        sol = found.solutions[row.solver]
        stats = sol.stats
        assert (row.steps, row.f_evals) == (int(stats.steps.max()), int(stats.f_evals.max()))
        z = np.asarray(sol.z)
        fz = z @ A + X
        true = np.linalg.norm(fz - z, axis=1) / np.linalg.norm(fz, axis=1)
        np.testing.assert_allclose(row.rel_residual, true.max(), rtol=1e-6)
        assert row.seconds > 0 and stats.trace is not None
    short, anderson = found.rows
    assert (short.status, short.converged) == ("3 of 3 failed: max_steps", 0.0)
    assert (anderson.status, anderson.converged) == ("converged", 1.0)


def test_the_scale_is_that_of_the_best_solution(found):
    fz = np.asarray(found.solutions["anderson"].z) @ A + X
    np.testing.assert_allclose(found.scale, np.linalg.norm(fz, axis=1), rtol=1e-12)


def test_the_table_lines_up(found):
    header, rule, *rows = str(found).splitlines()
    assert header.split()[:3] == ["solver", "f_evals", "steps"] and set(rule) == {"-", " "}
    assert rows[0].endswith("3 of 3 failed: max_steps") and rows[1].endswith("converged")
    column = header.index("status")
    assert all(row[column - 2 : column] == "  " and row[column] != " " for row in rows)


def test_one_equation_and_objects_by_what_is_not_default():
    found = compare_solvers(
        *(f, jnp.zeros(6), jnp.asarray(X[0])), solvers=(deqjax.Anderson(memory=2),), repeats=1
    )
    assert [row.solver for row in found.rows] == ["Anderson(memory=2)"]
    assert np.shape(found.scale) == ()


def test_says_what_is_wrong():
    with pytest.raises(ValueError, match="repeats must be an integer >= 1"):
        compare_solvers(f, jnp.zeros(6), X[0], repeats=0)
    with pytest.raises(ValueError, match="did you mean 'anderson'"):
        compare_solvers(f, jnp.zeros(6), X[0], solvers=("andersen",))
