"""Your first DEQ: what goes wrong when it is trained, why, and what helps.

    python -m experiments.first_deq [--rows anderson anderson-gain] [--seeds 10]

Every solver, as it is and with one remedy at a time, next to an MLP and to the cell stacked twelve
times: some minutes in all on two cores. Writes the table into `experiments/results/first_deq.md`
and draws `first_deq.png` beside it. What follows from it: docs/first_deq.md.
"""

from __future__ import annotations

import datetime
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from deqjax.training import OptionError, Progress, command_line

from . import report
from .equilibria import Equilibria, examine, linearised
from .rows import ROWS, Row
from .train import Digits, Found, epoch_keys, trainer


@dataclass(frozen=True)
class Config:
    """Train a small equilibrium model on digits, by every solver and with every remedy."""

    seeds: int = 10
    """how often each row is trained, from different weights and on different batches"""
    epochs: int = 15
    """times through the training digits"""
    rows: tuple[str, ...] = ()
    """rows to train; all if not given"""
    width: int = 64
    """of the equilibrium"""
    samples: int = 128
    """test digits whose equilibria are examined after every epoch"""
    out: Path = Path("experiments/results/first_deq.md")
    """the table; rows that this run does not train stay in it"""


def main(config: Config) -> None:
    for name in ("seeds", "epochs", "width", "samples"):
        if getattr(config, name) < 1:
            raise OptionError(f"--{name} must be at least 1; got {getattr(config, name)}")
    unknown = [name for name in config.rows if name not in ROWS]
    if unknown:
        raise OptionError(f"no row is called {unknown[0]!r}; there are {', '.join(ROWS)}")
    train, test = Digits.load()
    said = f"`{_command()}`, {datetime.date.today().isoformat()}, jax {jax.__version__}"
    rows = [ROWS[name] for name in config.rows or ROWS]
    with Progress(len(rows) * config.epochs) as progress:
        for done, row in enumerate(rows):
            told = run(row, config, train, test, progress, done * config.epochs)
            kept = report.record(config.out, said, config.samples, told)
            progress.note(" | ".join(report.cells(told)))
    picture = config.out.with_suffix(".png")
    report.draw(kept, picture)
    print(f"written: {config.out}, {picture}")


def run(row: Row, config: Config, train: Digits, test: Digits, progress: Progress, done: int):
    """Train a row and say how that went: `report.summary`."""
    made = trainer(row, config.width, train, test)
    few = Digits(test.images[: config.samples], test.classes[: config.samples])
    look = None if row.solver is None else linearised(made.model, few)
    state, epochs, equilibria = made.start(config.seeds), [], []
    for epoch in range(config.epochs):
        state, found = made.epoch(state, epoch_keys(config.seeds, epoch))
        epochs.append(found)
        if look is not None:
            equilibria.append(examine(*look(state.parameters)))
        accuracy = float(found.accuracy.mean())
        progress.update(done + epoch + 1, accuracy=accuracy, gradient=float(found.gradient.max()))
    all_epochs = Found(*(np.stack(column) for column in zip(*epochs, strict=True)))
    return report.summary(
        row.name, all_epochs, Equilibria.joined(equilibria) if equilibria else None
    )


def _command() -> str:
    given = [a for a, b in zip(sys.argv[1:], sys.argv, strict=False) if "--out" not in (a, b)]
    return " ".join(["python -m experiments.first_deq", *given])


if __name__ == "__main__":
    command_line(Config, main)
