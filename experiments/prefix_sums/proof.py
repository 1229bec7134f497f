"""What a status is worth: right or wrong among converged and stable answers, by several solvers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from deqjax import Anderson, Broyden, Compacted, Picard, fixed_point
from deqjax.solvers import Solver

from .task import Config, Network, strings

SOLVERS: dict[str, Solver] = {
    "Picard": Picard(),
    "Picard, damping 0.7": Picard(damping=0.7),
    "Anderson": Anderson(),
    "Broyden": Broyden(),
}
RTOL, PRODUCTS, CHUNK = 1e-4, 16, 50
FEWER = 4  # root finders, which take long here, get so many times fewer strings


@dataclass(frozen=True)
class Row:
    """Strings of one length, by one solver.

    Attributes:
        right: whole strings that are right.
        converged, stable: and the two together, `certified`.
        wrong_converged, wrong_certified: of those, strings with an error.
        right_unconverged: strings that are right all the same.
        steps: mean, of the solver.
        compacted: evaluations of f by `Compacted`, over those of a loop that is as long as the
            slowest string needs; None where that was not asked for.
    """

    seed: int
    stacked: bool
    solver: str
    length: int
    strings: int
    right: int
    converged: int
    certified: int
    wrong_converged: int
    wrong_certified: int
    right_unconverged: int
    steps: float
    compacted: float | None = None


def budget(length: int) -> int:
    """Steps that are allowed: information travels two bits in one, and has to come to rest."""
    return 4 * length + 200


def prove(model: Network, config: Config) -> Iterator[Row]:
    """Rows of one trained network; a stack is iterated alike, and has no status of its own."""
    for length in config.test_lengths:
        rng = np.random.default_rng((config.train.seed, 10**7, length))
        x, parity = strings(rng, config.strings, length)
        for name, solver in SOLVERS.items():
            if config.stacked and name != "Picard":
                continue
            count = len(x) if isinstance(solver, Picard) else max(1, len(x) // FEWER)
            row = _row(model, config, name, solver, x[:count], parity[:count])
            print(told(row), flush=True)
            yield row


def _row(model, config, name, solver, x, parity) -> Row:
    length, seed = x.shape[1], config.train.seed
    right, found, over = [], [], []
    key = jax.random.fold_in(jax.random.key(seed), length)
    solve = solver_of(model, solver, length)
    packed = solver_of(model, Compacted(solver), length) if name == "Picard" else None
    for k, at in enumerate(range(0, len(x), CHUNK)):
        part = x[at : at + CHUNK]
        z0 = model.deq.cell.random_state(jax.random.fold_in(key, k), part)
        sol = solve(z0, part)
        logits = np.asarray(model.logits(sol.z))
        right.append(((logits > 0) == (parity[at : at + CHUNK] > 0)).all(axis=1))
        found.append(jax.device_get(sol.stats))
        if packed is not None:
            over.append(float(packed(z0, part).stats.f_evals.sum()))
    ok = np.concatenate(right)
    converged = np.concatenate([s.converged for s in found])
    steps = np.concatenate([s.steps for s in found])
    certified = converged & np.concatenate([s.stability.stable for s in found])
    return Row(
        seed=seed,
        stacked=config.stacked,
        solver=name,
        length=length,
        strings=len(x),
        right=int(ok.sum()),
        converged=int(converged.sum()),
        certified=int(certified.sum()),
        wrong_converged=int((~ok & converged).sum()),
        wrong_certified=int((~ok & certified).sum()),
        right_unconverged=int((ok & ~converged).sum()),
        steps=float(steps.mean()),
        # A loop of a fixed length gives the same answers once it is as long as the slowest needs.
        compacted=sum(over) / (len(x) * int(steps.max())) if over else None,
    )


def solver_of(model: Network, solver: Solver, length: int) -> Any:
    """solve(z0, x) -> Solution, compiled."""
    cell: Any = model.deq.cell
    options: Any = dict(solver=solver, batch_axis=0, rtol=RTOL, max_steps=budget(length))
    options |= dict(stability=PRODUCTS)
    return jax.jit(lambda z0, x: fixed_point(cell, z0, cell.inject(x), **options))


def told(row: Row) -> str:
    kind = "stack" if row.stacked else "settling"
    return (
        f"  {kind}, seed {row.seed}, {row.length:>3} bits, {row.solver:<20} right {row.right:>3} "
        f"of {row.strings}, converged {row.converged:>3}, of these wrong {row.wrong_converged}; "
        f"certified {row.certified:>3}, of these wrong {row.wrong_certified}; {row.steps:.0f} steps"
    )
