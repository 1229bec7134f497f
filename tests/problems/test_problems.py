"""Standard problems: no solver of ours claims what is not so, and together they solve them all.

`python -m tests.problems.table` prints who needs how many evaluations.
"""

import numpy as np
import pytest

from deqjax import Status

from . import equations
from .harness import BUDGET, OURS, PROBLEMS, SCIPY, SOLVERS, max_steps, ours, scipys
from .more_garbow_hillstrom import WATSON, boundary_value_guess
from .problem import TOL, jacobian, newton

FAILURES = (Status.MAX_STEPS, Status.NONFINITE, Status.DIVERGED, Status.INCONSISTENT)

SOLVABLE = [name for name, p in PROBLEMS.items() if "no root" not in name]
SEVERAL = [name for name in SOLVABLE if PROBLEMS[name].wrong is not tuple]
# Where Newton's method, which is global only in that it does not diverge, ends at another root than
# the published one: at a saddle of Wood's function, and at one of nine other trigonometric roots.
ELSEWHERE = {"wood", "trigonometric"}

every_problem = pytest.mark.parametrize("name", PROBLEMS)
every_solvable = pytest.mark.parametrize("name", SOLVABLE)
every_solver = pytest.mark.parametrize(
    "solver", [s if s in OURS else pytest.param(s, marks=pytest.mark.slow) for s in SOLVERS]
)


# ------------------------------------------------------------------------------- the solvers


@every_problem
@every_solver
def test_what_a_solver_says_is_so(solver, name):
    problem, outcome = PROBLEMS[name], ours(solver, name)
    stats = outcome.stats
    noise = problem.round_off(outcome.z)
    assert np.all(np.isfinite(outcome.z))
    assert abs(float(stats.residual) - outcome.residual) <= noise
    assert outcome.residual <= problem.norm(problem.start) + noise
    assert bool(stats.converged) == (int(stats.status) == Status.CONVERGED)
    if stats.converged:
        assert outcome.residual <= TOL + noise
    else:
        assert int(stats.status) in FAILURES
        assert outcome.residual > TOL - noise
    assert (int(stats.status) != Status.MAX_STEPS) or int(stats.steps) == max_steps(solver)
    assert int(stats.f_evals) > int(stats.steps)


@pytest.mark.slow
def test_every_ending_occurs():
    """So that the test above says something about each of them."""
    endings = {int(ours(solver, name).stats.status) for solver in OURS for name in PROBLEMS}
    assert endings == {Status.CONVERGED, Status.MAX_STEPS, Status.NONFINITE, Status.DIVERGED}


@every_problem
@every_solver
def test_what_converged_is_at_a_root(solver, name):
    """The right one; or another documented one; or one where a dense Newton method stays."""
    problem, outcome = PROBLEMS[name], ours(solver, name)
    if not outcome.claims_success or problem.is_at(outcome.z, problem.roots + problem.wrong_roots):
        return
    # Some systems have roots that nobody has counted, and which one a quasi-Newton method ends at
    # depends on rounding.
    root = newton(problem.evaluate, outcome.z)
    assert problem.norm(root) < TOL and problem.distance(outcome.z, root) <= problem.reach(root)


@every_solvable
def test_together_we_solve_what_scipy_solves(name):
    """If one of SciPy's three is at the right root, so is one of ours; else any root will do."""
    problem = PROBLEMS[name]
    theirs = [o for o in (scipys(method, name) for method in SCIPY) if o.solved]
    mine = [o for o in (ours(solver, name) for solver in OURS) if o.solved]
    right = lambda outcomes: [o for o in outcomes if problem.is_at(o.z, problem.roots)]
    assert mine or not theirs
    assert right(mine) or not right(theirs)


def test_scipy_is_a_measure():
    """Its three methods run, and solve most problems: the test above is not empty."""
    solved = [n for n in SOLVABLE if any(scipys(method, n).solved for method in SCIPY)]
    assert len(solved) >= 40
    for method in SCIPY:
        assert scipys(method, "h-equation 0.5").solved


@every_solvable
def test_newton_krylov_solves_them_all(name):
    """Within the budget, and at the right root but where `ELSEWHERE` says."""
    problem, outcome = PROBLEMS[name], ours("newton_krylov", name)
    assert outcome.solved
    assert name in ELSEWHERE or problem.is_at(outcome.z, problem.roots)


@pytest.mark.parametrize("name", ["h-equation 0.5", "h-equation 0.9", "h-equation 0.99"])
@pytest.mark.parametrize("solver", ["anderson", "broyden"])
def test_a_contraction_is_solved_in_few_evaluations(solver, name):
    problem, outcome = PROBLEMS[name], ours(solver, name)
    assert outcome.solved and outcome.f_evals <= 16
    assert problem.is_at(outcome.z, problem.roots)


# ------------------------------------------------------------------------------- the problems


@every_solvable
def test_references_are_roots(name):
    problem = PROBLEMS[name]
    assert problem.norm(problem.start) > 1e3 * TOL
    assert problem.roots
    for root in problem.roots + problem.wrong_roots:
        assert problem.norm(root) <= min(0.1 * TOL, problem.round_off(root))


@every_solvable
def test_sign_is_that_of_a_fixed_point(name):
    """The trace of ∂g/∂z is negative at a right root, as that of J − I is."""
    problem = PROBLEMS[name]
    traces = [np.trace(jacobian(problem.evaluate, root)) for root in problem.roots]
    assert min(traces) < 0


@pytest.mark.parametrize("name", SEVERAL)
def test_right_and_wrong_roots_are_told_apart(name):
    problem = PROBLEMS[name]
    assert problem.wrong_roots
    for root in problem.wrong_roots:
        assert not problem.is_at(root, problem.roots)
        assert problem.is_at(root, problem.wrong_roots)


def root(name):
    return PROBLEMS[name].roots[0]


def test_published_numbers():
    np.testing.assert_allclose(root("watson"), WATSON, rtol=1e-8)
    np.testing.assert_allclose(root("powell badly scaled"), [1.098e-5, 9.106], rtol=2e-4)
    alphas = sorted(r[0] for r in PROBLEMS["brown almost linear 10"].roots)
    np.testing.assert_allclose(alphas, [0.9794304, 1.0], rtol=1e-7)
    # Abramowitz and Stegun, table 25.5, on [−1, 1].
    nodes = {
        5: [0.0, 0.374541, 0.832497],
        6: [0.266635, 0.422519, 0.866247],
        7: [0.0, 0.323912, 0.529657, 0.883862],
        9: [0.0, 0.167906, 0.528762, 0.601019, 0.911589],
    }
    for n, positive in nodes.items():
        half = np.sort(2 * root(f"chebyquad {n}") - 1)[n // 2 :]
        np.testing.assert_allclose(half, positive, atol=1e-6)
    assert len(PROBLEMS["trigonometric"].wrong_roots) == 9


def test_the_discrete_boundary_value_problem_is_the_discrete_integral_equation():
    """The kernel of the one is the inverse of the differences of the other."""
    z = root("discrete boundary value")
    np.testing.assert_allclose(z, root("discrete integral equation"), rtol=1e-12)
    np.testing.assert_allclose(z, boundary_value_guess(10), atol=1 / 11**2)


@pytest.mark.parametrize("c", [0.5, 0.9, 0.99, 0.9999, 1.0])
def test_h_equation_has_its_exact_mean(c):
    h = root(f"h-equation {c}")
    np.testing.assert_allclose(np.mean(h), 2 * (1 - np.sqrt(1 - c)) / c, rtol=1e-12)
    if c == 1:  # Chandrasekhar's H(1) for c = 1
        mu = (np.arange(100) + 0.5) / 100
        at_one = 1 / (1 - 0.5 * np.mean(h / (1 + mu)))
        np.testing.assert_allclose(at_one, 2.9078, rtol=2e-3)


@pytest.mark.parametrize("lam", [1.0, 3.5])
def test_bratu_in_one_dimension_is_near_its_closed_form(lam):
    """The error falls with the square of the mesh width: halved, it leaves a quarter."""
    problem = PROBLEMS[f"bratu 1-d {lam:g}"]
    for roots, branch in ((problem.roots, -1), (problem.wrong_roots, 1)):
        fine = equations.bratu_1d_root(lam, 63, branch)[0]
        errors = [
            np.max(np.abs(z - equations.bratu_1d_exact(lam, z.size, branch)))
            for z in (roots[0], fine)
        ]
        assert 3 < errors[0] / errors[1] < 5


def test_bratu_in_two_dimensions_is_below_and_above_its_fold():
    """Published: λ = 6.808124 with u(½, ½) = 1.3917 at the fold."""
    low, high = (getattr(PROBLEMS["bratu 2-d 6.8"], k)[0] for k in ("roots", "wrong_roots"))
    assert np.max(low) < 1.3917 < np.max(high)
    assert np.max(high) - np.max(low) < 0.2


@pytest.mark.parametrize("h", [0.01, 1.0, 100.0])
def test_robertson_keeps_mass_and_sign(h):
    y = root(f"robertson {h:g}")
    assert len(PROBLEMS[f"robertson {h:g}"].roots) == 1
    assert np.all(y > 0) and abs(np.sum(y) - 1) < 1e-15
    # The fast species is in balance: k₁ a = k₂ b² + k₃ b c, to the length of the step.
    production = equations.K1 * y[0]
    loss = equations.K2 * y[1] ** 2 + equations.K3 * y[1] * y[2]
    np.testing.assert_allclose(production, loss + y[1] / h, rtol=1e-10)


def test_nobody_has_more_than_the_budget():
    for solver in OURS:
        assert max_steps(solver) < BUDGET
    for method in SCIPY:
        for name in PROBLEMS:
            assert scipys(method, name).f_evals <= BUDGET
