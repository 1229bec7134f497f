"""Every problem by every solver, ours and SciPy's: same function, start, stop test and budget."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import deqjax

from . import cells, equations, more_garbow_hillstrom
from .problem import TOL, Problem

BUDGET = 2000  # evaluations of g, the start's included

PROBLEMS: dict[str, Problem] = {
    p.name: p for source in (more_garbow_hillstrom, equations, cells) for p in source.problems()
}

OURS: dict[str, deqjax.Solver] = {
    "picard": deqjax.Picard(),
    "anderson": deqjax.Anderson(),
    "anderson 0.3": deqjax.Anderson(memory=10, mixing=0.3),
    "broyden": deqjax.Broyden(),
    "broyden search": deqjax.Broyden(line_search=True),
    # A step costs three evaluations or more.
    "newton_krylov": deqjax.NewtonKrylov(max_steps=BUDGET // 3),
}
# Each compiles for seconds, so the slow tests only look at these.
VARIANTS: dict[str, deqjax.Solver] = {
    "picard 0.3": deqjax.Picard(damping=0.3),
    "anderson 10": deqjax.Anderson(memory=10),
    "anderson 0.1": deqjax.Anderson(memory=10, mixing=0.1),
    "broyden 30": deqjax.Broyden(memory=30),
}
SOLVERS = OURS | VARIANTS

SCIPY = {
    "broyden1": scipy.optimize.broyden1,
    "anderson": scipy.optimize.anderson,
    "krylov": scipy.optimize.newton_krylov,
}


@dataclass(frozen=True)
class Outcome:
    """z, what the solver said, and ‖g(z)‖₂ as computed here."""

    z: np.ndarray
    residual: float
    f_evals: int
    claims_success: bool
    stats: deqjax.Stats | None = None

    @property
    def solved(self) -> bool:
        # 1.1: round-off of g, which is not compiled twice in the same way.
        enough = self.residual <= 1.1 * TOL
        return self.claims_success and enough and self.f_evals <= BUDGET


# Problems are branches of one function on vectors of one width, so that each solver compiles once.
# The zeros at the end stay zero, and no norm or inner product sees them.

WIDTH = max(p.n for p in PROBLEMS.values())
PARAMETERS = max(sum(x.size for x in p.parameters) for p in PROBLEMS.values())


def form(problem: Problem):
    return problem.function, problem.n, tuple(x.shape for x in problem.parameters)


FORMS = list(dict.fromkeys(form(p) for p in PROBLEMS.values()))


def branch(function, n, shapes):
    def g(z, flat):
        parameters = []
        for shape in shapes:
            size = math.prod(shape)
            parameters.append(flat[:size].reshape(shape))
            flat = flat[size:]
        return jnp.pad(function(*parameters, z[:n]), (0, WIDTH - n))

    return g


def any_problem(z, index, sign, flat):
    return sign * jax.lax.switch(index, [branch(*f) for f in FORMS], z, flat)


def max_steps(solver: str) -> int:
    return SOLVERS[solver].max_steps or BUDGET - 1


@functools.cache
def compiled(solver: str):
    def solve(z0, index, sign, flat):
        return deqjax.root_find(
            any_problem,
            z0,
            index,
            sign,
            flat,
            solver=SOLVERS[solver],
            rtol=0.0,
            atol=TOL,
            max_steps=max_steps(solver),
        )

    # So much code is run so little that optimising it takes longer than it saves.
    return jax.jit(solve, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def ours(solver: str, name: str) -> Outcome:
    problem = PROBLEMS[name]
    flat = np.concatenate([np.ravel(x) for x in (*problem.parameters, [])])
    sol = compiled(solver)(
        np.pad(problem.start, (0, WIDTH - problem.n)),
        FORMS.index(form(problem)),
        float(problem.sign),
        np.pad(flat, (0, PARAMETERS - flat.size)),
    )
    z = np.asarray(sol.z)
    assert not np.any(z[problem.n :])
    return Outcome(
        z=z[: problem.n],
        residual=problem.norm(z[: problem.n]),
        f_evals=int(sol.stats.f_evals),
        claims_success=bool(sol.stats.converged),
        stats=jax.tree.map(np.asarray, sol.stats),
    )


class OutOfBudget(Exception):
    pass


@functools.cache
def scipys(method: str, name: str) -> Outcome:
    """SciPy's outcome; whatever it raises is a failure."""
    problem = PROBLEMS[name]
    f_evals = 0

    def counted(z):
        nonlocal f_evals
        if f_evals == BUDGET:
            raise OutOfBudget
        f_evals += 1
        return problem.evaluate(z)

    z, success = problem.start, False
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            z = SCIPY[method](
                counted, problem.start, f_tol=TOL, tol_norm=np.linalg.norm, maxiter=BUDGET
            )
        success = True
    except Exception:  # NoConvergence, OutOfBudget, and what its linear algebra raises
        pass
    return Outcome(z, problem.norm(z), f_evals, success)
