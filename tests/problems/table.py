"""Print problem × solver: evaluations of g, or how it failed. `python -m tests.problems.table`"""

from __future__ import annotations

import jax

import deqjax

from .harness import BUDGET, PROBLEMS, SCIPY, SOLVERS, Outcome, ours, scipys
from .problem import TOL

SHORT = {
    deqjax.Status.CONVERGED: f"over {BUDGET}",
    deqjax.Status.MAX_STEPS: "max",
    deqjax.Status.NONFINITE: "nan",
    deqjax.Status.DIVERGED: "div",
}


def cell(outcome: Outcome, name: str) -> str:
    if not outcome.solved:
        if outcome.stats is None:
            return "-"
        return SHORT[deqjax.Status(int(outcome.stats.status))]
    problem = PROBLEMS[name]
    if problem.is_at(outcome.z, problem.roots):
        return str(outcome.f_evals)
    return f"{outcome.f_evals}{'w' if problem.is_at(outcome.z, problem.wrong_roots) else '?'}"


def main():
    print(
        f"evaluations of g to ‖g‖₂ ≤ {TOL:g}, at most {BUDGET}; w: a wrong root, ?: an unknown one"
    )
    header = [f"scipy {m}" for m in SCIPY] + list(SOLVERS)
    print("| problem | n | " + " | ".join(header) + " |")
    print("|---" * (len(header) + 2) + "|")
    for name, problem in PROBLEMS.items():
        outcomes = [scipys(m, name) for m in SCIPY] + [ours(s, name) for s in SOLVERS]
        print(f"| {name} | {problem.n} | " + " | ".join(cell(o, name) for o in outcomes) + " |")


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
