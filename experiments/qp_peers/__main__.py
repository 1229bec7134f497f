"""Time and accuracy of `implicit.qp` beside jaxopt's OSQP and qpax.

    python -m experiments.qp_peers

One batch of strictly convex programs, one of them near to degenerate, by each library in float64
and in float32, forward and with the gradient to all operands. Peers take part where they
are installed. Writes the tables into `experiments/results/qp_peers.md`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from deqjax.training import command_line

from .libraries import libraries
from .programs import (
    Programs,
    gradient_errors,
    lacking,
    nearly_degenerate,
    references,
    strictly_convex,
)
from .report import MARGIN, Measured, record, summary

TOLERANCES = {"float64": 1e-9, "float32": 1e-5}


@dataclass(frozen=True)
class Config:
    """Time and gradients of quadratic programs, beside jaxopt and qpax."""

    quick: bool = False
    """a tiny batch, few rounds: shows that everything runs"""
    rounds: int = 15
    """of timing, in which all libraries take turns"""
    out: Path = Path("experiments/results/qp_peers.md")
    """the tables; those of other versions of JAX stay in it"""


def main(config: Config) -> None:
    batch, n, rounds = (4, 8, 2) if config.quick else (128, 64, config.rounds)
    z_bar = np.random.default_rng(1).standard_normal((batch, n))
    with jax.enable_x64(True):
        programs = nearly_degenerate(strictly_convex(batch, n, n // 2, n // 4), 0, MARGIN)
        wanted = references(programs, z_bar)
    found = []
    for dtype in TOLERANCES:
        # jaxopt's loops mix the two where float64 is on.
        with jax.enable_x64(dtype == "float64"):
            found += measured(programs, z_bar, wanted, dtype, rounds)
    record(config.out, found, batch=batch, n=n, rounds=rounds)
    print(summary(found))
    print(f"written: {config.out}")


def measured(
    programs: Programs, z_bar: np.ndarray, wanted: list[Programs], dtype: str, rounds: int
) -> list[Measured]:
    tolerance = TOLERANCES[dtype]
    operands = tuple(jnp.asarray(x, dtype) for x in programs)
    given = Programs(*(np.asarray(x, np.float64) for x in operands))
    weights = jnp.asarray(z_bar, dtype)
    runs = {}
    for library in libraries():
        forward = partial(library.solution, tolerance=tolerance)
        loss = lambda o, forward=forward: jnp.vdot(forward(o), weights)
        runs[library.name, "forward"] = jax.jit(forward)
        runs[library.name, "backward"] = jax.jit(jax.value_and_grad(loss))
    seconds = interleaved(runs, operands, rounds)
    rows = []
    for library in libraries():
        z, nu, lam, converged = jax.jit(partial(library.answer, tolerance=tolerance))(operands)
        _, bars = runs[library.name, "backward"](operands)
        errors = gradient_errors(bars, wanted)
        rows.append(
            Measured(
                dtype,
                library.name,
                seconds[library.name, "forward"],
                seconds[library.name, "backward"],
                int(np.sum(np.asarray(converged))),
                float(lacking(given, z, nu, lam).max()),
                float(errors.max()),
                float(errors[1:].max()),
            )
        )
    return rows


def interleaved(runs: dict, operands: tuple, rounds: int) -> dict:
    """Process CPU seconds of each in turn, in every round: {name: [of each round]}."""
    taken = {name: [] for name in runs}
    for function in runs.values():
        jax.block_until_ready(function(operands))  # compiles
    for round_ in range(rounds):
        # Every second round backwards, so that a machine that slows down favours nobody.
        for name in list(runs) if round_ % 2 == 0 else list(runs)[::-1]:
            start = time.process_time()
            jax.block_until_ready(runs[name](operands))
            taken[name].append(time.process_time() - start)
    return taken


if __name__ == "__main__":
    command_line(Config, main)
