"""Score trained weights again, and see whether what they compute is an equilibrium.

    python -m experiments.evaluate                                      # all recorded weights
    python -m experiments.evaluate --weights runs/copy-memory-400-tcn   # a run's
    python -m experiments.evaluate --checks                             # is it an equilibrium?

Prints a table: the test loss of every row, and, with --checks, where a model solves an equilibrium,
the loss with other tolerances, solvers and starts, and on longer sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deqjax.training import command_line
from experiments.copy_memory import results
from experiments.copy_memory.audit import Line, audit, generalisation
from experiments.copy_memory.task import evaluate, held_out

BATCH = 10  # a fifth faster than 50 on two CPU cores, at T = 400


@dataclass(frozen=True)
class Config:
    """Score trained weights of experiments.copy_memory."""

    weights: tuple[Path, ...] = ()
    """folders with weights.npz and config.json; those under experiments/results if not given"""
    checks: bool = False
    """solve again with other tolerances, solvers, starts and lengths; two minutes a model"""
    record: bool = False
    """check, and keep the folders and what was found under experiments/results/copy_memory/"""


def main(config: Config) -> dict[str, list[Line]]:
    """{folder: lines}, printed as they come."""
    folders = config.weights or results.folders()
    tables = {}
    print(f"{'':34}{'T':>6}{'n':>6}{'loss':>11}{'recall':>9}{'steps':>8}{'converged':>11}")
    for folder in folders:
        options, model, _ = results.load(folder)
        pair = held_out(options.train.seed, options.test_sequences, options.length)
        score = evaluate(model, pair, BATCH)
        lines = [Line(folder.name, options.length, len(pair.inputs), score)]
        show(lines[0])
        if (
            (config.checks or config.record)
            and score.steps is not None
            and options.model == "deq-transformer"
        ):
            for line in (*audit(model, options), *generalisation(model, options)):
                show(line, indent=2)
                lines.append(line)
        tables[folder.name] = lines
        if config.record:
            results.record(folder, lines)
    return tables


def show(line: Line, indent: int = 0) -> None:
    score = line.score
    solved = ""
    if score.steps is not None:
        solved = f"{score.steps:>8.1f}{score.converged:>11.1%}"
    name = " " * indent + line.name
    print(
        f"{name:34}{line.length:>6}{line.count:>6}{score.loss:>11.2e}{score.recall:>9.2%}{solved}",
        flush=True,
    )


if __name__ == "__main__":
    command_line(Config, main)
